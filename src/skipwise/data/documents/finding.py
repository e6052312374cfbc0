"""Finding the files of folders and globs, each once. Inaccessible folders and files are recorded as faults."""

import fnmatch
import glob
import os
import re
import stat
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipwise.data.formats import UnreadableError, missing_package, reader_of

# Folders that are not on every machine, not part of the library itself, or deliberately malformed.
_STDLIB_SKIPPED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "encodings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFile:
    """One file, and the name of its documents."""

    path: Path
    name: str


@dataclass(slots=True, kw_only=True)
class FoundFiles:
    """The files found in a folder or by a glob.

    Attributes:
        files: of supported kinds, in reading order.
        passed_over: number of files of other kinds, by suffix.
        unpackaged: number of files whose kind needs a package that is not installed, by suffix.
        faults: folders and files that cannot be accessed.
        repeated: number of files and folders that had been found before, here or in an earlier source.
    """

    files: list[DocumentFile] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unpackaged: Counter[str] = field(default_factory=Counter)
    faults: list[UnreadableError] = field(default_factory=list)
    repeated: int = 0


class Finder:
    """Finds the files of one source after another, each file once, whatever path leads to it.

    Symbolic links, hard links and other spellings of a path are recognised by the file itself. Links to folders are
    followed last, so that a file found both directly and through a link keeps its direct name. A link to a folder that
    contains it is not followed.
    """

    def __init__(self) -> None:
        self._files: set[Any] = set()
        self._folders: set[Any] = set()

    def file(self, path: Path) -> FoundFiles:
        """One file."""
        found = FoundFiles()
        self._add(found, path, path.name)
        return found

    def walked(self, root: Path) -> FoundFiles:
        """All files under a folder in the order of their names, without hidden files and folders."""
        found = FoundFiles()
        self._walk(found, root, root)
        return found

    def globbed(self, pattern: Path) -> FoundFiles:
        """All files that a glob matches, and all files in folders that it matches, in the order of their names."""
        found = FoundFiles()
        fixed = Path(*_until_magic(pattern.parts))
        begin = len(fixed.parts)
        for match in sorted(_Glob(found).matches(fixed, pattern.parts[begin:]), key=str):
            # `**` matches folders as well as the files in them, so only the files are added.
            if not os.path.isdir(match):  # noqa: PTH112 - Path.is_dir raises where a folder may not be entered
                self._add(found, match, str(match.relative_to(fixed)))
            elif "**" not in pattern.parts:
                self._walk(found, match, fixed)
        return found

    def standard_library(self) -> FoundFiles:
        """Python sources of the running interpreter's library."""
        found = FoundFiles()
        root = Path(sysconfig.get_paths()["stdlib"])
        paths: list[Path] = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
            paths += (Path(folder, name) for name in names if name.endswith(".py"))
        for path in sorted(paths):
            self._add(found, path, path.relative_to(root).as_posix())
        return found

    def _walk(self, found: FoundFiles, top: Path, root: Path) -> None:
        waiting, linked = [top], list[Path]()
        while waiting or linked:
            folder = waiting.pop() if waiting else linked.pop(0)
            if not _is_new(folder, self._folders):
                found.repeated += 1
                continue
            below = list[Path]()
            for entry in _listed(folder, found.faults):
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    self._add(found, path, str(path.relative_to(root)))
                elif entry.is_symlink():
                    linked += [] if _leads_back(path) else [path]
                else:
                    below.append(path)
            waiting += reversed(below)

    def _add(self, found: FoundFiles, path: Path, name: str) -> None:
        if path.name.startswith("~$"):
            return  # Office keeps it beside a document while that is open.
        is_read = reader_of(path) is not None
        try:
            status = path.stat()
        except OSError as error:
            # A link that must not be followed may lead to a folder, whatever its name.
            if is_read or (isinstance(error, PermissionError) and os.path.islink(path)):  # noqa: PTH114 - as above
                reason = f"cannot be read ({error.strerror})"
                cure = "fix its permissions or its link, or leave it out"
                found.faults.append(UnreadableError("closed", printable(path), reason, cure))
            return
        if not stat.S_ISREG(status.st_mode):
            return
        if not _is_new(path, self._files, status):
            found.repeated += 1
        elif is_read and missing_package(path):
            found.unpackaged[printable(path.suffix).lower()] += 1
        elif is_read:
            found.files.append(DocumentFile(path=path, name=printable(name.replace(os.sep, "/"))))
        else:
            found.passed_over[printable(path.suffix) or "no suffix"] += 1


class _Glob:
    """Matches of a pattern as by `glob.glob`, except that folders that cannot be listed are recorded as faults."""

    def __init__(self, found: FoundFiles) -> None:
        self._found = found
        # Folders that `**` has visited with the same rest of the pattern: links may form cycles or meet.
        self._been: dict[int, set[Any]] = {}

    def matches(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        """Paths below a folder that the parts of a pattern match."""
        if not parts:
            yield folder
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._anywhere(folder, rest)
        elif not glob.has_magic(part):
            if os.path.lexists(folder / part):
                yield from self.matches(folder / part, rest)
        else:
            for entry in self._entries(folder):
                is_hidden = entry.name.startswith(".") and not part.startswith(".")
                if not is_hidden and fnmatch.fnmatch(entry.name, part) and (_is_folder(entry) or not rest):
                    yield from self.matches(folder / entry.name, rest)

    def _anywhere(self, folder: Path, rest: tuple[str, ...]) -> Iterator[Path]:
        if not _is_new(folder, self._been.setdefault(len(rest), set())):
            return
        if rest:
            yield from self.matches(folder, rest)
        entries = [entry for entry in self._entries(folder) if not entry.name.startswith(".")]
        # Direct entries come before links.
        for entry in sorted(entries, key=os.DirEntry.is_symlink):
            if _is_folder(entry):
                if not (entry.is_symlink() and _leads_back(folder / entry.name)):
                    yield from self._anywhere(folder / entry.name, rest)
            elif not rest:
                yield folder / entry.name

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        return _listed(folder, self._found.faults) if os.path.isdir(folder) else []  # noqa: PTH112 - as above


def printable(name: str | Path) -> str:
    """A path as text for terminals, logs and JSON. Bytes that are not UTF-8 are written as `\\xff`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _listed(folder: Path, faults: list[UnreadableError]) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names; adds a fault if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        where = f"folder {printable(folder)}"
        if all(where != fault.where for fault in faults):
            reason = f"cannot be listed ({error.strerror})"
            faults.append(UnreadableError("closed", where, reason, "fix its permissions or leave it out"))
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. False for a link that cannot be followed: a fault elsewhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leads_back(link: Path) -> bool:
    """Whether a link leads to a folder that contains it, at any depth."""
    return link.parent.resolve().is_relative_to(link.resolve())


def _is_new(path: Path, known: set[Any], status: os.stat_result | None = None) -> bool:
    """Whether a file or folder is seen for the first time, whatever path leads there; adds it to `known`."""
    try:
        status = status or path.stat()
    except OSError:
        return True  # Opening it will raise the error.
    # Some file systems have no inode numbers, and union file systems may use a number twice.
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    key = numbers if status.st_ino else path.resolve()
    is_new = key not in known
    known.add(key)
    return is_new


def _until_magic(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part

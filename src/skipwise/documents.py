"""Documents: texts with names, from wherever users keep them.

A source is a file, a folder, a glob, `stdlib`, the name of a hub data set, or a list of these; `find_sources` decides
which by what exists. Sources are read lazily and in a fixed order: a corpus larger than memory passes piece by piece.
"""

import glob
import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from skipwise.errors import DataError
from skipwise.readers import ALLOWED, reader_of, text_of

# Folders of the standard library that are not everywhere, not text of its own, or deliberately malformed.
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
# `name`, `owner/name`, each with `:split` or `:config:split`.
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?")

# What is read to tell whether documents have changed: sources up to this size as a whole, larger ones in samples.
_HASHED_BYTES = 256 << 20
_SAMPLED_BYTES = 64 << 10

_SOURCES = f"give a file ({ALLOWED}), a folder or glob of such files, a hub data set (owner/name[:split]), or stdlib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text and the name it is known by.

    Attributes:
        name: a path, or a path with a line number, from where the source was given: how it is written decides it.
        text: what it says.
        is_canonical: whether the name is the same however the source is written, as in the standard library.
    """

    name: str
    text: str
    is_canonical: bool = False

    @property
    def identity(self) -> str:
        """What tells the document from others wherever it lies: its text, or a name that is canonical.

        By text a document is the same one in a folder, in a part of it, and under another name. The standard library
        goes by its modules' names, because these last from one version of Python to the next and most texts do not.
        """
        return self.name if self.is_canonical else self.text.strip()


def is_held_out(identity: str, share: float = 0.1) -> bool:
    """Whether the document of this identity is kept out of training; who is at one share also is at any larger one."""
    return split_point(identity) / 2**64 < share


def split_point(identity: str) -> int:
    """Where the document of this identity stands in [0, 2**64): below `share * 2**64` it is held out."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


def stdlib_documents() -> Iterator[Document]:
    """Python sources of the running interpreter's library, in a fixed order: real long text on every machine."""
    for file in _stdlib_files():
        yield Document(name=file.name, text=file.path.read_text(encoding="utf-8"), is_canonical=True)


def read_documents(source: str | Path | Sequence[str | Path], *, field: str = "text") -> Iterator[Document]:
    """Reads the documents of a source one by one, in an order that depends on the source alone.

    Args:
        source: a file, folder or glob of the kinds in `readers.READERS`; `stdlib`; a hub data set as `owner/name`,
            `owner/name:split` or `owner/name:config:split` (split `train` when left out); or a list of these.
        field: name of the entry that holds the text in JSON lines, Parquet and hub data sets.

    Yields:
        Documents named by their path relative to the source, followed by `:line` where a file holds many.

    Raises:
        DataError: when the source is none of these, or anything in it cannot be read; names the file and line.
    """
    for found in find_sources(source):
        yield from found.documents(field)


class Source(Protocol):
    """Something that documents are read from."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """How many files of each kind were passed over because skipwise does not read that kind."""
        ...

    def size_bytes(self) -> int | None:
        """Bytes on disk, None when that cannot be known before reading."""
        ...

    def identity(self) -> list[Any]:
        """What tells these documents from any others at little cost, as plain JSON values."""
        ...

    def documents(self, field: str) -> Iterator[Document]:
        """Yields the documents lazily, always in the same order."""
        ...

    def read_bytes(self) -> int:
        """How many of them have been read by now, for a progress bar."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFile:
    """One file, and the name its documents go by."""

    path: Path
    name: str


@dataclass(slots=True, kw_only=True)
class LocalFiles:
    """Files on this machine.

    Attributes:
        files: in reading order.
        passed_over: files found beside them that are of no readable kind, counted by suffix.
        is_canonical: whether their names are the same on every machine.
    """

    files: list[DocumentFile]
    passed_over: Counter[str] = field(default_factory=Counter)
    is_canonical: bool = False
    _finished_bytes: int = 0
    _open: BinaryIO | None = None
    _is_small: bool | None = None
    _sampled_bytes: int = 0

    def empty_files(self) -> list[str]:
        """Names of the files without a byte, which are no news where the files are the same on every machine."""
        return [] if self.is_canonical else [file.name for file in self.files if not _size(file.path)]

    def size_bytes(self) -> int:
        """Bytes of all files on disk."""
        return sum(_size(file.path) for file in self.files)

    def read_bytes(self) -> int:
        """Bytes read by now, compressed ones as they are on disk."""
        return self._finished_bytes + (self._open.tell() if self._open and not self._open.closed else 0)

    def identity(self) -> list[Any]:
        """Name, size and hash of every file, so that the same content is the same source wherever it lies.

        Of sources above 256 MiB a file's beginning and end stand for the rest, 64 KiB each (less where files are very
        many), together with its path and time of change: what is written into its middle is noticed by the time alone.
        """
        self._choose_samples()
        identity: list[Any] = [self.is_canonical]
        for file in self.files:
            with _opened(file.path) as handle:
                status = os.fstat(handle.fileno())
                digest = _hash_ends(handle, status.st_size, self._sampled_bytes)
            place = [] if self._is_small else [str(file.path.resolve()), status.st_mtime_ns]
            identity.append([file.name, status.st_size, digest, *place])
        return identity

    @staticmethod
    def sizes_of(identity: list[Any]) -> list[int]:
        """Bytes that each file had when `identity` looked at it."""
        return [size for _, size, *_ in identity[1:]]

    def part(self, begin: int, end: int) -> "LocalFiles":
        """Those from one file up to another; its `identity` says of each of them what that of all files says."""
        self._choose_samples()
        return LocalFiles(
            files=self.files[begin:end],
            is_canonical=self.is_canonical,
            _is_small=self._is_small,
            _sampled_bytes=self._sampled_bytes,
        )

    def _choose_samples(self) -> None:
        if self._is_small is None:
            self._is_small = self.size_bytes() <= _HASHED_BYTES
            at_most = _HASHED_BYTES // (2 * len(self.files))
            self._sampled_bytes = _HASHED_BYTES if self._is_small else min(_SAMPLED_BYTES, at_most)

    def documents(self, field: str) -> Iterator[Document]:
        """Yields the documents file by file."""
        self._finished_bytes = 0
        for file in self.files:
            reader = reader_of(file.path)
            assert reader is not None, file  # find_sources lets no other file through
            with _opened(file.path) as handle:
                self._open = handle
                for line, text in reader(handle, file.path, field):
                    name = f"{file.name}:{line}" if line else file.name
                    yield Document(name=name, text=text, is_canonical=self.is_canonical)
            self._open = None
            self._finished_bytes += _size(file.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A data set of the Hugging Face hub, streamed: nothing but the rows that are read is fetched.

    Attributes:
        name: `owner/name`, or `name` alone for the oldest sets.
        config: its configuration, None for its default.
        split: which split of it.
    """

    name: str
    config: str | None
    split: str

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Nothing is passed over."""
        return {}

    def size_bytes(self) -> None:
        """Not known before reading."""

    def read_bytes(self) -> int:
        """Not known."""
        return 0

    def identity(self) -> list[Any]:
        """Name and split with the commit that the hub's main revision is at now."""
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.name).sha
        except Exception as error:
            raise DataError(_unreachable(self.name, error)) from None
        return [self.name, self.config, self.split, commit]

    def documents(self, field: str) -> Iterator[Document]:
        """Yields the rows of the split."""
        import datasets

        label = ":".join(part for part in (self.name, self.config, self.split) if part)
        number = 0
        try:
            rows = iter(datasets.load_dataset(self.name, self.config, split=self.split, streaming=True))
            for number, row in enumerate(rows, start=1):
                yield Document(name=f"{label}:{number}", text=text_of(row, field, f"{label}:{number}"))
        except DataError:
            raise
        except Exception as error:
            # The network may break at any row.
            if not number:
                raise DataError(_unreachable(label, error)) from None
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"hub data set {label!r} breaks off after row {number} ({reason}); start again, or fetch it to a file"
            ) from None


def find_sources(source: str | Path | Sequence[str | Path]) -> list[Source]:
    """Finds out what a source is, by what exists; opens nothing.

    Args:
        source: as in `read_documents`.

    Raises:
        DataError: when it is no file, folder, glob with matches, `stdlib` or possible data set name.
    """
    if not source:
        raise DataError(f"the source of documents is empty; {_SOURCES}")
    if not isinstance(source, str | Path):
        return [found for one in source for found in find_sources(one)]
    if (text := str(source)) == "stdlib" and not Path(text).exists():
        return [LocalFiles(files=list(_stdlib_files()), is_canonical=True)]
    path = Path(text).expanduser()
    if path.is_file():
        if reader_of(path) is None:
            raise DataError(f"{path} is of a kind that skipwise does not read; give {ALLOWED}")
        if not path.stat().st_size:
            raise DataError(f"{path} is empty; give a file with text")
        return [LocalFiles(files=[DocumentFile(path=path, name=path.name)])]
    if path.is_dir():
        return [_readable(_walked(path), text)]
    if glob.has_magic(text):
        return [_readable(_globbed(path), text)]
    if isinstance(source, str) and (match := _HUB_NAME.fullmatch(text)):
        return [HubDataset(name=match["name"], config=match["config"], split=match["split"] or "train")]
    raise DataError(f"no documents at {text!r}: it does not exist; {_SOURCES}")


def _readable(files: Iterable[DocumentFile], source: str) -> LocalFiles:
    """Keeps the files of readable kinds and counts the others."""
    found = LocalFiles(files=[])
    for file in files:
        if reader_of(file.path):
            found.files.append(file)
        else:
            found.passed_over[file.path.suffix or "no suffix"] += 1
    if not found.files:
        others = ", ".join(f"{number} {kind}" for kind, number in found.passed_over.most_common(5)) or "no files at all"
        raise DataError(f"no documents at {source!r}: it holds {others}; {_SOURCES}")
    return found


def _walked(root: Path) -> Iterator[DocumentFile]:
    """All files under a folder in the order of their names; hidden files and folders are left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder, name)
                yield DocumentFile(path=path, name=path.relative_to(root).as_posix())


def _globbed(pattern: Path) -> Iterator[DocumentFile]:
    """All files that a glob matches, in the order of their names, with those of the folders that it matches."""
    fixed = Path(*_until_magic(pattern.parts))
    for match in sorted(glob.glob(str(pattern), recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        path = Path(match)
        # `**` matches a folder and its files alike, so there only the files count.
        if path.is_dir() and "**" not in pattern.parts:
            for file in _walked(path):
                yield DocumentFile(path=file.path, name=file.path.relative_to(fixed).as_posix())
        elif path.is_file():
            yield DocumentFile(path=path, name=path.relative_to(fixed).as_posix())


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); mend its permissions or leave it out") from None


def _size(path: Path) -> int:
    """Bytes on disk."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend what it links to, or leave it out") from None


def _hash_ends(file: BinaryIO, size_bytes: int, at_most_bytes: int) -> str:
    """Hash of a file's first and last bytes, this many of each: of all where it has no more than these."""
    digest = hashlib.blake2b(file.read(at_most_bytes), digest_size=16)
    if size_bytes > at_most_bytes:
        file.seek(max(at_most_bytes, size_bytes - at_most_bytes))
        digest.update(file.read(at_most_bytes))
    return digest.hexdigest()


def _until_magic(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _stdlib_files() -> Iterator[DocumentFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        paths += (Path(folder, name) for name in names if name.endswith(".py"))
    for path in sorted(paths):
        yield DocumentFile(path=path, name=path.relative_to(root).as_posix())


def _unreachable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"no documents at {name!r}: no such file, and as a hub data set it cannot be read ({reason}); {_SOURCES}"

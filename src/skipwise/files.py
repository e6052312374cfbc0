"""Write files and folders atomically: complete, or not there."""

import glob
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Folder of what may be deleted at any time: `$SKIPWISE_CACHE`, by default `~/.cache/skipwise`."""
    return Path(os.environ.get("SKIPWISE_CACHE") or "~/.cache/skipwise").expanduser()


def replace_file(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replaces a file atomically, and waits until it is on the disk.

    Args:
        path: the file; its folder exists.
        text: the new content.
        mode: permissions of the new file from its creation, less the umask.
    """
    # Several processes may write at once.
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    to_disk(path.parent)


def half_written(folder: Path, names: Iterable[str]) -> list[Path]:
    """Temporary files that killed processes have left beside these files."""
    # In earlier versions their names had no process number.
    return [left for name in names for left in sorted(folder.glob(f".{glob.escape(name)}*.new"))]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context with an empty folder to fill, which becomes `path` at the end and is deleted after an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as unfinished:
        complete = Path(unfinished) / path.name
        complete.mkdir()
        yield complete
        complete.rename(path)


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Such a system cannot sync folders, and need not.
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

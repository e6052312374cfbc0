"""Files and folders that are there whole or not at all."""

import glob
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Writes a file so that its old text or its new one is there, never a part of either; on the disk on return.

    Args:
        path: the file; its folder exists.
        text: all of it.
        mode: of the new file, less the umask, from its first moment.
    """
    # Named after the process, as several may have something to say at once.
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
    """What processes that were killed while `replace_file` wrote these files have left beside them."""
    # Earlier versions left out the number of the process.
    return [left for name in names for left in sorted(folder.glob(f".{glob.escape(name)}*.new"))]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Within, an empty folder is filled; it becomes `path` when the block ends well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as unfinished:
        complete = Path(unfinished) / path.name
        complete.mkdir()
        yield complete
        complete.rename(path)


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk and not only on their way there."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # A system without such a call keeps names by itself.
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

"""Readers: lazily read the texts of one file, each with its line.

Every reader takes the open file, its name for messages and the name of the text field. It yields `(line, text)`: the
line or row counted from 1, or 0 if the file is one text. For an unreadable text it yields the error instead, which
names file and line, and continues after it if it can. A null or empty row is an empty text.

faults.py   what can be wrong with a file or a record
lines.py    lines of plain and compressed files
records.py  JSON lines, and the text of a record
parquet.py  Parquet tables
texts.py    files that are one text, and web pages
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from skipwise.data.formats.faults import FAULTS, Found, UnreadableError
from skipwise.data.formats.lines import COMPRESSIONS
from skipwise.data.formats.parquet import checked_parquet, column_of, open_parquet, read_parquet, rows_of
from skipwise.data.formats.records import read_lines, text_of
from skipwise.data.formats.texts import check_text, read_html, read_text

__all__ = [
    "ALLOWED",
    "FAULTS",
    "READERS",
    "UnreadableError",
    "checked_parquet",
    "checker_of",
    "column_of",
    "open_parquet",
    "reader_of",
    "rows_of",
    "text_of",
]

Reader = Callable[..., Iterator[Found]]
"""`reader(file, name, field, cut=False)`; with `cut`, the file is a truncated sample, and its end is not an error."""


def reader_of(path: Path) -> Reader | None:
    """The reader for a file of this name; None if its kind is not supported."""
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)


def checker_of(path: Path) -> Reader | None:
    """A reader that yields all errors of a file, and no texts where that is cheaper."""
    reader = reader_of(path)
    return check_text if reader in (read_text, read_html) else reader


_KINDS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".txt": read_text,
    ".md": read_text,
    ".rst": read_text,
    ".py": read_text,
    ".html": read_html,
    ".htm": read_html,
}
READERS: dict[str, Reader] = {
    **{suffix + compression: reader for suffix, reader in _KINDS.items() for compression in COMPRESSIONS},
    ".parquet": read_parquet,
}
ALLOWED = ".jsonl, .txt, .md, .rst, .py and .html, plain or as .gz or .zst, and .parquet"

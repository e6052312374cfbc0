"""Readers: lazily read the texts of one file, each with its line.

Every reader takes the open file, its name for messages and the name of the text field. It yields `(line, text)`: the
line or row counted from 1, or 0 if the file is one text. For an unreadable text it yields the error instead, which
names file and line, and continues after it if it can. A null or empty row is an empty text.

faults.py     what can be wrong with a file or a record
encodings.py  encodings of text files
lines.py      lines of plain and compressed files
records.py    JSON lines, JSON files, and the text of a record
parquet.py    Parquet tables
texts.py      files that are one text, and web pages
tables.py     rows as text, and CSV
converted.py  documents that are no plain text: the table of their kinds, and what is kept of them
  pdf.py, office.py, odf.py, sheets.py, rtf.py, mail.py; archives.py and markup.py for what is zipped XML,
  signatures.py for what a file with the wrong suffix is
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from skipwise.data.formats.converted import KINDS, is_installed, kind_of, read_document
from skipwise.data.formats.encodings import NAMES, Encoding
from skipwise.data.formats.faults import FAULTS, INSTALL, NAME_THE_FIELD, PAGES, Found, UnreadableError
from skipwise.data.formats.lines import COMPRESSIONS
from skipwise.data.formats.parquet import (
    checked_parquet,
    column_of,
    columns_of,
    open_parquet,
    read_parquet,
    records_in_table,
    rows_of,
)
from skipwise.data.formats.records import (
    is_json_of_records,
    read_json,
    read_lines,
    records_in_json,
    records_in_lines,
    text_of,
)
from skipwise.data.formats.tables import read_csv
from skipwise.data.formats.texts import check_page, check_text, read_html, read_text

__all__ = [
    "ALLOWED",
    "FAULTS",
    "INSTALL",
    "NAMES",
    "NAME_THE_FIELD",
    "PAGES",
    "READERS",
    "Encoding",
    "UnreadableError",
    "checked_parquet",
    "checker_of",
    "column_of",
    "columns_of",
    "first_record",
    "holds_records",
    "is_other_json",
    "is_read_whole",
    "missing_package",
    "open_parquet",
    "reader_of",
    "rows_of",
    "text_of",
    "text_of_document",
    "version_of",
]

Reader = Callable[..., Iterator[Found]]
"""`reader(file, name, field, cut=False, encoding=None)`.

With `cut`, the file is a truncated sample, and its end is not an error. `encoding` is told what a text file is read as.
"""

_KINDS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".json": read_json,
    ".txt": read_text,
    ".md": read_text,
    ".rst": read_text,
    ".py": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".csv": read_csv,
    ".tsv": read_csv,
}
READERS: dict[str, Reader] = {
    **{suffix + compression: reader for suffix, reader in _KINDS.items() for compression in COMPRESSIONS},
    ".parquet": read_parquet,
    **dict.fromkeys(KINDS, read_document),
}
ALLOWED = (
    ".jsonl, .json (an array of records, or one), .csv, .tsv, .txt, .md, .rst, .py and .html, plain or as .gz or .zst, "
    f".parquet, {', '.join(list(KINDS)[:-1])} and {list(KINDS)[-1]}"
)

_RECORDS = {read_lines: records_in_lines, read_json: records_in_json}
_CHECKERS: dict[Reader, Reader] = {read_text: check_text, read_html: check_page}
# Counts what changes the texts of the same bytes; part of the key of token files.
_CSV_VERSION = 2


def reader_of(path: Path) -> Reader | None:
    """The reader for a file of this name; None if its kind is not supported."""
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)


def checker_of(path: Path) -> Reader | None:
    """A reader that yields all errors of a file, and no texts where that is cheaper."""
    reader = reader_of(path)
    return _CHECKERS.get(reader, reader) if reader else None


def first_record(path: Path) -> Mapping[str, Any] | None:
    """The first record of a file of records that is not null; None if it has none, or is no such file.

    What cannot be read is for a reader to report.
    """
    import pyarrow

    try:
        with path.open("rb") as file:
            reader = reader_of(path)
            found = _RECORDS.get(reader) if reader else None
            return next(filter(None, found(file, path.name) if found else records_in_table(file)), None)
    except (OSError, UnreadableError, ValueError, RecursionError, pyarrow.ArrowException):
        return None


def holds_records(path: Path) -> bool:
    """Whether a file of this name is a list of records that may be conversations."""
    return reader_of(path) in (*_RECORDS, read_parquet)


def is_other_json(path: Path, field: str) -> bool:
    """Whether a file is JSON but holds no records, as `is_json_of_records`."""
    if reader_of(path) is not read_json:
        return False
    try:
        with path.open("rb") as file:
            return not is_json_of_records(file, path.name, field)
    except OSError:
        return False  # for a reader to report


def text_of_document(path: Path) -> str | None:
    """The text of a web page, a compressed text or a converted document; None for a file that is its own text.

    Raises:
        UnreadableError: the file cannot be read, or needs a package that is not installed.
        OSError: it cannot be opened.
    """
    reader = reader_of(path)
    is_compressed = reader is read_text and path.suffix.lower() in COMPRESSIONS
    if reader is None or not (reader in (read_html, read_document) or is_compressed):
        return None
    if package := missing_package(path):
        raise UnreadableError("package", path.name, f"needs the package {package}", f"run: {INSTALL}")
    texts: list[str] = []
    with path.open("rb") as file:
        for _, text in reader(file, path.name, "text"):
            if isinstance(text, UnreadableError):
                raise text
            texts.append(text)
    return "\n".join(texts)


def missing_package(path: Path) -> str | None:
    """The package that a file of this name cannot be read without, if it is not installed."""
    kind = kind_of(path.name)
    return None if kind is None or is_installed(kind.module) else kind.package


def is_read_whole(path: Path) -> bool:
    """Whether the beginning of a file tells nothing of it."""
    return reader_of(path) in (read_document, read_json, read_parquet)


def version_of(path: Path) -> list[str]:
    """What identifies the reader of a file; nothing for the kinds that have always been read alike."""
    if kind := kind_of(path.name):
        return [f"{path.suffix.lower()} {kind.version}"]
    return [f"table {_CSV_VERSION}"] if reader_of(path) is read_csv else []

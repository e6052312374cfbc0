"""Readers: one file in, its texts out, lazily and with the line each comes from.

Every reader takes the open file, its path and the name of the field that holds the text, and yields `(line, text)`:
the line or row counted from 1, or 0 where the file is one text. What cannot be read raises a DataError that names file
and line.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from skipwise.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Reader = Callable[[BinaryIO, Path, str], Iterator[tuple[int, str]]]

_COMPRESSIONS = ("", ".gz", ".zst")
# Bytes of a Parquet column that are read at a time.
_PARQUET_BUFFER = 1 << 20


def reader_of(path: Path) -> Reader | None:
    """The reader for a file of this name, None when its kind is not one that skipwise reads."""
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one record.

    Args:
        record: a JSON object or a table row.
        field: name of the entry that holds the text.
        where: file and line, for the message.

    Raises:
        DataError: when the field is missing or holds anything but text.
    """
    if field not in record:
        there = ", ".join(sorted(record)) or "none"
        raise DataError(
            f"{where} has no field {field!r}; its fields are {there}: name the one with the text as the field"
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where} has a {type(text).__name__} in field {field!r}; it must be text: name another field")
    return text


def _read_lines(file: BinaryIO, path: Path, field: str) -> Iterator[tuple[int, str]]:
    """JSON lines, plain or compressed; blank lines are passed over."""
    found = False
    for number, line in enumerate(_raw_lines(file, path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(_decoded(line, where))
        except (ValueError, RecursionError) as error:
            # Lists in lists in lists, and whole numbers of thousands of digits, have no message of JSON's own.
            known = isinstance(error, json.JSONDecodeError)
            reason = f"{error.msg}, column {error.colno}" if known else "nested too deep, or a number too long"
            raise DataError(f"{where} is not JSON that can be read ({reason}); mend or remove the line") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{where} holds a {type(record).__name__}; each line must be one JSON object with the text in it"
            )
        found = True
        text = text_of(record, field, where)
        # JSON can spell half of a surrogate pair, which is no character and cannot be encoded.
        if b"\\ud" in line.lower() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(
                f"{where} has a lone surrogate (\\ud800 to \\udfff), which is not text; mend or remove the line"
            )
        yield number, text
    if not found:
        raise DataError(f"{path} is empty; it must hold one JSON object a line: remove it or fetch it again")


def open_parquet(file: BinaryIO) -> "ParquetFile":
    """A Parquet file whose batches come out of one page of a column at a time.

    As it is opened by default, and by a scan of a data set, a whole row group is in memory while its rows are read.

    Raises:
        pyarrow.ArrowException: it is not one.
    """
    from pyarrow import parquet

    return parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)


def _read_parquet(file: BinaryIO, path: Path, field: str) -> Iterator[tuple[int, str]]:
    """Rows of a Parquet table, of which only the text column is read."""
    import pyarrow

    try:
        table = open_parquet(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file ({_one_line(error)}); remove it or fetch it again") from None
    with table:
        if table.metadata.num_rows == 0:
            raise DataError(f"{path} is empty; it must hold at least one row: remove it or fetch it again")
        names = table.schema_arrow.names
        text_of(dict.fromkeys(names, ""), field, str(path))
        row = 0
        try:
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield row, text_of({field: text}, field, f"{path}:{row}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} breaks off after row {row} ({_one_line(error)}); fetch it again") from None


def _read_text(file: BinaryIO, path: Path, field: str) -> Iterator[tuple[int, str]]:
    """A file that is one text."""
    lines = (_decoded(line, f"{path}:{number}") for number, line in enumerate(_raw_lines(file, path), start=1))
    yield 0, "".join(lines).replace("\r\n", "\n")


def _read_html(file: BinaryIO, path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The readable text of a web page."""
    for line, page in _read_text(file, path, field):
        parser = _PageText()
        parser.feed(page)
        parser.close()
        yield line, parser.text()


def _raw_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstd file as bytes; a compressed file that breaks off is an error, not a short file."""
    number = 0
    try:
        with _decompressed(file, path) as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007 - read below, when the stream fails
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read past line {number} ({_one_line(error)}); fetch it again") from None


def _decompressed(file: BinaryIO, path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(file)  # type: ignore[return-value]
        case ".zst":
            import pyarrow

            # The zstandard package ends silently at a truncated frame; Arrow's stream says so.
            return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), 1 << 20)  # type: ignore[arg-type]
        case _:
            return file


def _decoded(line: bytes, where: str) -> str:
    try:
        # A byte-order mark is no part of the text.
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x}); convert it"
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _PageText(HTMLParser):
    """Collects what a reader of the page would read: no scripts, styles or navigation, one line a block."""

    _HIDDEN = frozenset({"head", "script", "style", "nav", "template", "noscript", "svg"})
    _INLINE = frozenset(
        {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins", "kbd"}
        | {"mark", "q", "ruby", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden: list[str] = []
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # HTML lets a page leave out </head>
            self._hidden.clear()
        elif tag in self._HIDDEN:
            self._hidden.append(tag)
        self._break(tag)
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        self._preformatted -= tag == "pre" and self._preformatted > 0
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._preformatted:
            # Spaces and line ends inside a block are one space, unless the block has just begun.
            data = (" " if data[:1].isspace() else "") + " ".join(data.split()) + (" " if data[-1:].isspace() else "")
            data = data.lstrip() if not self._parts or self._parts[-1][-1:].isspace() else data
        if data:
            self._parts.append(data)

    def _break(self, tag: str) -> None:
        if tag not in self._INLINE and self._parts and not self._parts[-1].endswith("\n"):
            self._parts.append("\n")

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in "".join(self._parts).strip().split("\n"))


_KINDS: dict[str, Reader] = {
    ".jsonl": _read_lines,
    ".txt": _read_text,
    ".md": _read_text,
    ".rst": _read_text,
    ".py": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
}
READERS: dict[str, Reader] = {
    **{suffix + compression: reader for suffix, reader in _KINDS.items() for compression in _COMPRESSIONS},
    ".parquet": _read_parquet,
}
ALLOWED = ".jsonl, .txt, .md, .rst, .py and .html, plain or as .gz or .zst, and .parquet"

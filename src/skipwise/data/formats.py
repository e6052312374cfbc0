"""Readers: lazily read the texts of one file, each with its line.

Every reader takes the open file, its name for messages and the name of the text field. It yields `(line, text)`: the
line or row counted from 1, or 0 if the file is one text. For an unreadable text it yields the error instead, which
names file and line, and continues after it if it can. A null or empty row is an empty text.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from skipwise.data.conversations import (
    BESIDE,
    NAMES,
    ConversationError,
    conversation_of,
    fields_of,
    is_conversation,
)
from skipwise.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_COMPRESSIONS = ("", ".gz", ".zst")
# Bytes of a Parquet column read at a time.
_PARQUET_BUFFER = 1 << 20

FAULTS = {
    "missing": "no documents there",
    "kind": "of an unsupported kind",
    "closed": "cannot be opened",
    "broken": "damaged or incomplete",
    "empty": "without records",
    "encoding": "not UTF-8",
    "record": "not a valid record",
    "field": "no text in the field",
    "conversation": "conversations that cannot be used",
}
"""Kinds of faults of files and records, with their descriptions, in the order of reports."""


class UnreadableError(DataError):
    """A file or a record cannot be read.

    Args:
        kind: a key of `FAULTS`.
        where: the file, with the line or row if it has several.
        reason: what is wrong; a predicate whose subject is `where`.
        cure: what to do.
    """

    def __init__(self, kind: str, where: str, reason: str, cure: str) -> None:
        super().__init__(f"{where} {reason}; {cure}")
        self.kind, self.where, self.reason, self._cure = kind, where, reason, cure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.where, self.reason, self._cure)


Found = tuple[int, str | UnreadableError]
Reader = Callable[..., Iterator[Found]]
"""`reader(file, name, field, cut=False)`; with `cut`, the file is a truncated sample, and its end is not an error."""


def reader_of(path: Path) -> Reader | None:
    """The reader for a file of this name; None if its kind is not supported."""
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)


def checker_of(path: Path) -> Reader | None:
    """A reader that yields all errors of a file, and no texts where that is cheaper."""
    reader = reader_of(path)
    return _check_text if reader in (_read_text, _read_html) else reader


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one record; empty if the record or the field is null or empty.

    Args:
        record: a JSON object or a table row.
        field: name of the text field; `a.b` is field `b` of field `a`, unless a field is named `a.b`.
        where: file and line, for the message.

    Raises:
        UnreadableError: the field is missing, or its value is not text.
    """
    if is_conversation(field):
        try:
            return conversation_of(record, field)
        except ConversationError as error:
            raise UnreadableError("conversation", where, str(error), "fix or remove it") from None
    text: Any = record
    path = field
    while path:
        if not text and (text is None or isinstance(text, Mapping)):
            return ""
        if not isinstance(text, Mapping):
            break
        if path in text:
            text, path = text[path], ""
        else:
            name, _, path = path.partition(".")
            if not path or name not in text:
                raise _no_field(record, field, where)
            text = text[name]
    if path or (text is not None and not isinstance(text, str)):
        held = field.removesuffix(f".{path}") if path else field
        raise UnreadableError(
            "field",
            where,
            f"has a {type(text).__name__} in field {held!r}",
            "it must be text: name another field",
        )
    return text or ""


def columns_of(schema: "pyarrow.Schema", field: str, where: str) -> list[str]:
    """The names of the table columns that are read: that of the text, or those of a conversation.

    Raises:
        UnreadableError: as `column_of`; or there is no column of conversations.
    """
    if not is_conversation(field):
        return [column_of(schema, field, where)]
    found = [name for name in fields_of(field) if name in schema.names]
    if not found:
        there = ", ".join(sorted(schema.names)) or "none"
        raise UnreadableError(
            "conversation", where, f"has no column of conversations; its columns are {there}", "name it by data.field"
        )
    return found + [name for name in BESIDE if name in schema.names]


def column_of(schema: "pyarrow.Schema", field: str, where: str) -> str:
    """The name of the table column that is the text field or contains it.

    Args:
        schema: of the table.
        field: as in `text_of`.
        where: the file, for the message.

    Raises:
        UnreadableError: there is no such column, or its type is not text.
    """
    import pyarrow

    found: Any = None
    column = field if field in schema.names else field.partition(".")[0]
    if column in schema.names:
        found, path = schema.field(column).type, field[len(column) + 1 :]
        while path and pyarrow.types.is_struct(found):
            names = {found.field(i).name: found.field(i).type for i in range(found.num_fields)}
            name = path if path in names else path.partition(".")[0]
            found, path = names.get(name), path[len(name) + 1 :]
        if path:
            found = None
    if found is None:
        raise _no_field({name: schema.field(name).type for name in schema.names}, field, where)
    kinds = pyarrow.types
    held = found.value_type if kinds.is_dictionary(found) else found
    # A column of only nulls has the null type.
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    if not any(is_text(held) for is_text in texts):
        raise UnreadableError(
            "field", where, f"has a {found} in field {field!r}", "it must be text: name another field"
        )
    return column


def _no_field(record: Mapping[str, Any], field: str, where: str) -> UnreadableError:
    there = ", ".join(sorted(record)) or "none"
    cure = "name the field that holds the text"
    if any(name in record for name in NAMES):
        cure += "; conversations are read with data.format=conversations, and not among texts"
    return UnreadableError("field", where, f"has no field {field!r}; its fields are {there}", cure)


def _read_lines(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """JSON lines, plain or compressed; blank lines are skipped."""
    found = cut
    try:
        for number, line in enumerate(_raw_lines(file, name, cut), start=1):
            if not line.strip():
                continue
            found = True
            try:
                text: str | UnreadableError = _text_of_line(line, field, f"{name}:{number}")
            except UnreadableError as error:
                text = error
            yield number, text
    except UnreadableError as error:
        yield 0, error
        return
    if not found:
        cure = "it must hold one JSON object per line: remove it or fetch it again"
        yield 0, UnreadableError("empty", name, "is empty", cure)


def _text_of_line(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(_decoded(line, where))
    except (ValueError, RecursionError) as error:
        # For deep nesting and integers of thousands of digits, json raises other errors.
        known = isinstance(error, json.JSONDecodeError)
        reason = f"{error.msg}, column {error.colno}" if known else "nested too deep, or a number too long"
        raise UnreadableError("record", where, f"is not JSON ({reason})", "fix or remove the line") from None
    if record is None:
        return ""
    if not isinstance(record, dict):
        raise UnreadableError(
            "record",
            where,
            f"holds a {type(record).__name__}",
            "each line must be one JSON object with the text in it",
        )
    text = text_of(record, field, where)
    # JSON can escape half of a surrogate pair, which is not a character and cannot be encoded.
    if b"\\ud" in line.lower() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnreadableError(
            "encoding",
            where,
            "has a lone surrogate (\\ud800 to \\udfff), which is not text",
            "fix or remove the line",
        )
    return text


def open_parquet(file: BinaryIO) -> "ParquetFile":
    """Opens a Parquet file so that only one page of a column is in memory at a time.

    With pyarrow's defaults, and in a scan of a data set, a whole row group is in memory while its rows are read.

    Raises:
        pyarrow.ArrowException: the file is not a Parquet file.
    """
    from pyarrow import parquet

    return parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)


def rows_of(batch: "pyarrow.RecordBatch", field: str, place: Callable[[int], str]) -> Iterator[str | UnreadableError]:
    """Yields the texts of the rows of a batch lazily; for an unreadable row, its error.

    Args:
        batch: with the column that `column_of` names.
        field: as in `text_of`.
        place: returns the name of the i-th row for messages.
    """
    names = batch.schema.names
    for row in range(len(batch)):
        try:
            yield text_of({name: batch.column(name)[row].as_py() for name in names}, field, place(row))
        except UnicodeDecodeError as error:
            yield UnreadableError("encoding", place(row), f"is not UTF-8 (byte {error.start + 1})", "convert it")
        except UnreadableError as error:
            yield error


def _read_parquet(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """Rows of a Parquet table; reads only the columns of the text or conversation."""
    import pyarrow

    row = 0
    try:
        table = checked_parquet(file, name, field)
    except UnreadableError as error:
        yield 0, error
        return
    try:
        with table:
            columns = columns_of(table.schema_arrow, field, name)
            # If a file has a column `a.b` and a column `a` with a field `b`, this reads both; `select` keeps one.
            wanted = columns if is_conversation(field) else [field]
            for batch in () if cut else table.iter_batches(batch_size=256, columns=wanted):
                kept = batch.select(columns)
                begin = row
                for text in rows_of(kept, field, lambda i, begin=begin: f"{name}:{begin + i + 1}"):
                    row += 1
                    yield row, text
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"breaks off after row {row} ({_one_line(error)})"
        yield row + 1, UnreadableError("broken", name, reason, "fetch it again")


def checked_parquet(file: BinaryIO, name: str, field: str) -> "ParquetFile":
    """Opens a Parquet file and checks that it has rows and the text field.

    Raises:
        UnreadableError: the file is not a Parquet file, has no rows, or has no such text field.
    """
    import pyarrow

    try:
        table = open_parquet(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableError(
            "broken", name, f"is not a Parquet file ({_one_line(error)})", "remove it or fetch it again"
        ) from None
    if table.metadata.num_rows == 0:
        raise UnreadableError("empty", name, "is empty", "it must hold at least one row: remove it or fetch it again")
    columns_of(table.schema_arrow, field, name)
    return table


def first_record(path: Path) -> Mapping[str, Any] | None:
    """The first record of a file of records that is not null; None if it has none, or is no such file.

    What cannot be read is for a reader to report.
    """
    try:
        with path.open("rb") as file:
            return next(filter(None, _records(file, path)), None)
    except (OSError, UnreadableError, ValueError, RecursionError):
        return None


def _records(file: BinaryIO, path: Path) -> Iterator[Mapping[str, Any] | None]:
    reader = reader_of(path)
    if reader is _read_parquet:
        import pyarrow

        try:
            with open_parquet(file) as table:
                for batch in table.iter_batches(batch_size=1):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException:
            return
    elif reader is _read_lines:
        for line in _raw_lines(file, path.name, cut=False):
            record = json.loads(_decoded(line, path.name)) if line.strip() else None
            yield record if isinstance(record, dict) else None


def holds_records(path: Path) -> bool:
    """Whether a file of this name is a list of records, and not one text."""
    return reader_of(path) in (_read_lines, _read_parquet)


def _read_text(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """A file that is a single text."""
    try:
        lines = (_decoded(line, f"{name}:{number}") for number, line in enumerate(_raw_lines(file, name, cut), start=1))
        text: str | UnreadableError = "".join(lines).replace("\r\n", "\n")
    except UnreadableError as error:
        text = error
    yield 0, text


def _check_text(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """Yields the error of a text file, if any, without holding the whole file in memory."""
    try:
        for number, line in enumerate(_raw_lines(file, name, cut), start=1):
            _decoded(line, f"{name}:{number}")
    except UnreadableError as error:
        yield 0, error


def _read_html(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """The readable text of a web page."""
    for line, page in _read_text(file, name, field, cut):
        if isinstance(page, UnreadableError):
            yield line, page
            continue
        parser = _PageText()
        parser.feed(page)
        parser.close()
        yield line, parser.text()


def _raw_lines(file: BinaryIO, name: str, cut: bool) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstd file as bytes; a truncated compressed file is an error, not a short file.

    With `cut`, the last line is dropped, since it may be incomplete.
    """
    number = 0
    held: bytes | None = None
    try:
        with _decompressed(file, name, cut) as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007 - read below, when the stream fails
                if not cut:
                    yield line
                    continue
                if held is not None:
                    yield held
                held = line
    except (OSError, EOFError, zlib.error) as error:
        # A truncated gzip file ends in an EOFError; for zstd, Arrow raises only a general OSError.
        if cut and (isinstance(error, EOFError) or name.lower().endswith(".zst")):
            return
        raise UnreadableError(
            "broken", name, f"cannot be read past line {number} ({_one_line(error)})", "fetch it again"
        ) from None


def _decompressed(file: BinaryIO, name: str, cut: bool) -> BinaryIO:
    match Path(name).suffix.lower():
        case ".gz":
            return gzip.open(file)  # type: ignore[return-value]
        case ".zst":
            import pyarrow

            # The zstandard package ends silently at a truncated frame. Arrow's stream raises, but loses the data of the
            # read in which it does, so a sample is read in small steps.
            at_a_time = 1 << 12 if cut else 1 << 20
            return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), at_a_time)  # type: ignore[arg-type]
        case _:
            return file


def _decoded(line: bytes, where: str) -> str:
    try:
        # A byte-order mark is not part of the text.
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            "encoding",
            where,
            f"is not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x})",
            "convert it",
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _PageText(HTMLParser):
    """Collects the readable text of a page, one line per block, without scripts, styles and navigation."""

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
        if tag == "body":  # </head> is optional in HTML
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
            # White space inside a block collapses to one space, and to none at its beginning.
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

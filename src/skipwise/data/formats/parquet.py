"""Parquet tables."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from skipwise.data.conversations import BESIDE, fields_of, is_conversation
from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError, one_line
from skipwise.data.formats.records import no_field, text_of

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

# Bytes of a column read at a time.
_PARQUET_BUFFER = 1 << 20


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
        raise no_field({name: schema.field(name).type for name in schema.names}, field, where)
    kinds = pyarrow.types
    held = found.value_type if kinds.is_dictionary(found) else found
    # A column of only nulls has the null type.
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    if not any(is_text(held) for is_text in texts):
        raise UnreadableError(
            "field", where, f"has a {found} in field {field!r}", "it must be text: name another field"
        )
    return column


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


def records_in_table(file: BinaryIO) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet table, read one by one."""
    with open_parquet(file) as table:
        for batch in table.iter_batches(batch_size=1):
            yield from batch.to_pylist()


def read_parquet(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """Rows of a Parquet table; reads only the columns of the text or conversation. Its texts are always UTF-8."""
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
            wanted = columns if is_conversation(field) else [field]
            # If a file has a column `a.b` and a column `a` with a field `b`, this reads both; `select` keeps one.
            for batch in () if cut else table.iter_batches(batch_size=256, columns=wanted):
                kept = batch.select(columns)
                begin = row
                for text in rows_of(kept, field, lambda i, begin=begin: f"{name}:{begin + i + 1}"):
                    row += 1
                    yield row, text
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"breaks off after row {row} ({one_line(error)})"
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
            "broken", name, f"is not a Parquet file ({one_line(error)})", "remove it or fetch it again"
        ) from None
    if table.metadata.num_rows == 0:
        raise UnreadableError("empty", name, "is empty", "it must hold at least one row: remove it or fetch it again")
    columns_of(table.schema_arrow, field, name)
    return table

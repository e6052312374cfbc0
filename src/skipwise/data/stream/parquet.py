"""Parquet shards, read one page at a time, whatever the size of their row groups."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.data.formats import UnreadableError, column_of, open_parquet, rows_of

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

# Rows decoded at a time.
_BATCH_ROWS = 16
# Common writers check after this many rows whether a page is full.
_PAGE_ROWS = 1024
# A shard with larger pages (bytes) is not kept open while others are read.
_KEPT_OPEN = 8 << 20


class _Shard(NamedTuple):
    """A file, or one of its row groups."""

    file: str
    row_group: int | None = None

    def row_groups(self, metadata: "FileMetaData") -> list[int]:
        """Indices of its row groups in the file."""
        return list(range(metadata.num_row_groups)) if self.row_group is None else [self.row_group]


class ParquetShards:
    """Parquet files as shards of texts.

    Args:
        files: paths, or URLs for fsspec.
        field: column that holds the text.
    """

    def __init__(self, files: Sequence[str], field: str) -> None:
        self._shards, self._field = [_Shard(file) for file in files], field
        self._page_bytes: dict[int, float] = {}

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def reshard(self) -> "ParquetShards":
        """The same rows, with one shard per row group."""
        finer = ParquetShards([], self._field)
        for shard in self._shards:
            with _opened(shard.file) as file, open_parquet(file) as table:
                finer._shards += [_Shard(shard.file, group) for group in shard.row_groups(table.metadata)]
        return finer

    def texts(self, shard: int, first: int, where: str) -> Iterator[str | UnreadableError]:
        """The texts of a shard from one of its rows on.

        Args:
            shard: index of the shard.
            first: row to begin at, counted from 0. Row groups before it are skipped unread; rows before it in its own
                row group are decoded and dropped.
            where: name of the shard, for messages.

        Yields:
            Texts; for an unreadable one, the error with its row number.

        Raises:
            DataError: the shard has no such field.
        """
        row = first
        with _opened(self._shards[shard].file) as file, open_parquet(file) as table:
            groups = self._shards[shard].row_groups(table.metadata)
            column = column_of(table.schema_arrow, self._field, where)
            pages = [_page_bytes(table.metadata, group, self._field) for group in groups]
            self._page_bytes[shard] = max(pages, default=0)
            while groups and first >= (rows := table.metadata.row_group(groups[0]).num_rows):
                first -= rows
                del groups[0]
            # In this thread: a thread pool would decode ahead.
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[self._field], use_threads=False):
                wanted, begin = batch.select([column]).slice(min(first, len(batch))), row
                yield from rows_of(wanted, self._field, lambda i, begin=begin: f"row {begin + i + 1} of {where}")
                row += len(wanted)
                first = max(0, first - len(batch))

    def is_heavy(self, shard: int) -> bool:
        """Whether an opened shard takes too much memory to stay open."""
        return self._page_bytes.get(shard, 0) > _KEPT_OPEN


def _page_bytes(metadata: "FileMetaData", group: int, field: str) -> float:
    """Estimated bytes of a page of a column, from the mean row size of its row group: exact sizes are in the pages."""
    found = metadata.row_group(group)
    columns = (found.column(index) for index in range(found.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
    return size * min(_PAGE_ROWS / max(found.num_rows, 1), 1)


def _opened(file: str) -> Any:
    """Opens a local file, or a remote one that is downloaded as it is read."""
    if "://" in file:
        import fsspec

        remote: Any = fsspec.open(file, "rb")
        return remote.open()
    import pyarrow

    return pyarrow.OSFile(file)

"""Shards of documents: Parquet files, and hub data sets as the `datasets` library finds and reads them."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.data.documents import HubDataset, LocalFiles, Sources, look_through, printable
from skipwise.data.formats import UnreadableError, checked_parquet, text_of
from skipwise.data.stream.parquet import ParquetShards
from skipwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


class Shards:
    """The shards of a source.

    Args:
        source: Parquet files, a hub data set, or several of these, as in `documents.find_sources`; or inspected
            `Sources`, whose own `field` and `skip_unreadable` then apply.
        field: name of the text field.
        at_least: desired number of shards; if there are fewer files, each row group becomes a shard.
        skip_unreadable: skips unreadable files.

    Attributes:
        fingerprint: hash of everything that the documents depend on.
        skip_unreadable: whether unreadable files and rows are skipped.

    Raises:
        DataError: the source is of another kind, or cannot be read.
    """

    def __init__(
        self, source: str | Sequence[str] | Sources, field: str, at_least: int = 1, *, skip_unreadable: bool = False
    ) -> None:
        looked = look_through(source, field=field, skip_unreadable=skip_unreadable)
        field, self.skip_unreadable = looked.field, looked.skip_unreadable
        sources = require_streamable(looked)
        self._parts = [_opened(found, field, self.skip_unreadable) for found in sources]
        if sum(part.num_shards for part in self._parts) < at_least:
            self._parts = [part.reshard() for part in self._parts]
        self._ends = list(accumulate(part.num_shards for part in self._parts))
        if not len(self):
            raise DataError("no shard of the documents can be read; fix some, or give others")
        identity = [field, len(self), looked.identities]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def texts(self, shard: int, first: int = 0) -> Iterator[str | UnreadableError]:
        """The texts of a shard in its own order, from row `first` on; for an unreadable one, its error.

        Raises:
            DataError: the shard breaks off; the message names the row.
        """
        part, nth = self._part_of(shard)
        row = first
        try:
            for text in part.texts(nth, first, f"shard {shard}"):
                yield text
                row += 1
        except DataError:
            raise
        except Exception as error:
            # Truncated files, vanished mounts and network errors each raise exceptions of their own.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"shard {shard} of the documents breaks off after row {row} ({reason}); fix it, then --resume the run"
            ) from None

    def blocks(self, shard: int, first: int, rows: int) -> Iterator[list[str | UnreadableError]]:
        """The texts of a shard in blocks of `rows`; a shard that takes much memory is closed between blocks.

        Raises:
            DataError: as `texts`.
        """
        texts = self.texts(shard, first)
        while block := list(islice(texts, rows)):
            first += len(block)
            part, nth = self._part_of(shard)
            if part.is_heavy(nth):
                texts = self.texts(shard, first)
            yield block

    def _part_of(self, shard: int) -> "tuple[ParquetShards | _LibraryShards, int]":
        """The source of a shard, and the shard's index in it."""
        nth = bisect_right(self._ends, shard)
        return self._parts[nth], shard - self._ends[nth] + self._parts[nth].num_shards


class _LibraryShards:
    """Shards of hub data sets that are not Parquet files, read by the `datasets` library."""

    def __init__(self, rows: "IterableDataset", field: str) -> None:
        self._rows, self._field = rows, field

    @property
    def num_shards(self) -> int:
        return self._rows.num_shards

    def reshard(self) -> "_LibraryShards":
        return _LibraryShards(self._rows.reshard(), self._field)

    def texts(self, shard: int, first: int, where: str) -> Iterator[str | UnreadableError]:
        own = self._rows.shard(self.num_shards, shard).skip(first)
        for row, record in enumerate(own, start=first + 1):
            try:
                text: str | UnreadableError = text_of(record, self._field, f"row {row} of {where}")
            except UnreadableError as error:
                text = error
            yield text

    def is_heavy(self, shard: int) -> bool:
        return False


def require_streamable(looked: Sources) -> list[LocalFiles | HubDataset]:
    """The sources, if all can be streamed.

    Raises:
        DataError: a source is neither Parquet files nor a hub data set, or holds conversations.
    """
    if looked.are_conversations:
        raise DataError("conversations cannot be streamed; leave data.streaming off", page="unusable-conversations")
    for found in looked.sources:
        if isinstance(found, LocalFiles):
            others = sorted({file.path.suffix for file in found.files if file.path.suffix.lower() != ".parquet"})
            if others:
                raise DataError(
                    f"data.streaming reads Parquet files and hub data sets, and {printable(found.files[0].path)!r} and "
                    f"those beside it are {', '.join(others)}; write them as Parquet, or leave data.streaming off"
                )
    return looked.sources  # pyright: ignore[reportReturnType]


def check_streaming(looked: Sources, workers: int) -> None:
    """Raises before any work if the documents cannot be streamed.

    Raises:
        DataError: documents of a kind that cannot be streamed.
        ConfigError: there are loader processes; their places in the stream would not reach the checkpoints.
    """
    require_streamable(looked)
    if workers:
        raise ConfigError(
            f"setting 'training.dataloader_num_workers' is {workers}; a stream tokenizes ahead by itself: leave it at 0"
        )


def _opened(found: LocalFiles | HubDataset, field: str, skip_unreadable: bool) -> ParquetShards | _LibraryShards:
    """The shards of a source; a hub data set of Parquet files is read as these files."""
    if isinstance(found, LocalFiles):
        paths = [file.path for file in found.files if not skip_unreadable or _can_be_read(file.path, field)]
        return ParquetShards([str(path.resolve()) for path in paths], field)
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder: Any = datasets.load_dataset_builder(found.name, found.config)
        files = (builder.config.data_files or {}).get(found.split)
        if isinstance(builder, Parquet) and files:
            return ParquetShards(list(files), field)
        rows: Any = builder.as_streaming_dataset(found.split)
        column = field if field in (rows.column_names or [field]) else field.partition(".")[0]
        return _LibraryShards(rows.select_columns([column]), field)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"documents at {found.name!r} cannot be streamed: {reason}") from None


def _can_be_read(path: Path, field: str) -> bool:
    try:
        with path.open("rb") as file, checked_parquet(file, printable(path), field):
            return True
    except (OSError, UnreadableError):
        return False

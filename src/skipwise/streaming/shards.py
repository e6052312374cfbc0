"""Shards of documents: Parquet files, and data sets of the hub as the `datasets` library finds and reads them."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from skipwise.config import DataConfig
from skipwise.documents import HubDataset, LocalFiles, find_sources
from skipwise.errors import ConfigError, DataError
from skipwise.readers import text_of
from skipwise.streaming.parquet import ParquetShards

if TYPE_CHECKING:
    from datasets import IterableDataset


class Shards:
    """The shards of a source.

    Args:
        source: as in `documents.find_sources`: Parquet files, or a hub data set, or several such.
        field: entry that holds the text.
        at_least: so many shards are wanted; where files are fewer, their row groups count as shards.

    Attributes:
        fingerprint: hash of what the documents depend on.

    Raises:
        DataError: the source is of another kind, or cannot be read.
    """

    def __init__(self, source: str | Sequence[str], field: str, at_least: int = 1) -> None:
        sources = require_streamable(source)
        self._field = field
        self._parts = [_opened(found, field) for found in sources]
        if sum(part.num_shards for part in self._parts) < at_least:
            self._parts = [part.reshard() for part in self._parts]
        self._ends = list(accumulate(part.num_shards for part in self._parts))
        identity = [field, len(self), [found.identity() for found in sources]]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def texts(self, shard: int, first: int = 0) -> Iterator[str]:
        """The texts of a shard, in its own order, from one of them on.

        Raises:
            DataError: a row that cannot be read, with shard and row.
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
            # A file that breaks off, a mount that vanishes, a network: each has exceptions of its own.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"shard {shard} of the documents breaks off after row {row} ({reason}); mend it and go on with --resume"
            ) from None

    def blocks(self, shard: int, first: int, rows: int) -> Iterator[list[str]]:
        """The texts of a shard by so many at a time; a shard that takes much memory is closed in between.

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
        """The source that a shard is of, and its number there."""
        nth = bisect_right(self._ends, shard)
        return self._parts[nth], shard - self._ends[nth] + self._parts[nth].num_shards


class _LibraryShards:
    """Shards of other files than Parquet, as the `datasets` library reads them."""

    def __init__(self, rows: "IterableDataset", field: str) -> None:
        self._rows, self._field = rows, field

    @property
    def num_shards(self) -> int:
        return self._rows.num_shards

    def reshard(self) -> "_LibraryShards":
        return _LibraryShards(self._rows.reshard(), self._field)

    def texts(self, shard: int, first: int, where: str) -> Iterator[str]:
        own = self._rows.shard(self.num_shards, shard).skip(first)
        for row, record in enumerate(own, start=first + 1):
            yield text_of(record, self._field, f"row {row} of {where}")

    def is_heavy(self, shard: int) -> bool:
        return False


def require_streamable(source: str | Sequence[str]) -> list[LocalFiles | HubDataset]:
    """The sources that a stream reads.

    Raises:
        DataError: one of them is neither of Parquet files nor a hub data set.
    """
    sources = find_sources(source)
    for found in sources:
        if isinstance(found, LocalFiles):
            others = sorted({file.path.suffix for file in found.files if file.path.suffix.lower() != ".parquet"})
            if others:
                raise DataError(
                    f"data.streaming reads Parquet files and hub data sets, and {source!r} holds {', '.join(others)}; "
                    "write them as Parquet, or leave data.streaming off"
                )
    return sources  # pyright: ignore[reportReturnType]


def check_streaming(data: DataConfig, workers: int) -> None:
    """Finds what cannot be streamed before any work.

    Args:
        data: of the run.
        workers: processes that are to load its items.

    Raises:
        DataError: documents of another kind.
        ConfigError: loaders in processes of their own, whose places no checkpoint would know.
    """
    require_streamable(data.source)
    if workers:
        raise ConfigError(
            f"setting 'training.dataloader_num_workers' is {workers}; a stream tokenizes ahead by itself: leave it at 0"
        )


def _opened(found: LocalFiles | HubDataset, field: str) -> ParquetShards | _LibraryShards:
    """The shards of a source; of a hub data set of Parquet files these files."""
    if isinstance(found, LocalFiles):
        files = [str(file.path.resolve()) for file in found.files]
        _check_field(files[0], field)
        return ParquetShards(files, field)
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder: Any = datasets.load_dataset_builder(found.name, found.config)
        files = (builder.config.data_files or {}).get(found.split)
        if isinstance(builder, Parquet) and files:
            return ParquetShards(list(files), field)
        rows: Any = builder.as_streaming_dataset(found.split)
        return _LibraryShards(rows.select_columns([field]), field)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"documents at {found.name!r} cannot be streamed: {reason}") from None


def _check_field(file: str, field: str) -> None:
    """Refuses a file without the column, by its schema alone."""
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file ({' '.join(str(error).split())}); fetch it again") from None
    text_of(dict.fromkeys(names, ""), field, file)

"""Shards of documents, as the `datasets` library reads them: Parquet files and data sets of the hub."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from skipwise.config import DataConfig
from skipwise.documents import HubDataset, LocalFiles, find_sources
from skipwise.errors import ConfigError, DataError
from skipwise.readers import text_of

if TYPE_CHECKING:
    from datasets import IterableDataset

# Rows that a reader holds: each lane has one.
_READ_AT_ONCE = 64


class Shards:
    """The shards of a source, read by the `datasets` library.

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
        nth = bisect_right(self._ends, shard)
        part, row = self._parts[nth], first
        own = part.shard(part.num_shards, shard - self._ends[nth] + part.num_shards)
        try:
            for row, record in enumerate(own.skip(first), start=first):
                yield text_of(record, self._field, f"row {row + 1} of shard {shard}")
        except DataError:
            raise
        except Exception as error:
            # A file that breaks off, a mount that vanishes, a network: each has exceptions of its own.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"shard {shard} of the documents breaks off after row {row} ({reason}); mend it and go on with --resume"
            ) from None


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


def _opened(found: LocalFiles | HubDataset, field: str) -> "IterableDataset":
    """A source as the `datasets` library streams it, its text column alone."""
    import datasets

    if isinstance(found, HubDataset):
        name, arguments = found.name, {"name": found.config, "split": found.split}
    else:
        files = [str(file.path.resolve()) for file in found.files]
        name, arguments = (
            "parquet",
            {"data_files": files, "split": "train", "columns": [field], "batch_size": _READ_AT_ONCE},
        )
        _check_field(files[0], field)
    try:
        opened: Any = datasets.load_dataset(name, streaming=True, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"documents at {name!r} cannot be streamed: {reason}") from None
    return opened if name == "parquet" else opened.select_columns([field])


def _check_field(file: str, field: str) -> None:
    """Refuses a file without the column, by its schema alone."""
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file ({' '.join(str(error).split())}); fetch it again") from None
    text_of(dict.fromkeys(names, ""), field, file)

"""Streaming: documents read from their shards as they are trained on, for corpora larger than memory and than disk.

    shards in the epoch's order -> lanes -> blocks, shuffled -> documents of the part, long enough or joined -> tokens

A run has as many lanes as windows in a step, and each step takes one document of each. Every shard of an epoch belongs
to one lane, so a process reads the shards of its own lanes alone; where shards are fewer than lanes, some share one and
each takes its share of the documents. Where a lane stands is three numbers (`Place`), and what comes next is a function
of these: a run that goes on from a checkpoint, on as many processes or others, repeats no document and leaves none out.

shards.py   the shards of local Parquet files, and of hub data sets as the `datasets` library finds them
parquet.py  Parquet files, a page at a time: the library holds whole row groups, and every lane would have one
lanes.py    shuffled by shard and block, tokenized ahead, and where each lane stood before a step
parts.py    some documents that are held out, or trained on
"""

from typing import TYPE_CHECKING

from skipwise.config import DataConfig
from skipwise.data.documents import Sources
from skipwise.data.stream.lanes import DocumentStream, LaneCounts, Place, Streamed
from skipwise.data.stream.parts import first_documents
from skipwise.data.stream.shards import Shards, check_streaming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DocumentStream",
    "LaneCounts",
    "Place",
    "Shards",
    "Streamed",
    "check_streaming",
    "first_documents",
    "open_stream",
]


def open_stream(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    lanes: int,
    seed: int,
    sources: Sources | None = None,
) -> DocumentStream:
    """The stream of a run's documents.

    Args:
        data: where they are read.
        tokenizer: the model's own, a fast one.
        lanes: windows of a step, over all processes.
        seed: source of every order.
        sources: what `documents.look_through` has made of `data`, so that files are not looked at again.

    Raises:
        DataError: they are of a kind that cannot be streamed, or cannot be read.
    """
    return DocumentStream(
        Shards(sources or data.source, data.field, at_least=lanes, skip_unreadable=data.skip_unreadable),
        tokenizer,
        lanes=lanes,
        seed=seed,
        buffer=data.buffer,
        join=data.join,
        held_out_share=data.held_out,
        control_tokens=data.control_tokens,
    )

"""Streaming: documents read from their shards as they are trained on, for corpora larger than memory and than disk.

    shards in the epoch's order -> lanes -> blocks, shuffled -> documents of the part, long enough or joined -> tokens

A run has as many lanes as windows in a step, and each step takes one document of each. Every shard of an epoch belongs
to one lane, so a process reads the shards of its own lanes alone; where shards are fewer than lanes, some share one and
each takes its share of the documents. Where a lane stands is three numbers (`Place`), and what comes next is a function
of these: a run that goes on from a checkpoint, on as many processes or others, repeats no document and leaves none out.

shards.py   the shards of local Parquet files, and of hub data sets as the `datasets` library finds them
parquet.py  Parquet files, a page at a time: the library holds whole row groups, and every lane would have one
lanes.py    shuffled by shard and block, tokenized ahead, and where each lane stood before a step
corpus.py   what a run asks for: its stream, and some documents of either part
"""

from skipwise.data.stream.corpus import StreamedCorpus
from skipwise.data.stream.lanes import DocumentStream, LaneCounts, Place, Streamed
from skipwise.data.stream.shards import Shards, check_streaming

__all__ = [
    "DocumentStream",
    "LaneCounts",
    "Place",
    "Shards",
    "Streamed",
    "StreamedCorpus",
    "check_streaming",
]

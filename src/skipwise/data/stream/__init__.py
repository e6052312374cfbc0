"""Streaming: documents are read from their shards during training, for corpora larger than memory and disk.

    shards in the epoch's order -> lanes -> shuffled blocks -> documents of the split, long enough or joined -> ids

A run has one lane per window of a step, and each step takes one document from each lane. Every shard of an epoch
belongs to one lane, so a process reads only the shards of its own lanes. If there are fewer shards than lanes, lanes
share a shard, and each takes its share of the documents. The place of a lane is three numbers (`Place`) that determine
what comes next: a run resumed from a checkpoint, on any number of processes, repeats no document and skips none.

shards.py   the shards of local Parquet files, and of hub data sets through the `datasets` library
parquet.py  Parquet files, a page at a time: the library would hold a whole row group for every lane
lanes.py    lanes: shuffling by shard and block, tokenizing ahead, and the place of each lane before a step
corpus.py   the interface for a run: its stream, and some documents of either split
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

"""Stores and streams of documents, opened in one call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.config import DataConfig
from skipwise.data.corpus import TokenStore, store_corpus
from skipwise.data.documents import Sources, look_through
from skipwise.data.store import StoreWriter
from skipwise.data.stream import DocumentStream, StreamedCorpus


def build_store(source: Any, tokenizer: Any, **options: Any) -> TokenStore:
    """The documents of a source that a view shows: settings of data and of `StoredCorpus.documents` together."""
    sources = source if isinstance(source, Sources) else None
    paths = source if isinstance(source, (list, tuple)) else [source]
    shown = {name: options.pop(name) for name in ("part", "min_tokens", "held_out_end") if name in options}
    how = {name: options.pop(name) for name in ("cache_dir", "num_workers", "progress") if name in options}
    if "held_out_share" in options:
        options["held_out"] = options.pop("held_out_share")
    data = DataConfig(source="given" if sources else [str(path) for path in paths], **options)
    corpus = store_corpus(data, tokenizer, sources, **how)
    return replace(corpus, held_out_end=shown.pop("held_out_end", None)).documents(**shown)


def streamed(data: DataConfig, tokenizer: Any) -> StreamedCorpus:
    sources = look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    return StreamedCorpus(data=data, sources=sources, tokenizer=tokenizer)


def open_stream(data: DataConfig, tokenizer: Any, *, lanes: int, seed: int = 0) -> DocumentStream:
    return streamed(data, tokenizer).stream(lanes=lanes, seed=seed)


def write_store(
    folder: Path,
    documents: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    splits: Sequence[int] | None = None,
    separator_id: int | None = None,
    sentence_ends: np.ndarray | None = None,
) -> Path:
    """Token files of these token ids, in uint16; each document is a line of `a.jsonl`, and in no split held out."""
    folder.mkdir(exist_ok=True)
    with StoreWriter(folder, np.dtype(np.uint16)) as writer:
        for number, ids in enumerate(documents):
            name = names[number] if names else f"a.jsonl:{number + 1}"
            writer.add(name, np.asarray(ids, np.uint16), int(splits[number]) if splits is not None else (1 << 64) - 1)
        ends = np.zeros(1 << 16, bool) if sentence_ends is None else sentence_ends
        writer.finish(separator_id=separator_id, sentence_ends=ends, tokenizer_fingerprint="none")
    return folder

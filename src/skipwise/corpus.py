"""Corpus: documents tokenized once, in parallel, into a token store that the next start finds ready.

    sources -> documents of the wanted part -> tokens -> long enough, or joined -> store

A store is written to a side folder and renamed when complete, under a lock: a half-written one has another name, and
two processes never write the same one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from skipwise.documents import Document, Source, find_sources, is_held_out
from skipwise.errors import DataError
from skipwise.token_store import FORMAT, Counts, StoreWriter, TokenStore
from skipwise.tokenizing import Encoder, Piece, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Counts", "Part", "TokenStore", "build_store"]

Part = Literal["all", "train", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """What makes documents into a store; the arguments of `build_store` of the same names."""

    field: str
    min_tokens: int
    join: bool
    part: Part
    held_out_share: float


def build_store(
    source: str | Path | Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    field: str = "text",
    min_tokens: int,
    join: bool = False,
    part: Part = "all",
    held_out_share: float = 0.1,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> TokenStore:
    """Opens the token store of a source, tokenizing it first where that has not been done.

    Stores are kept under a key made of what can be had without reading the documents: path, size and time of change of
    every local file (of a hub data set the commit), the tokenizer's serialization, every argument that shapes the
    store, and the version of the format. A second start with the same key opens the store at once.

    Each document is tokenized as `tokenizer(text)` would, so with the opening token that the model saw in pre-training
    where its tokenizer adds one; a closing token is left off, because a window cut from the middle of a text has none.

    Args:
        source: where the documents are, as in `documents.read_documents`.
        tokenizer: the model's own, a fast one.
        field: entry that holds the text in JSON lines, Parquet and hub data sets.
        min_tokens: documents with fewer tokens are dropped, or joined.
        join: joins short documents in reading order, a separator token between, until they have `min_tokens`.
        part: which documents to take: all, those for training, or those held out from it (told apart by
            `Document.identity`, so by text).
        held_out_share: share of documents that is held out.
        cache_dir: where stores are kept, by default `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
        num_workers: threads that tokenize, by default one for each processor.
        progress: shows a progress bar.

    Raises:
        DataError: when documents cannot be read, or none is long enough.
    """
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer is a slow {type(tokenizer).__name__}; load it with use_fast=True")
    encoder = Encoder(tokenizer)
    if join and encoder.separator_id is None:
        raise DataError("join is on and the tokenizer has no end or begin token to put between; set one or join=False")
    recipe = _Recipe(field=field, min_tokens=min_tokens, join=join, part=part, held_out_share=held_out_share)
    sources = find_sources(source)
    key = _key(recipe, encoder, sources)
    root = Path(cache_dir or os.environ.get("SKIPWISE_CACHE") or "~/.cache/skipwise").expanduser()
    folder = root / key
    if store := _complete(folder):
        return store
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):
        if store := _complete(folder):  # another process built it while this one waited
            return store
        # Under the lock, whatever lies here is what an interrupted build left.
        partial = root / f"{key}.partial"
        for remains in (partial, folder):
            shutil.rmtree(remains, ignore_errors=True)
        partial.mkdir()
        try:
            with _progress_bar(sources, progress) as bar:
                _build(partial, sources, recipe, encoder, num_workers or os.cpu_count() or 1, bar)
            if _key(recipe, encoder, sources) != key:
                raise DataError(f"documents at {source!r} changed while being read; start again when they are complete")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return TokenStore(folder)


def _key(recipe: _Recipe, encoder: Encoder, sources: list[Source]) -> str:
    identity = [FORMAT, asdict(recipe), encoder.fingerprint, [found.identity() for found in sources]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _complete(folder: Path) -> TokenStore | None:
    try:
        return TokenStore(folder)
    except DataError:
        return None


class _Tally(Iterator[Document]):
    """Documents of the wanted part, counted while they pass."""

    def __init__(self, sources: list[Source], recipe: _Recipe) -> None:
        self.seen = self.empty = self.other_part = 0
        self.last_name = ""
        self._documents = (document for found in sources for document in found.documents(recipe.field))
        self._recipe = recipe

    def __next__(self) -> Document:
        for document in self._documents:
            self.seen += 1
            self.last_name = document.name
            if not self._is_wanted(document.identity):
                self.other_part += 1
            elif not document.text.strip():
                self.empty += 1
            else:
                return document
        raise StopIteration

    def _is_wanted(self, identity: str) -> bool:
        part = self._recipe.part
        return part == "all" or is_held_out(identity, self._recipe.held_out_share) == (part == "held_out")


class _LongEnough(Iterator[Piece]):
    """Pieces of at least `min_tokens`: long ones as they come, short ones dropped, or joined by a separator.

    Attributes:
        dropped: documents that are in no piece.
        longest: the longest piece that came in.
    """

    def __init__(self, pieces: Iterator[Piece], min_tokens: int, separator_id: int | None) -> None:
        self.dropped = 0
        self.longest = Piece("", np.zeros(0, np.uint16), 0)
        self._pieces, self._min_tokens, self._separator_id = pieces, min_tokens, separator_id
        self._waiting: list[Piece] = []
        self._waiting_tokens = 0

    def __next__(self) -> Piece:
        for piece in self._pieces:
            if len(piece.ids) > len(self.longest.ids):
                self.longest = piece
            if len(piece.ids) >= self._min_tokens:
                return piece
            if self._separator_id is None:
                self.dropped += 1
                continue
            self._waiting.append(piece)
            # Each but the first brings the separator before it.
            self._waiting_tokens += len(piece.ids) + (len(self._waiting) > 1)
            if self._waiting_tokens >= self._min_tokens:
                return self._joined(self._separator_id)
        self.dropped += len(self._waiting)
        self._waiting = []
        raise StopIteration

    def _joined(self, separator_id: int) -> Piece:
        pieces, self._waiting, self._waiting_tokens = self._waiting, [], 0
        separator = np.array([separator_id], dtype=pieces[0].ids.dtype)
        stretches = [pieces[0].ids]
        for piece in pieces[1:]:
            stretches += [separator, piece.ids]
        return Piece(pieces[0].name, np.concatenate(stretches), len(pieces))


def _build(
    folder: Path, sources: list[Source], recipe: _Recipe, encoder: Encoder, workers: int, bar: "tqdm[NoReturn]"
) -> None:
    """Writes a complete store into an empty folder.

    Raises:
        DataError: when no document is long enough.
    """
    tally = _Tally(sources, recipe)
    separator_id = encoder.separator_id if recipe.join else None
    pieces = _LongEnough(tokenized(tally, encoder, workers), recipe.min_tokens, separator_id)
    kept = 0
    with StoreWriter(folder, encoder.dtype) as writer:
        for piece in pieces:
            writer.add(piece.name, piece.ids)
            kept += piece.documents
            bar.update((sum(found.read_bytes() for found in sources) if bar.total else tally.seen) - bar.n)
            bar.set_postfix(documents=writer.documents, tokens=f"{writer.tokens / 1e6:.1f}M", refresh=False)
        if not writer.documents:
            raise DataError(_none_kept(tally, pieces, recipe))
        writer.finish(
            counts=Counts(
                seen=tally.seen,
                kept=kept,
                documents=writer.documents,
                dropped_short=pieces.dropped,
                dropped_empty=tally.empty,
                other_part=tally.other_part,
                tokens=writer.tokens,
                files_passed_over=sum(sum(found.passed_over.values()) for found in sources),
            ),
            min_tokens=recipe.min_tokens,
            separator_id=separator_id,
            sentence_ends=encoder.sentence_ends(),
            tokenizer_fingerprint=encoder.fingerprint,
        )


def _none_kept(tally: _Tally, pieces: _LongEnough, recipe: _Recipe) -> str:
    """Says why a store would be empty, and what to do."""
    if tally.seen == tally.other_part:
        return (
            f"none of {tally.seen} documents is in the {recipe.part} part (held_out_share={recipe.held_out_share}); "
            "give more documents or another share"
        )
    if not pieces.dropped:
        return f"all {tally.empty} documents up to {tally.last_name} are empty; give documents with text"
    cure = "lower min_tokens or " + ("give more documents" if recipe.join else "join short documents (join=True)")
    return (
        f"no document has {recipe.min_tokens} tokens{', nor do all joined' if recipe.join else ''}; the longest of "
        f"{pieces.dropped}, {pieces.longest.name}, has {len(pieces.longest.ids)}: {cure}"
    )


def _progress_bar(sources: list[Source], progress: bool) -> "tqdm[NoReturn]":
    """A bar over bytes on disk where they are known, else over documents."""
    sizes = [found.size_bytes() for found in sources]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return tqdm(desc="Tokenizing", total=sum(known), unit="B", unit_scale=True, disable=not progress)
    return tqdm(desc="Tokenizing", unit=" documents", disable=not progress)

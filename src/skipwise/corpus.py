"""Corpus: documents tokenized once, in parallel, into files that the next start finds ready.

    sources -> all their documents -> tokens -> token files -> those of the wanted part -> long enough, or joined

The files are of all documents; which of them a store shows is computed when it is opened. They are written to a side
folder and renamed when complete, under a lock: half-written ones have another name, and two processes never write the
same ones.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from filelock import FileLock
from tqdm import tqdm

from skipwise.documents import Source, find_sources
from skipwise.errors import DataError
from skipwise.token_store import FORMAT, Counts, Part, StoreWriter, TokenFiles, TokenStore, View
from skipwise.token_store.files import sync_folder
from skipwise.tokenizing import Encoder, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Counts", "Part", "TokenStore", "build_store"]


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

    The tokens of all documents are kept under a key of what they depend on: the content of every local file (see
    `LocalFiles.identity`; of a hub data set the commit), `field`, the tokenizer's serialization, and the version of the
    format. Whoever asks for the same source with the same tokenizer finds them ready, whatever the other arguments are;
    they are compared with their checksums first (see `TokenFiles.verify`) and made again where they are damaged.

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
    view = View(min_tokens=min_tokens, join=join, part=part, held_out_share=held_out_share)
    sources = find_sources(source)
    key = _key(field, encoder, sources)
    root = Path(cache_dir or os.environ.get("SKIPWISE_CACHE") or "~/.cache/skipwise").expanduser()
    folder = root / key
    if not _is_sound(folder):
        root.mkdir(parents=True, exist_ok=True)
        # The lock file stays: were it removed, one process could hold the removed file and another a new one.
        with FileLock(root / f"{key}.lock"):
            if not _is_sound(folder):  # no other process built them while this one waited
                _build(folder, sources, field, encoder, num_workers or os.cpu_count() or 1, progress)
    passed_over = sum(sum(found.passed_over.values()) for found in sources)
    return TokenStore(folder, view, files_passed_over=passed_over)


def _key(field: str, encoder: Encoder, sources: list[Source]) -> str:
    identity = [FORMAT, field, encoder.fingerprint, [found.identity() for found in sources]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _is_sound(folder: Path) -> bool:
    """Whether complete token files lie here that agree with their checksums."""
    try:
        TokenFiles(folder).verify()
    except (DataError, OSError):  # another process that found damage may be removing them
        return False
    return True


def _build(folder: Path, sources: list[Source], field: str, encoder: Encoder, workers: int, progress: bool) -> None:
    """Tokenizes all documents into a folder that has its name when they are complete, and not before.

    Raises:
        DataError: when a document cannot be read, or the documents change meanwhile.
    """
    # Under the lock, whatever lies here is damaged, or what an interrupted build left.
    partial = folder.with_name(f"{folder.name}.partial")
    for remains in (partial, folder):
        shutil.rmtree(remains, ignore_errors=True)
    partial.mkdir()
    try:
        documents = (document for found in sources for document in found.documents(field))
        with _progress_bar(sources, progress) as bar, StoreWriter(partial, encoder.dtype) as writer:
            for piece in tokenized(documents, encoder, workers):
                writer.add(*piece)
                done = sum(found.read_bytes() for found in sources) if bar.total else writer.documents
                bar.update(done - bar.n)
                bar.set_postfix(documents=writer.documents, tokens=f"{writer.tokens / 1e6:.1f}M", refresh=False)
            writer.finish(
                separator_id=encoder.separator_id,
                sentence_ends=encoder.sentence_ends(),
                tokenizer_fingerprint=encoder.fingerprint,
            )
        if _key(field, encoder, sources) != folder.name:
            raise DataError("documents changed while being read; start again when they are complete")
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _progress_bar(sources: list[Source], progress: bool) -> "tqdm[NoReturn]":
    """A bar over bytes on disk where they are known, else over documents."""
    sizes = [found.size_bytes() for found in sources]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        return tqdm(desc="Tokenizing", total=sum(known), unit="B", unit_scale=True, disable=not progress)
    return tqdm(desc="Tokenizing", unit=" documents", disable=not progress)

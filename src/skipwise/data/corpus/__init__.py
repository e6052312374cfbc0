"""Corpus: documents tokenized once, in parallel, into files that the next start finds ready.

    sources -> all their documents -> tokens -> token files -> those of the wanted part -> long enough, or joined

The files are of all documents; which of them a view shows is computed when it is asked for. They are written to a side
folder and renamed when complete, under a lock: half-written ones have another name, and two processes never write the
same ones. `building` says how several processes share the work.
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipwise.config import DataConfig
from skipwise.data.corpus.building import Tokenization, build, divided, is_sound
from skipwise.data.documents import Sources, look_through
from skipwise.data.formats import UnreadableError
from skipwise.data.store import FORMAT, Counts, HeldOutEnd, Part, TokenFiles, TokenStore, View
from skipwise.data.stream import StreamedCorpus
from skipwise.data.tokens import Encoder, require_fast
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Corpus",
    "Counts",
    "HeldOutEnd",
    "Part",
    "StoredCorpus",
    "StreamedCorpus",
    "TokenStore",
    "open_corpus",
    "store_corpus",
]

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, kw_only=True)
class StoredCorpus:
    """Documents as tokens on disk, hashed and verified once, when they are opened; all else are views of them.

    Attributes:
        data: which documents, and how they are read and divided into parts.
        sources: the same, looked through.
        tokenizer: the model's own.
        folder: of the token files.
        held_out_end: end of a document that is held out beside whole ones (see `choose_held_out_end`).
    """

    data: DataConfig
    sources: Sources
    tokenizer: "PreTrainedTokenizerBase"
    folder: Path
    held_out_end: HeldOutEnd | None = None

    @property
    def files(self) -> TokenFiles:
        """The tokens of all documents, whatever their part and length."""
        return TokenFiles(self.folder)

    def documents(self, part: Part = "all", *, min_tokens: int = 1, join: bool | None = None) -> TokenStore:
        """The documents of one part that are long enough.

        Args:
            part: all, those for training, or those held out from it (told apart by `Document.identity`, so by text).
            min_tokens: documents with fewer are dropped, or joined; `data.min_tokens` where that is more.
            join: joins short documents in reading order, a separator token between; by default as `data.join` says.

        Raises:
            DataError: no document is long enough.
        """
        view = View(
            min_tokens=max(min_tokens, self.data.min_tokens or 0),
            join=self.data.join if join is None else join,
            part=part,
            held_out_share=self.data.held_out,
            held_out_end=self.held_out_end,
        )
        return TokenStore(self.folder, view, files_passed_over=self.sources.kinds_passed_over.total())

    def number_of(self, tokens: int) -> int:
        """How many training documents have at least this many tokens."""
        try:
            return self.documents("train", min_tokens=tokens).num_documents
        except DataError:
            return 0

    def long_documents(self, part: Part, number: int, *, min_tokens: int, spread: bool = False) -> list[np.ndarray]:
        """Some documents of one part that are long enough, else short ones joined, which a warning says.

        Args:
            part: as in `documents`.
            number: how many at most.
            min_tokens: how long each must be.
            spread: from all over the corpus, as neighbours are alike; else the first.

        Returns:
            Token ids of each, 1-D.

        Raises:
            DataError: also joined ones are too short, or the tokenizer has no token to put between.
        """
        try:
            store = self.documents(part, min_tokens=min_tokens)
        except DataError as too_short:
            if self.data.join or self.files.separator_id is None:
                raise
            try:
                store = self.documents(part, min_tokens=min_tokens, join=True)
            except DataError:
                raise too_short from None
            which = {"held_out": "held-out documents", "train": "training documents", "all": "documents"}[part]
            logger.warning(f"{which} are joined: none has {min_tokens} tokens by itself")
        number = min(number, store.num_documents)
        places = np.linspace(0, store.num_documents - 1, number).astype(int) if spread else range(number)
        return [store.document(int(place)) for place in places]


Corpus = StoredCorpus | StreamedCorpus


def open_corpus(
    data: DataConfig, tokenizer: "PreTrainedTokenizerBase", sources: Sources | None = None, *, progress: bool = True
) -> Corpus:
    """Opens the documents of a run, once: what trains, validates and calibrates on them are views.

    Args:
        data: which documents, and whether they are tokenized first or read as they are trained on.
        tokenizer: the model's own, a fast one.
        sources: what `documents.look_through` has made of `data`, so that files are not looked at again.
        progress: shows a bar while tokenizing.

    Raises:
        DataError: documents cannot be read or streamed, or tokens not be written.
    """
    require_fast(tokenizer)
    sources = sources or look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    if data.streaming:
        return StreamedCorpus(data=data, sources=sources, tokenizer=tokenizer)
    return store_corpus(data, tokenizer, sources, progress=progress)


def store_corpus(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    sources: Sources | None = None,
    *,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> StoredCorpus:
    """Opens documents as tokens on disk, tokenizing them first where that has not been done.

    The tokens of all documents are kept under a key of what they depend on: the content of every local file (see
    `LocalFiles.identity`; of a hub data set the commit), the field, the tokenizer's serialization, which control tokens
    are text, and the version of the format. Whoever asks for the same source with the same tokenizer finds them ready,
    whatever the other settings are; they are compared with their checksums first (see `TokenFiles.verify`) and made
    again where they are damaged.

    Processes that ask at the same time share the work, on whatever machines: large sources are cut into parts, each of
    which is tokenized by whoever takes it first (see `building`). Nothing but the folder of `cache_dir` connects them;
    it must be on a file system whose locks hold on all machines, as NFS 4 is. What an interrupted build has finished
    the next one uses. The bytes of the store are the same however many processes built it.

    Each document is tokenized as `tokenizer(text)` would, so with the opening token that the model saw in pre-training
    where its tokenizer adds one; a closing token is left off, because a window cut from the middle of a text has none.
    Control tokens that a document spells are text, unless `data.control_tokens` says that they are meant. A long
    document is tokenized in pieces, to the same ids.

    Args:
        data: which documents.
        tokenizer: the model's own, a fast one.
        sources: what `documents.look_through` has made of `data`, so that files are not looked at again.
        cache_dir: where token files are kept, by default `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
        num_workers: threads that tokenize, by default one for each processor; processes that torchrun starts on one
            machine share the processors.
        progress: shows a progress bar, which of several processes one alone should do.

    Raises:
        DataError: documents cannot be read, or tokens not be written.
    """
    require_fast(tokenizer)
    encoder = Encoder(tokenizer, data.control_tokens)
    if data.join and encoder.separator_id is None:
        raise DataError("join is on and the tokenizer has no end or begin token to put between; set one or join=False")
    looked = sources or look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    root = Path(cache_dir or os.environ.get("SKIPWISE_CACHE") or "~/.cache/skipwise").expanduser()
    folder = root / _key(looked.reading, encoder, looked.identities)
    if not is_sound(folder):
        parts = divided(looked.sources, looked.identities, encoder, looked.reading)
        how = Tokenization(
            encoder=encoder,
            field=looked.field,
            skip_unreadable=looked.skip_unreadable,
            workers=num_workers or _processors(len(parts)),
        )
        try:
            root.mkdir(parents=True, exist_ok=True)
            build(folder, parts, how, progress=progress)
        except UnreadableError as error:
            looked.refuse_all(error)
        except OSError as error:
            raise DataError(
                f"tokens cannot be written to {str(root)!r}: {error.strerror or error}. Make room, or set "
                "SKIPWISE_CACHE to a folder on another disk; parts that are complete stay and are not done again"
            ) from error
    return StoredCorpus(data=data, sources=looked, tokenizer=tokenizer, folder=folder)


def _key(field: str, encoder: Encoder, identities: list[list[Any]]) -> str:
    identity = [FORMAT, field, encoder.fingerprint, identities]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _processors(num_parts: int) -> int:
    """How many processors are this process's own, where those beside it tokenize other parts."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # torchrun and its like say so
    return max(1, (os.cpu_count() or 1) // min(beside, num_parts))

"""Corpus: documents are tokenized once, in parallel, into files that later runs reuse.

    sources -> all their documents -> token ids -> token files -> documents of one split -> long enough, or joined

The files hold all documents; a view selects some of them when it is opened. Files are written to a side folder under a
lock and renamed when complete. So incomplete files have another name, and two processes never write the same ones.
`building` explains how several processes share the work.
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
from skipwise.files import cache_folder

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
    "view_of",
]

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, kw_only=True)
class StoredCorpus:
    """Documents as token ids on disk. They are hashed and verified once, when opened; everything else is a view.

    Attributes:
        data: settings of the documents and of their splits.
        sources: the inspected sources.
        tokenizer: the model's own.
        folder: folder of the token files.
        held_out_end: end of a document that is held out besides whole documents (see `choose_held_out_end`).
    """

    data: DataConfig
    sources: Sources
    tokenizer: "PreTrainedTokenizerBase"
    folder: Path
    held_out_end: HeldOutEnd | None = None

    @property
    def files(self) -> TokenFiles:
        """The token files of all documents, of any split and length."""
        return TokenFiles(self.folder)

    def documents(self, part: Part = "all", *, min_tokens: int = 1, join: bool | None = None) -> TokenStore:
        """The documents of one split that are long enough.

        Args:
            part: the split: all documents, those for training, or those held out. The split is decided by
                `Document.identity`, usually the text.
            min_tokens: documents with fewer tokens are dropped, or joined; `data.min_tokens` if that is more.
            join: joins short documents in reading order, with a separator token between them; `data.join` by default.

        Raises:
            DataError: no document is long enough.
        """
        view = view_of(self.data, part, min_tokens=min_tokens, join=join, held_out_end=self.held_out_end)
        return TokenStore(self.folder, view, files_passed_over=self.sources.kinds_passed_over.total())

    def number_of(self, tokens: int) -> int:
        """Number of training documents with at least this many tokens."""
        try:
            return self.documents("train", min_tokens=tokens).num_documents
        except DataError:
            return 0

    def long_documents(self, part: Part, number: int, *, min_tokens: int, spread: bool = False) -> list[np.ndarray]:
        """Some long documents of one split. If none is long enough, joins short ones, with a warning.

        Args:
            part: as in `documents`.
            number: maximum number of documents.
            min_tokens: minimum length of each.
            spread: takes them from all over the corpus, since neighbours are alike; else the first ones.

        Returns:
            Token ids of each document, 1-D.

        Raises:
            DataError: joined documents are too short as well, or the tokenizer has no separator token.
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


def view_of(
    data: DataConfig,
    part: Part,
    *,
    min_tokens: int = 1,
    join: bool | None = None,
    held_out_end: HeldOutEnd | None = None,
) -> View:
    """The view of a split under the settings of a run; arguments as for `StoredCorpus.documents`."""
    return View(
        min_tokens=max(min_tokens, data.min_tokens or 0),
        join=data.join if join is None else join,
        part=part,
        held_out_share=data.held_out,
        held_out_end=held_out_end,
    )


Corpus = StoredCorpus | StreamedCorpus


def open_corpus(
    data: DataConfig, tokenizer: "PreTrainedTokenizerBase", sources: Sources | None = None, *, progress: bool = True
) -> Corpus:
    """Opens the documents of a run, once. Training, validation and calibration use views of the result.

    Args:
        data: settings of the documents; `data.streaming` tokenizes during training instead of beforehand.
        tokenizer: the model's own; a fast one.
        sources: `look_through` of the same data, if at hand, so that files are not inspected again.
        progress: shows a progress bar while tokenizing.

    Raises:
        DataError: documents cannot be read or streamed, or token files cannot be written.
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
    """Opens documents as token ids on disk; tokenizes them first if they are not in the cache.

    The cache key is a hash of everything that the token ids depend on: the content of every local file (see
    `LocalFiles.identity`) or the commit of a hub data set, the field, the tokenizer, which control tokens are read as
    text, and the version of the format. Cached files that do not match their checksums are built again.

    Processes that build at the same time share the work, also across machines, and a build resumes what an interrupted
    one has finished (see `building`). `cache_dir` must be on a file system whose locks work across machines, such as
    NFS 4. The bytes of the store do not depend on the number of processes.

    Each document is tokenized as by `tokenizer(text)`, so with the begin token if the tokenizer adds one, as in
    pre-training. The end token is left off, because a window cut from the middle of a text has none.

    Args:
        data: settings of the documents.
        tokenizer: the model's own; a fast one.
        sources: `look_through` of the same data, if at hand, so that files are not inspected again.
        cache_dir: folder of the cache, by default `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
        num_workers: number of threads; by default one per processor, divided among the processes of torchrun here.
        progress: shows a progress bar; of several processes only one should.

    Raises:
        DataError: documents cannot be read, or token files cannot be written.
    """
    require_fast(tokenizer)
    encoder = Encoder(tokenizer, data.control_tokens)
    if data.join and encoder.separator_id is None:
        raise DataError("join is on, but the tokenizer has no end or begin token as a separator; set one or join=False")
    looked = sources or look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    root = Path(cache_dir).expanduser() if cache_dir else cache_folder()
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
                f"tokens cannot be written to {str(root)!r}: {error.strerror or error}. Free some space, "
                "or set SKIPWISE_CACHE to a folder on another disk; completed parts are kept"
            ) from error
    return StoredCorpus(data=data, sources=looked, tokenizer=tokenizer, folder=folder)


def _key(field: str, encoder: Encoder, identities: list[list[Any]]) -> str:
    identity = [FORMAT, field, encoder.fingerprint, identities]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _processors(num_parts: int) -> int:
    """This process's share of the processors, as local processes tokenize different parts at the same time."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # set by torchrun and other launchers
    return max(1, (os.cpu_count() or 1) // min(local_processes, num_parts))

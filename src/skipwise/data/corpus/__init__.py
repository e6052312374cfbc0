"""Corpus: documents are tokenized once, in parallel, into files that later runs reuse.

    sources -> all their documents -> token ids -> token files -> documents of one split -> long enough, or joined

The files hold all documents; a view selects some of them when it is opened. Files are written to a side folder under a
lock and renamed when complete. So incomplete files have another name, and two processes never write the same ones.
`building` explains how several processes share the work.

stored.py    documents of one source, or of several alike; mixed.py, of a mixture
building.py  tokenizing them, once
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.config import DataConfig
from skipwise.data.corpus.building import Tokenization, build, divided, is_sound
from skipwise.data.corpus.mixed import MixedCorpus, MixedStore
from skipwise.data.corpus.stored import StoredCorpus, joins, view_of
from skipwise.data.documents import Sources, look_through
from skipwise.data.formats import UnreadableError
from skipwise.data.store import FORMAT, Counts, HeldOutEnd, Part, TokenStore
from skipwise.data.stream import StreamedCorpus
from skipwise.data.tokens import ConversationEncoder, Encoder, require_fast
from skipwise.errors import DataError
from skipwise.files import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Corpus",
    "Counts",
    "HeldOutEnd",
    "MixedCorpus",
    "MixedStore",
    "Part",
    "StoredCorpus",
    "StreamedCorpus",
    "TokenStore",
    "joins",
    "look_at",
    "open_corpus",
    "open_stored",
    "store_corpus",
    "view_of",
]

Corpus = StoredCorpus | MixedCorpus | StreamedCorpus


def look_at(data: DataConfig) -> list[Sources]:
    """Finds and inspects the documents of each source, as `look_through`; what is wrong with any is in one error.

    Raises:
        DataError: something cannot be read and is not to be skipped, or nothing is left.
    """
    looked, wrong = list[Sources](), list[DataError]()
    for own in data.entries():
        try:
            how = {"field": own.field, "skip_unreadable": own.skip_unreadable, "format": own.format}
            looked.append(look_through(own.source, **how))
        except DataError as error:
            wrong.append(error)
    if wrong:
        raise DataError("; ".join(map(str, wrong)), page=wrong[0].page)
    return looked


def open_corpus(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    sources: Sequence[Sources] | None = None,
    *,
    progress: bool = True,
) -> Corpus:
    """Opens the documents of a run, once. Training, validation and calibration use views of the result.

    Args:
        data: settings of the documents; `data.streaming` tokenizes during training instead of beforehand.
        tokenizer: the model's own; a fast one.
        sources: `look_at` of the same data, if at hand, so that files are not inspected again.
        progress: shows a progress bar while tokenizing.

    Raises:
        DataError: documents cannot be read or streamed, or token files cannot be written.
    """
    require_fast(tokenizer)
    sources = sources or look_at(data)
    if data.streaming:
        return StreamedCorpus(data=data, sources=sources[0], tokenizer=tokenizer)
    return open_stored(data, tokenizer, sources, progress=progress)


def open_stored(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    sources: Sequence[Sources] | None = None,
    *,
    progress: bool = True,
) -> StoredCorpus | MixedCorpus:
    """The same for documents that are not streamed."""
    sources = sources or look_at(data)
    if not data.mixture:
        return store_corpus(data, tokenizer, sources[0], progress=progress)
    names = [entry.name for entry in data.mixture if entry.source is not None]
    parts, wrong = list[StoredCorpus](), dict[str, DataError]()
    for name, own, looked in zip(names, data.entries(), sources, strict=True):
        try:
            parts.append(replace(store_corpus(own, tokenizer, looked, progress=progress), name=name))
        except DataError as error:
            wrong[name] = error
    if wrong:
        message = "; ".join(f"{name}: {error}" for name, error in wrong.items())
        raise DataError(message, page=next(iter(wrong.values())).page)
    return MixedCorpus(data=data, tokenizer=tokenizer, parts=tuple(parts))


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
    looked = sources or look_at(data)[0]
    encoder = (ConversationEncoder if looked.are_conversations else Encoder)(tokenizer, data.control_tokens)
    if data.join and encoder.separator_id is None and not encoder.has_turns:
        raise DataError(
            "join is on, but the tokenizer has no end or begin token as a separator; set one or join=False",
            page="unsuitable-tokenizer",
        )
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
            looked.refuse_all(error, encoder.why_not)
        except OSError as error:
            raise DataError(
                f"tokens cannot be written to {str(root)!r}: {error.strerror or error}. Free some space, "
                "or set SKIPWISE_CACHE to a folder on another disk; completed parts are kept",
                page="cannot-write",
            ) from error
    return StoredCorpus(data=data, sources=looked, tokenizer=tokenizer, folder=folder)


def _key(field: str, encoder: Encoder, identities: list[list[Any]]) -> str:
    identity = [FORMAT, field, encoder.fingerprint, identities]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _processors(num_parts: int) -> int:
    """This process's share of the processors, as local processes tokenize different parts at the same time."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # set by torchrun and other launchers
    return max(1, (os.cpu_count() or 1) // min(local_processes, num_parts))

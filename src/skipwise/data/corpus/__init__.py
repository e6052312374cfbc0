"""Corpus: documents tokenized once, in parallel, into files that the next start finds ready.

    sources -> all their documents -> tokens -> token files -> those of the wanted part -> long enough, or joined

The files are of all documents; which of them a store shows is computed when it is opened. They are written to a side
folder and renamed when complete, under a lock: half-written ones have another name, and two processes never write the
same ones. `building` says how several processes share the work.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.data.corpus.building import Tokenization, build, divided, is_sound
from skipwise.data.documents import Sources, look_through
from skipwise.data.formats import UnreadableError
from skipwise.data.store import FORMAT, Counts, HeldOutEnd, Part, TokenStore, View
from skipwise.data.tokens import Encoder, Reading, require_fast
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Counts", "HeldOutEnd", "Part", "TokenStore", "build_store"]


def build_store(
    source: str | Path | Sequence[str | Path] | Sources,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    field: str = "text",
    skip_unreadable: bool = False,
    min_tokens: int,
    join: bool = False,
    part: Part = "all",
    held_out_share: float = 0.1,
    held_out_end: HeldOutEnd | None = None,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    control_tokens: Reading = "text",
) -> TokenStore:
    """Opens the token store of a source, tokenizing it first where that has not been done.

    The tokens of all documents are kept under a key of what they depend on: the content of every local file (see
    `LocalFiles.identity`; of a hub data set the commit), `field`, the tokenizer's serialization, which control tokens
    are text, and the version of the format. Whoever asks for the same source with the same tokenizer finds them ready,
    whatever the other arguments are; they are compared with their checksums first (see `TokenFiles.verify`) and made
    again where they are damaged.

    Processes that ask at the same time share the work, on whatever machines: large sources are cut into parts, each of
    which is tokenized by whoever takes it first (see `building`). Nothing but the folder of `cache_dir` connects them;
    it must be on a file system whose locks hold on all machines, as NFS 4 is. What an interrupted build has finished
    the next one uses. The bytes of the store are the same however many processes built it.

    Each document is tokenized as `tokenizer(text)` would, so with the opening token that the model saw in pre-training
    where its tokenizer adds one; a closing token is left off, because a window cut from the middle of a text has none.
    Control tokens that a document spells are text, unless `control_tokens` says that they are meant. A long document is
    tokenized in pieces, to the same ids.

    Args:
        source: where the documents are, as in `documents.read_documents`; or what `documents.look_through` has made of
            that, with a field and a setting of its own, so that files are not looked at again.
        tokenizer: the model's own, a fast one.
        field: entry that holds the text in JSON lines, Parquet and hub data sets.
        skip_unreadable: leaves out files and records that cannot be read, and counts them.
        min_tokens: documents with fewer tokens are dropped, or joined.
        join: joins short documents in reading order, a separator token between, until they have `min_tokens`.
        part: which documents to take: all, those for training, or those held out from it (told apart by
            `Document.identity`, so by text).
        held_out_share: share of documents that is held out.
        held_out_end: end of a document that is held out beside whole ones (see `token_store.choose_held_out_end`).
        cache_dir: where stores are kept, by default `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
        num_workers: threads that tokenize, by default one for each processor; processes that torchrun starts on one
            machine share the processors.
        progress: shows a progress bar, which of several processes one alone should do.
        control_tokens: as in `DataConfig`.

    Raises:
        DataError: when documents cannot be read or tokens not be written, or no document is long enough.
    """
    require_fast(tokenizer)
    encoder = Encoder(tokenizer, control_tokens)
    if join and encoder.separator_id is None:
        raise DataError("join is on and the tokenizer has no end or begin token to put between; set one or join=False")
    view = View(min_tokens=min_tokens, join=join, part=part, held_out_share=held_out_share, held_out_end=held_out_end)
    looked = look_through(source, field=field, skip_unreadable=skip_unreadable)
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
    return TokenStore(folder, view, files_passed_over=looked.kinds_passed_over.total())


def _key(field: str, encoder: Encoder, identities: list[list[Any]]) -> str:
    identity = [FORMAT, field, encoder.fingerprint, identities]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _processors(num_parts: int) -> int:
    """How many processors are this process's own, where those beside it tokenize other parts."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # torchrun and its like say so
    return max(1, (os.cpu_count() or 1) // min(beside, num_parts))

"""Parts of a stream, trained on or held out, and documents joined."""

import logging
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from skipwise.config import DataConfig
from skipwise.data.documents import Sources, is_held_out
from skipwise.data.formats import UnreadableError
from skipwise.data.stream.shards import Shards
from skipwise.data.tokens import Encoder
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")

# How many documents are looked through for some that are long enough.
_LOOKED_THROUGH = 50_000


def first_documents(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    number: int,
    min_tokens: int,
    *,
    held_out: bool,
    sources: Sources | None = None,
) -> list[np.ndarray]:
    """Some documents of one part of a stream, in the shards' own order; joined where none is long enough.

    Args:
        data: where they are read.
        tokenizer: the model's own, a fast one.
        number: how many at most.
        min_tokens: how long each must be.
        held_out: of the part that is held out, else of that which is trained on.
        sources: what `documents.look_through` has made of `data`, so that files are not looked at again.

    Returns:
        Token ids of each, 1-D.

    Raises:
        DataError: of all that were looked through none is long enough, nor are several joined; or as `Shards`.
    """
    shards = Shards(sources or data.source, data.field, skip_unreadable=data.skip_unreadable)
    encoder = Encoder(tokenizer, data.control_tokens)
    texts = (text for shard in range(len(shards)) for text in shards.texts(shard))
    long, joined, gathered = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for text in islice(texts, _LOOKED_THROUGH):
        if isinstance(text, UnreadableError):
            if not data.skip_unreadable:
                raise text
            continue
        if not is_of_part(text, data.held_out, held_out=held_out):
            continue
        ids = encoder.encode([text])[0]
        if len(ids) >= min_tokens:
            long.append(ids)
        elif encoder.separator_id is not None and len(joined) < number:
            gathered.append(ids)
            if tokens_of(gathered) >= min_tokens:
                joined.append(together(gathered, encoder))
                gathered = []
        if len(long) == number:
            break
    if not long and not joined:
        raise DataError(
            f"of the first {_LOOKED_THROUGH:,} documents at {data.source!r} none that is "
            f"{'held out' if held_out else 'trained on'} has {min_tokens} tokens, nor have several joined; give more "
            "documents, or longer ones"
        )
    if not long:
        logger.warning(f"documents are joined: none that was looked at has {min_tokens} tokens by itself")
    return long or joined


def is_of_part(text: str, held_out_share: float, *, held_out: bool) -> bool:
    """Whether a text is in a part; one of nothing but spaces is in none."""
    text = text.strip()
    return bool(text) and is_held_out(text, held_out_share) == held_out


def tokens_of(pieces: Sequence[np.ndarray]) -> int:
    """Tokens of documents joined, separators counted."""
    return sum(map(len, pieces)) + len(pieces) - 1


def together(pieces: Sequence[np.ndarray], encoder: Encoder) -> np.ndarray:
    """Documents joined, a separator between."""
    separator = np.array([encoder.separator_id or 0], encoder.dtype)
    return np.concatenate([part for piece in pieces for part in (separator, piece)][1:])

"""The splits of a stream, and joining documents."""

from collections.abc import Sequence

import numpy as np

from skipwise.data.documents import is_held_out
from skipwise.data.tokens import Encoder


def is_of_part(text: str, held_out_share: float, *, held_out: bool) -> bool:
    """Whether a text is in the held-out or the training split; a text of only white space is in neither."""
    text = text.strip()
    return bool(text) and is_held_out(text, held_out_share) == held_out


def tokens_of(pieces: Sequence[np.ndarray]) -> int:
    """Number of tokens of the joined documents, separators included."""
    return sum(map(len, pieces)) + len(pieces) - 1


def together(pieces: Sequence[np.ndarray], encoder: Encoder) -> np.ndarray:
    """The documents joined, with a separator token between them."""
    separator = np.array([encoder.separator_id or 0], encoder.dtype)
    return np.concatenate([part for piece in pieces for part in (separator, piece)][1:])

"""Parts of a stream, trained on or held out, and documents joined."""

from collections.abc import Sequence

import numpy as np

from skipwise.data.documents import is_held_out
from skipwise.data.tokens import Encoder


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

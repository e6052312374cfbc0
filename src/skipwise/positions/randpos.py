"""RandPos."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.positions.draws import contiguous_text, sorted_subset
from skipwise.positions.sample import PositionSample
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class RandPos:
    """`Lc` distinct positions drawn uniformly from `{0..Lt-1}`, sorted. Text: contiguous, from a uniformly drawn start.

    Source: randomized positional encodings, arXiv 2305.16843, section 3.
    """

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        token_index = contiguous_text(num_tokens, window, rng)
        return PositionSample.unchecked(token_index, sorted_subset(window.train, window.target, rng))

"""Windows without skips: the baselines."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.positions.draws import contiguous_text
from skipwise.positions.sample import PositionSample, check_document
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A short window without skips: positions `0..Lc-1`. Text: contiguous, from a uniformly drawn start."""

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        return PositionSample.unchecked(contiguous_text(num_tokens, window, rng), np.arange(window.train))


@dataclass(frozen=True, slots=True, kw_only=True)
class FullLength:
    """The whole target without skips: `min(Lt, Lx)` tokens in a row. Text: from a uniformly drawn start."""

    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        check_document(num_tokens, window)
        length = min(window.target, num_tokens)
        start = rng.integers(0, num_tokens - length + 1)
        return PositionSample.unchecked(np.arange(start, start + length), np.arange(length))

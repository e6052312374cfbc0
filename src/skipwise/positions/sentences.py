"""Gaps at the ends of sentences."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.errors import PositionError
from skipwise.positions.draws import contiguous_text, sorted_subset
from skipwise.positions.sample import PositionSample, check_count
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceGaps:
    """Gaps at sentence ends: the sentences keep their order, with random gaps between them.

    The `Lt - Lc` unused positions and the S sentences form a sequence that begins with the first sentence. Every
    arrangement of the rest is equally likely. Text: contiguous, from a uniformly drawn start.

    Attributes:
        sentence_tokens: length in tokens of artificial sentences, 1 or more, where sentence ends are unknown (as in
            `coverage`).

    Source: LongRecipe, arXiv 2409.00509, section 3.2 (without its choice of tokens).
    """

    uses_sentence_ends: ClassVar[bool] = True

    sentence_tokens: int = 24

    def __post_init__(self) -> None:
        check_count("sampler.sentence_tokens", self.sentence_tokens)

    def sample(
        self, num_tokens: int, window: Window, rng: np.random.Generator, *, sentence_ends: np.ndarray | None = None
    ) -> PositionSample:
        """See `PositionSampler.sample`.

        Args:
            num_tokens: length of the document, `Lx`.
            window: the three lengths.
            rng: source of all draws.
            sentence_ends: bool (num_tokens,), True where a token ends a sentence; None for artificial sentences of
                fixed length.
        """
        token_index = contiguous_text(num_tokens, window, rng)
        if sentence_ends is None:
            starts = np.arange(self.sentence_tokens, window.train, self.sentence_tokens)
        elif sentence_ends.shape != (num_tokens,) or sentence_ends.dtype != np.bool_:
            raise PositionError(
                f"sentence_ends is {sentence_ends.dtype} of shape {sentence_ends.shape}; it must be bool of shape "
                f"({num_tokens},), one for each token of the document"
            )
        else:
            # A sentence starts after each end, except after the window's last token.
            starts = np.flatnonzero(sentence_ends[token_index[0] : token_index[-1]]) + 1
        slots = sorted_subset(len(starts), window.target - window.train + len(starts), rng)
        steps = np.ones(window.train, dtype=np.int64)
        steps[0] = 0
        # Slots are distinct places in the sequence of sentences and unused positions; a step of k is a gap of k - 1.
        slots[1:] -= slots[:-1] + 1
        steps[starts] += slots
        return PositionSample.unchecked(token_index, steps.cumsum())

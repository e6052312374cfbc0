"""CREAM."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from skipwise.errors import ConfigError
from skipwise.positions.draws import contiguous_text
from skipwise.positions.sample import PositionSample
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class CREAM:
    """Head and tail of `h` tokens at the two ends of the target range, and the rest in one chunk between them.

    Per example, `h` is `Lc // 3` (many distances) or `4 * alpha` (continuity), with probability 1/2 each, and at most
    `(Lc - 1) // 2`. The middle chunk has `m = Lc - 2h` tokens. With `alpha = Lt / Lo`, its last position is
    `P_e ~ U{h + (m-1) x/2 .. Lo x/2 - h - 1}`, where x is a Gaussian of mean `1 + alpha` and standard deviation
    `sigma`, truncated to `[2, 2 alpha]` and rounded. Text: contiguous, from a uniformly drawn start.

    Attributes:
        sigma: standard deviation of x, above 0.

    Source: CREAM, arXiv 2406.07138, section 3. Deliberate deviations from the authors' code: the truncated CDF is
    normalized (theirs moves the mass outside onto the ends); `h` is drawn per example (theirs per 3000); x is rounded
    to the nearest integer (theirs down, which never reaches the last half window). If window.train is above
    window.original, both bounds of `P_e` are clipped so that the middle overlaps neither head nor tail.
    """

    uses_sentence_ends: ClassVar[bool] = False

    sigma: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma < np.inf:
            raise ConfigError(f"sampler.sigma is {self.sigma!r}; it must be a number above 0")

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        token_index = contiguous_text(num_tokens, window, rng)
        alpha = window.factor
        end_tokens = window.train // 3 if rng.random() < 0.5 else int(4 * alpha)
        end_tokens = min(end_tokens, (window.train - 1) // 2)
        middle_tokens = window.train - 2 * end_tokens

        gaussian = NormalDist(1 + alpha, self.sigma)
        low, high = gaussian.cdf(2.0), gaussian.cdf(2 * alpha)
        drawn = gaussian.inv_cdf(low + (high - low) * rng.random()) if low < high else 2.0
        half_x = min(max(round(drawn), 2.0), 2 * alpha) / 2

        first, last = end_tokens + middle_tokens - 1, window.target - end_tokens - 1
        earliest = min(int(end_tokens + (middle_tokens - 1) * half_x), last)
        latest = max(int(window.original * half_x) - end_tokens - 1, earliest)
        middle_end = max(int(rng.integers(earliest, min(latest, last) + 1)), first)
        position_ids = np.arange(window.train)
        position_ids[end_tokens:] += middle_end - first
        position_ids[window.train - end_tokens :] = np.arange(window.target - end_tokens, window.target)
        return PositionSample.unchecked(token_index, position_ids)

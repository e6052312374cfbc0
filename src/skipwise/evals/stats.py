"""Intervals of proportions and of ratios of sums."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value with its confidence interval; the ends are None where one sample gives no interval."""

    value: float
    low: float | None
    high: float | None

    def exp(self) -> "Estimate":
        """The estimate of the exponential, such as a perplexity from a mean NLL."""
        low, high = (None if end is None else math.exp(end) for end in (self.low, self.high))
        return Estimate(math.exp(self.value), low, high)


def wilson(successes: int, num_trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """Share of successes with the Wilson score interval.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        successes: number of successes, 0 to `num_trials`.
        num_trials: number of trials, at least 1.
        confidence: coverage of the interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / num_trials
    centre = share + z * z / (2 * num_trials)
    spread = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    scale = 1 + z * z / num_trials
    # Rounding must not push an end past the share when all or none succeed.
    return Estimate(
        share, max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))
    )


def bootstrap_ratio(
    sums: ArrayLike,
    weights: ArrayLike,
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Ratio of two sums over samples, with the percentile interval of resampling whole samples.

        value = sum(sums) / sum(weights)

    Tokens of one document depend on each other, so documents are what is drawn, with their sums and weights together.

    Args:
        sums: 1-D, one entry per sample, such as the sum of a document's NLLs.
        weights: 1-D of the same length, such as the number of tokens scored.
        rng: source of the resamples.
        num_resamples: how many.
        confidence: coverage of the interval.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 13.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    value = float(sums.sum() / weights.sum())
    if len(sums) < 2:
        return Estimate(value, None, None)
    drawn = rng.integers(0, len(sums), size=(num_resamples, len(sums)))
    ratios = sums[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))

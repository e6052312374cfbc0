"""The rules of the effective length as formulas, and how many samples they need.

    ruler:     low(L) >= 0.856
    relative:  d - sqrt((s(L) - low(L))^2 + (0.85 (high(S) - s(S)))^2) >= 0,    d = s(L) - 0.85 s(S)

s are scores with their intervals, L is the length that is judged and S the short one. A rule that no score can pass
with so few samples decides nothing, so whoever chooses a number of samples asks here.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Literal

from skipwise.records.stats import Estimate, wilson

Rule = Literal["ruler", "relative"]

RULER_THRESHOLD = 0.856
"""The mean score of Llama-2-7B (chat) at its own 4k tokens, which RULER takes for satisfactory."""

RELATIVE_SHARE = 0.85
"""The share of its own short score that a model has to keep, as NoLiMa asks."""


def passes(rule: Rule, score: Estimate, short: Estimate | None = None) -> bool:
    """Whether a score passes a rule for certain, by its lower 95% bound; one without an interval does not.

    Args:
        rule: which one.
        score: at the length that is judged.
        short: at the short length; the relative rule needs it.
    """
    if score.low is None:
        return False
    if rule == "ruler":
        return score.low >= RULER_THRESHOLD
    if short is None or short.high is None:
        return False
    margin = math.hypot(score.value - score.low, RELATIVE_SHARE * (short.high - short.value))
    return score.value - RELATIVE_SHARE * short.value >= margin


def fails(rule: Rule, score: Estimate, short: Estimate | None = None) -> bool:
    """Whether a score fails a rule for certain, by its upper 95% bound. Arguments are those of `passes`."""
    if score.high is None:
        return False
    if rule == "ruler":
        return score.high < RULER_THRESHOLD
    if short is None or short.low is None:
        return False
    margin = math.hypot(score.high - score.value, RELATIVE_SHARE * (short.value - short.low))
    return score.value - RELATIVE_SHARE * short.value < -margin


def above_chance(score: Estimate, chance: float) -> Estimate:
    """A score and its interval on the scale on which who guesses has 0, and who is always right has 1."""
    value, *ends = ((one - chance) / (1 - chance) if one is not None else None for one in score)
    return Estimate(value or 0.0, *ends)


def perfect(num_samples: Sequence[int], chances: Sequence[float] = ()) -> Estimate:
    """The mean over tasks whose samples are all right, each with this many, as `mean_scores` combines intervals.

    Args:
        num_samples: of each task.
        chances: score of a guesser in each task; none is 0 everywhere.
    """
    each = zip(num_samples, chances or [0.0] * len(num_samples), strict=True)
    below = math.hypot(*(1 - (above_chance(wilson(number, number), chance).low or 0.0) for number, chance in each))
    return Estimate(1.0, 1 - below / len(num_samples), 1.0)


@cache
def least_samples(num_tasks: int = 1, chances: tuple[float, ...] = ()) -> int:
    """The least number of samples of each task at each length at which a perfect score passes both rules.

    For the relative rule the short length has as many, and they are right, too: no other short score asks for more.
    `chances` are those of `perfect`.
    """

    def enough(number: int) -> bool:
        best = perfect([number] * num_tasks, chances)
        return passes("ruler", best) and passes("relative", best, best)

    return next(number for number in count(1) if enough(number))


def enough_trials(num_depths: int = 1, *, num_tasks: int = 1) -> int:
    """`least_samples`, rounded up to as many at each of `num_depths` depths."""
    return math.ceil(least_samples(num_tasks) / num_depths) * num_depths

"""The choice of an attention factor from what was measured of each: numbers in, one number out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipwise.evals.tasks.regression import paired_mean
from skipwise.records.stats import CONFIDENCE, Estimate, bootstrap_ratio, wilson

UNCHANGED = 1.0
"""The scale that leaves the model as it was trained."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorScores:
    """What was measured of one factor; what it was ruled out before is not there.

    Attributes:
        scale: the factor over the one that the model was trained with.
        attention_factor: the factor itself.
        nlls: by length in tokens, the mean NLL of each document's last tokens, in nats; the same documents for all.
        found: whether each passkey at the target was found; the same passkeys for all. None where none was asked.
        broken: what was wrong with the model's logits under this factor, if anything was.
    """

    scale: float
    attention_factor: float
    nlls: Mapping[int, Sequence[float]] = field(default_factory=dict)
    found: Sequence[bool] | None = None
    broken: str | None = None

    def log_perplexity(self, length: int) -> float:
        """Mean NLL at a length, in nats a token."""
        return float(np.mean(self.nlls[length]))

    @property
    def num_found(self) -> int:
        """Passkeys found."""
        return sum(self.found or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which of the factors measured is chosen.

    1. A factor is kept while the perplexity at every shorter length is within `tolerance` of the unchanged model's, and
       that at the target within `tolerance` of the best among these.
    2. A change must have earned its place against no change, on the same inputs: it finds no fewer passkeys, and either
       measurably more (a one-sided sign test over the trials in which the two differ) or predicts the target's text
       measurably better (the 95% interval of the paired difference over documents lies below 0).
    3. Of the changes that are left, and no change if step 1 kept it, the one that finds most passkeys; of several, the
       nearest to 1, by ratio. None left: no change.

    So a choice is worse than no change in nothing but perplexity, and there by no more than the tolerance.

    Attributes:
        target: the longest length, in tokens.
        tolerance: relative, 0.03 for 3%.
    """

    target: int
    tolerance: float

    def keeps_short(self, scores: FactorScores, unchanged: FactorScores) -> bool:
        """Whether no shorter length that was measured lost more than the tolerance."""
        return scores.broken is None and all(
            self._within(scores.log_perplexity(length), unchanged.log_perplexity(length))
            for length in scores.nlls
            if length != self.target
        )

    def kept(self, measured: Sequence[FactorScores]) -> list[FactorScores]:
        """What step 1 leaves of factors whose perplexities are known, the unchanged one among them."""
        unchanged = _unchanged(measured)
        short = [one for one in measured if self.keeps_short(one, unchanged) and self.target in one.nlls]
        best = min(one.log_perplexity(self.target) for one in short)
        return [one for one in short if self._within(one.log_perplexity(self.target), best)]

    def choose(self, measured: Sequence[FactorScores]) -> FactorScores:
        """The choice; every factor that step 1 keeps, and the unchanged one, must have passkeys measured."""
        unchanged = _unchanged(measured)
        left = [one for one in self.kept(measured) if one is unchanged or self._earned(one, unchanged)]
        # By the logarithm, 1/1.1 is as near to 1 as 1.1.
        return min(left or [unchanged], key=lambda one: (-one.num_found, abs(math.log(one.scale)), one.scale))

    def verdict(self, scores: FactorScores, measured: Sequence[FactorScores]) -> str:
        """What the rule says of one factor, in a few words."""
        unchanged = _unchanged(measured)
        if scores.broken is not None:
            return scores.broken
        if not self.keeps_short(scores, unchanged):
            return f"over {self.tolerance:.0%} lost below the target"
        if scores not in self.kept(measured):
            return f"over {self.tolerance:.0%} off the best at the target"
        if scores is unchanged:
            return "as trained"
        if scores.num_found < unchanged.num_found:
            return "fewer passkeys"
        return "measurable gain" if self._earned(scores, unchanged) else "no measurable gain"

    def _within(self, log_perplexity: float, reference: float) -> bool:
        return log_perplexity <= reference + math.log1p(self.tolerance) + _ROUNDING

    def _earned(self, one: FactorScores, unchanged: FactorScores) -> bool:
        ratio = perplexity_ratio(one, unchanged, self.target)
        predicts_better = ratio.high is not None and ratio.high < 1
        more = finds_more(one.found or (), unchanged.found or ())
        return one.num_found >= unchanged.num_found and (more or predicts_better)


def _unchanged(measured: Sequence[FactorScores]) -> FactorScores:
    return next(one for one in measured if one.scale == UNCHANGED)


def finds_more(found: Sequence[bool], by_other: Sequence[bool]) -> bool:
    """Whether the first found measurably more of the same passkeys than the other: an exact one-sided sign test.

        sum over k >= wins of C(n, k) / 2^n <= 2.5%,    n = wins + losses

    Trials with the same outcome in both say nothing. Source: McNemar (1947), in its exact form.
    """
    wins = sum(one and not other for one, other in zip(found, by_other, strict=True))
    losses = sum(other and not one for one, other in zip(found, by_other, strict=True))
    trials = wins + losses
    tail = sum(math.comb(trials, k) for k in range(wins, trials + 1)) / 2**trials
    return tail <= (1 - CONFIDENCE) / 2


def perplexity(scores: FactorScores, length: int, rng: np.random.Generator) -> Estimate:
    """Perplexity at a length with its bootstrap interval over documents."""
    nlls = scores.nlls[length]
    return bootstrap_ratio(nlls, np.ones(len(nlls)), rng).exp()


def perplexity_ratio(scores: FactorScores, unchanged: FactorScores, length: int) -> Estimate:
    """Perplexity over the unchanged model's on the same documents, with Student's interval of the paired logarithm."""
    differences = np.asarray(scores.nlls[length]) - np.asarray(unchanged.nlls[length])
    return paired_mean(differences)[0].exp()


def scores_json(scores: FactorScores, measured: Sequence[FactorScores], rule: Rule, seed: int) -> dict[str, Any]:
    """One factor's scores with their 95% intervals, and what the rule says of it, as JSON values."""
    unchanged = _unchanged(measured)
    passkeys = None
    if scores.found is not None:
        share = wilson(scores.num_found, len(scores.found))
        passkeys = {"found": scores.num_found, "asked": len(scores.found), **share._asdict()}
    return {
        "scale": scores.scale,
        "attention_factor": scores.attention_factor,
        "perplexity": {
            str(length): {
                **perplexity(scores, length, np.random.default_rng(seed))._asdict(),
                "over_unchanged": perplexity_ratio(scores, unchanged, length)._asdict(),
            }
            for length in sorted(scores.nlls)
        },
        "passkeys": passkeys,
        "verdict": rule.verdict(scores, measured),
    }

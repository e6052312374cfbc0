"""Choose an attention factor from the scores of each candidate. This module runs no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipwise.evals.tasks.regression import paired_mean
from skipwise.records.stats import CONFIDENCE, Estimate, bootstrap_ratio, wilson

UNCHANGED = 1.0
"""The scale that leaves the trained model unchanged."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorScores:
    """The scores of one factor. Measurements after the one that excluded it are missing.

    Attributes:
        scale: the factor relative to the trained attention factor.
        nlls: for each length in tokens, the mean NLL of each document's last tokens, in nats. All factors use the same
            documents.
        found: whether each passkey at the target was found. All factors use the same passkeys. None if not measured.
        broken: why the model's logits cannot be used with this factor; None if they can.
    """

    scale: float
    attention_factor: float
    nlls: Mapping[int, Sequence[float]] = field(default_factory=dict)
    found: Sequence[bool] | None = None
    broken: str | None = None

    def log_perplexity(self, length: int) -> float:
        """Mean NLL at a length, in nats per token."""
        return float(np.mean(self.nlls[length]))

    @property
    def num_found(self) -> int:
        """Number of passkeys found."""
        return sum(self.found or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule that chooses among the measured factors.

    1. A factor is kept if its perplexity at every shorter length is within `tolerance` of the unchanged model's, and
       its perplexity at the target is within `tolerance` of the best of these factors.
    2. A changed factor must be measurably better than no change on the same inputs. It must find no fewer passkeys, and
       it must either find significantly more (one-sided sign test over the trials in which the two differ) or predict
       the text at the target significantly better (the 95% interval of the paired difference over documents is below
       0).
    3. Among the remaining changed factors, and no change if step 1 kept it, the factor that finds most passkeys is
       chosen; among equals, the one nearest to 1 by ratio. If no factor remains, nothing is changed.

    The chosen factor can therefore be worse than no change only in perplexity, and by no more than the tolerance.

    Attributes:
        target: the longest length, in tokens.
        tolerance: relative, 0.03 for 3%.
    """

    target: int
    tolerance: float

    def keeps_short(self, scores: FactorScores, unchanged: FactorScores) -> bool:
        """Whether perplexity is within the tolerance at every shorter length that was measured."""
        return scores.broken is None and all(
            self._within(scores.log_perplexity(length), unchanged.log_perplexity(length))
            for length in scores.nlls
            if length != self.target
        )

    def kept(self, measured: Sequence[FactorScores]) -> list[FactorScores]:
        """The factors that step 1 keeps. Perplexities must be measured, and the unchanged factor must be included."""
        unchanged = _unchanged(measured)
        short = [one for one in measured if self.keeps_short(one, unchanged) and self.target in one.nlls]
        best = min(one.log_perplexity(self.target) for one in short)
        return [one for one in short if self._within(one.log_perplexity(self.target), best)]

    def choose(self, measured: Sequence[FactorScores]) -> FactorScores:
        """The chosen factor. Passkeys must be measured for the unchanged factor and every factor that step 1 keeps."""
        unchanged = _unchanged(measured)
        left = [one for one in self.kept(measured) if one is unchanged or self._earned(one, unchanged)]
        # In logarithms, 1/1.1 is as near to 1 as 1.1.
        return min(left or [unchanged], key=lambda one: (-one.num_found, abs(math.log(one.scale)), one.scale))

    def verdict(self, scores: FactorScores, measured: Sequence[FactorScores]) -> str:
        """The rule's verdict on one factor, in a few words."""
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
    """Whether `found` has significantly more of the same passkeys than `by_other`: an exact one-sided sign test.

        sum over k >= wins of C(n, k) / 2^n <= 2.5%,    n = wins + losses

    Trials with the same outcome in both are ignored. Source: McNemar (1947), in its exact form.
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
    """Ratio of perplexity to the unchanged model's on the same documents, with Student's interval of paired logs."""
    differences = np.asarray(scores.nlls[length]) - np.asarray(unchanged.nlls[length])
    return paired_mean(differences)[0].exp()


def scores_json(scores: FactorScores, measured: Sequence[FactorScores], rule: Rule, seed: int) -> dict[str, Any]:
    """One factor's scores with their 95% intervals and the rule's verdict, as JSON values."""
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

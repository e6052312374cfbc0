"""The effective context length: how far a model's window may be relied upon, read off evaluation records.

    for each length: mean score over the retrieval tasks, with its interval
    effective = the largest length up to which every lower end is at least the threshold

Two rules set the threshold: RULER's fixed score, and a share of the model's own score at a short length.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from skipwise.errors import DataError
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate
from skipwise.report.quantities import TO
from skipwise.report.samples import RELATIVE_SHARE, RULER_THRESHOLD, Rule, fails, least_samples, passes, perfect
from skipwise.report.words import say
from skipwise.window import length_label

Outcome = Literal["holds", "holds as far as measured", "falls short", "not decided"]

RULER_TASKS = 13

_METRICS = ("score", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """Mean over the retrieval tasks at one length, 0 to 1, with its 95% interval.

    Attributes:
        length_tokens: input length.
        value: the mean, every task weighing the same.
        ci_low: lower end of its interval; None where some task has no interval.
        ci_high: upper end.
        tasks: what the mean is over, each with its kind where it has several.
        num_samples: prompts of each task, in the same order.
    """

    length_tokens: int
    value: float
    ci_low: float | None
    ci_high: float | None
    tasks: tuple[str, ...]
    num_samples: tuple[int, ...]

    @property
    def estimate(self) -> Estimate:
        """The mean and its interval."""
        return Estimate(self.value, self.ci_low, self.ci_high)

    @property
    def text(self) -> str:
        """`4k 93.1% (at least 91.0%)`."""
        low = "no interval" if self.ci_low is None else f"at least {self.ci_low:.1%}"
        return f"{length_label(self.length_tokens)} {self.value:.1%} ({low})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveLength:
    """How far the window holds under one rule.

    Attributes:
        rule: which one.
        advertised_tokens: the model's configured window.
        short_limit_tokens: the longest length whose score may be the short one.
        scores: the evidence, shortest length first.
    """

    rule: Rule
    advertised_tokens: int
    short_limit_tokens: int
    scores: Sequence[MeanScore]

    @property
    def effective_tokens(self) -> int:
        """The largest length up to which the score holds for certain; 0 where there is none."""
        return max((score.length_tokens for score in takewhile(self._holds_at, self.scores)), default=0)

    @property
    def measured_tokens(self) -> int:
        """The largest length measured."""
        return self.scores[-1].length_tokens

    @property
    def short(self) -> MeanScore | None:
        """The score at the shortest length, if that is short."""
        return self.scores[0] if self.scores[0].length_tokens <= self.short_limit_tokens else None

    @property
    def threshold(self) -> float | None:
        """The score to reach; None where the relative rule has no short score."""
        if self.rule == "ruler":
            return RULER_THRESHOLD
        return None if self.short is None else RELATIVE_SHARE * self.short.value

    @property
    def decided(self) -> bool:
        """Whether the rule has what it needs: a short score, and enough samples."""
        return self.threshold is not None and self.too_few is None

    @property
    def holds(self) -> bool:
        """Whether it reaches the advertised length."""
        return self.effective_tokens >= self.advertised_tokens

    @property
    def outcome(self) -> Outcome:
        """The verdict in a word or two; a length that was not measured does not count against the model."""
        if not self.decided:
            return "not decided"
        if self.holds:
            return "holds"
        return "holds as far as measured" if self.effective_tokens == self.measured_tokens else "falls short"

    @property
    def too_few(self) -> MeanScore | None:
        """The score at which the rule stops because of too few samples; else None.

        With so many samples no score could pass there, and this one does not fail for certain either.
        """
        if self.threshold is None or self.holds:
            return None
        beyond = next((score for score in self.scores if not self._holds_at(score)), None)
        if beyond is None or beyond.ci_low is None:
            return None
        short = self.short and self.short.estimate
        undecidable = not passes(self.rule, perfect(beyond.num_samples), short)
        return beyond if undecidable and not fails(self.rule, beyond.estimate, short) else None

    @property
    def line(self) -> str:
        """The verdict in one line."""
        (line,) = say(
            "effective.line",
            rule=self.rule,
            threshold=self.threshold,
            limit=self.short_limit_tokens,
            advertised=self.advertised_tokens,
            effective=self.effective_tokens,
            measured=self.measured_tokens,
            short=self.short,
            share=RELATIVE_SHARE,
            few=self.too_few,
            least=self.too_few and least_samples(len(self.too_few.tasks)),
        )
        return line

    def to_json(self) -> dict[str, Any]:
        """The verdict and its evidence, as JSON values."""
        names = ("outcome", "holds", "effective_tokens", "measured_tokens", "advertised_tokens", "threshold")
        of_score = ("length_tokens", "value", "ci_low", "ci_high")
        return {
            "verdict": self.rule,
            "decided": self.decided,
            **{name: getattr(self, name) for name in names},
            "tasks": list(self.scores[0].tasks),
            "basis": basis(self.scores),
            "mean_scores": [
                {name: getattr(score, name) for name in of_score} | {"num_samples": sum(score.num_samples)}
                for score in self.scores
            ],
        }

    def _holds_at(self, score: MeanScore) -> bool:
        short = self.short
        if score.value == 0:
            return False  # A model that never scores would keep its share of nothing.
        if self.rule == "relative" and score is short:
            return True
        return passes(self.rule, score.estimate, short and short.estimate)


def basis(scores: Sequence[MeanScore]) -> str:
    """What a verdict is over, in one line: tasks, prompts, and how far that is from RULER's own measurement."""
    tasks = scores[0].tasks
    counts = {count for score in scores for count in score.num_samples}
    (line,) = say(
        "effective.basis",
        tasks=tasks,
        prompts=TO.join(map(str, dict.fromkeys((min(counts), max(counts))))),
        is_ruler=len(tasks) == RULER_TASKS and all(task.startswith("ruler_") for task in tasks),
        count=RULER_TASKS,
        threshold=RULER_THRESHOLD,
    )
    return line


def short_limit(original_tokens: int, advertised_tokens: int) -> int:
    """The longest length, in tokens, that is short for a model: its original window, or half of one never extended."""
    return original_tokens if original_tokens < advertised_tokens else advertised_tokens // 2


def mean_scores(results: Iterable[EvalResult]) -> list[MeanScore]:
    """Mean over all retrieval tasks at each length, shortest first; the later of two equal measurements counts.

    The interval of the mean is combined from those of the tasks, which are independent:

        lower end = mean - sqrt(sum_i (value_i - ci_low_i)^2) / n,    upper end = mean + sqrt(...) / n likewise

    Args:
        results: evaluation records of one model; those that are no score over a whole input are skipped.

    Raises:
        DataError: there is no score, or lengths were measured with different tasks.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008): limits of a sum by
        recovering each part's variance from its own limits.
    """
    by_length: dict[int, dict[tuple, EvalResult]] = defaultdict(dict)
    for result in results:
        if is_score(result):
            by_length[result.length_tokens][result.task, result.details.get("kind")] = result
    if not by_length:
        raise DataError(
            "no record has a retrieval score; measure passkey, needles or RULER tasks first", page="unusable-results"
        )
    _require_same_tasks(by_length)
    return [_mean_score(length, list(records.values())) for length, records in sorted(by_length.items())]


def is_score(record: EvalResult) -> bool:
    """Whether a record is a retrieval score over a whole input; a control without the context is none."""
    is_control = str(record.details.get("kind", "")).endswith("_control")
    return record.metric in _METRICS and record.is_whole and not is_control


def effective_length(
    results: Iterable[EvalResult], *, advertised_tokens: int, original_tokens: int, rule: Rule = "ruler"
) -> EffectiveLength:
    """The largest length up to which the score holds, by its lower 95% bound.

    The formulas are those of `samples`. The relative rule holds the model to its own score at the shortest length S
    measured, if that is a short one. Its bound is that of a difference of two measured scores, because the short one is
    as uncertain as the others. S itself holds. A length without an interval does not, nor does a score of 0.

    Args:
        results: evaluation records of one model, of the same tasks at every length.
        advertised_tokens: the model's configured window.
        original_tokens: the window that it was pre-trained for; the advertised one where it was never extended. A short
            length is at most that, or half of the advertised one where it was never extended.
        rule: which one.

    Raises:
        DataError: as `mean_scores`.

    Source: RULER, arXiv 2404.06654, section 4 (there the mean itself); NoLiMa, arXiv 2502.05167, section 4 (there the
        best of three lengths up to 1k is the short score, and the mean itself is compared). Bound of the difference:
        Zou and Donner (2008), as in `mean_scores`.
    """
    return EffectiveLength(
        rule=rule,
        advertised_tokens=advertised_tokens,
        short_limit_tokens=short_limit(original_tokens, advertised_tokens),
        scores=mean_scores(results),
    )


def _mean_score(length: int, records: Sequence[EvalResult]) -> MeanScore:
    value = math.fsum(record.value for record in records) / len(records)
    below = _combined([None if record.ci_low is None else record.value - record.ci_low for record in records])
    above = _combined([None if record.ci_high is None else record.ci_high - record.value for record in records])
    return MeanScore(
        length_tokens=length,
        value=value,
        ci_low=None if below is None else value - below,
        ci_high=None if above is None else value + above,
        tasks=tuple(" ".join(filter(None, (record.task, record.details.get("kind")))) for record in records),
        num_samples=tuple(record.num_samples for record in records),
    )


def _combined(reaches: Sequence[float | None]) -> float | None:
    """Distance of an end of a mean's interval from the mean, from the same distances of its parts."""
    known = [reach for reach in reaches if reach is not None]
    return math.hypot(*known) / len(reaches) if len(known) == len(reaches) else None


def _require_same_tasks(by_length: Mapping[int, Mapping[tuple, EvalResult]]) -> None:
    shortest = min(by_length)
    for length, records in by_length.items():
        if differing := {name for name, _ in records.keys() ^ by_length[shortest].keys()}:
            raise DataError(
                f"{', '.join(sorted(differing))} was not measured at both {shortest} and {length} tokens; means over "
                "different tasks do not compare: measure the same tasks at every length",
                page="unusable-results",
            )

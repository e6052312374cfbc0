"""The effective context length: how far a model's window may be relied upon, read off evaluation records.

    for each length: mean score over the retrieval tasks, with its interval
    effective = the largest length up to which every lower end is at least the threshold

Two rules set the threshold: RULER's fixed score, and a share of the model's own score at a short length. The reasoning
tasks are a group of their own, with a mean and an effective length of their own: who finds things may still not reason
over them. Of their scores, what is above chance counts, since a model that guesses would keep its share of chance.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

from skipwise.errors import DataError
from skipwise.evals.catalogue import TASK_GROUPS
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate
from skipwise.report.quantities import TO
from skipwise.report.samples import (
    RELATIVE_SHARE,
    RULER_THRESHOLD,
    Rule,
    above_chance,
    fails,
    least_samples,
    passes,
    perfect,
)
from skipwise.report.words import say
from skipwise.window import length_label

Outcome = Literal["holds", "holds as far as measured", "falls short", "not decided"]

Group = Literal["retrieval", "reasoning"]
"""Tasks that have a mean of their own."""
GROUPS: tuple[Group, ...] = get_args(Group)

RULER_TASKS = 13

_METRICS = ("score", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """Mean over the tasks of a group at one length, with its 95% interval; 1 is always right.

    Attributes:
        length_tokens: input length.
        value: the mean, every task weighing the same.
        ci_low: lower end of its interval; None where some task has no interval.
        ci_high: upper end.
        tasks: what the mean is over, each with its kind where it has several.
        num_samples: prompts of each task, in the same order.
        chances: score of a guesser in each task that the mean takes for 0.
    """

    length_tokens: int
    value: float
    ci_low: float | None
    ci_high: float | None
    tasks: tuple[str, ...]
    num_samples: tuple[int, ...]
    chances: tuple[float, ...] = ()

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
        group: the tasks that they are of.
    """

    rule: Rule
    advertised_tokens: int
    short_limit_tokens: int
    scores: Sequence[MeanScore]
    group: Group = "retrieval"

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
        """The score to reach; None where the relative rule has no short score, or only one of guessing."""
        if self.rule == "ruler":
            return RULER_THRESHOLD
        return None if self.short is None or self.guesses else RELATIVE_SHARE * self.short.value

    @property
    def guesses(self) -> bool:
        """Whether the reasoning score is not shown to be above chance even at the short length: it tells nothing."""
        low = self.short and self.short.ci_low
        return self.group == "reasoning" and low is not None and low <= 0

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
        undecidable = not passes(self.rule, perfect(beyond.num_samples, beyond.chances), short)
        return beyond if undecidable and not fails(self.rule, beyond.estimate, short) else None

    @property
    def line(self) -> str:
        """The verdict in one line."""
        (line,) = say(
            "effective.line",
            rule=self.rule,
            group=self.group,
            guesses=self.guesses,
            threshold=self.threshold,
            limit=self.short_limit_tokens,
            advertised=self.advertised_tokens,
            effective=self.effective_tokens,
            measured=self.measured_tokens,
            short=self.short,
            share=RELATIVE_SHARE,
            few=self.too_few,
            least=self.too_few and least_samples(len(self.too_few.tasks), self.too_few.chances),
        )
        return line

    def to_json(self) -> dict[str, Any]:
        """The verdict and its evidence, as JSON values."""
        names = ("outcome", "holds", "effective_tokens", "measured_tokens", "advertised_tokens", "threshold")
        of_score = ("length_tokens", "value", "ci_low", "ci_high")
        return {
            "verdict": self.rule,
            "group": self.group,
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
        if score.value <= 0 or (self.rule == "relative" and self.guesses):
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
        group=group_of(tasks[0].split()[0]),
        is_ruler=len(tasks) == RULER_TASKS and all(task.startswith("ruler_") for task in tasks),
        count=RULER_TASKS,
        threshold=RULER_THRESHOLD,
    )
    return line


def short_limit(original_tokens: int, advertised_tokens: int) -> int:
    """The longest length, in tokens, that is short for a model: its original window, or half of one never extended."""
    return original_tokens if original_tokens < advertised_tokens else advertised_tokens // 2


def mean_scores(results: Iterable[EvalResult], group: Group = "retrieval") -> list[MeanScore]:
    """Mean over all tasks of a group at each length, shortest first; the later of two equal measurements counts.

    Of a reasoning task, what is above chance counts: `(score - chance) / (1 - chance)`.

    The interval of the mean is combined from those of the tasks, which are independent:

        lower end = mean - sqrt(sum_i (value_i - ci_low_i)^2) / n,    upper end = mean + sqrt(...) / n likewise

    Args:
        results: evaluation records of one model; those that are no score over a whole input are skipped.
        group: which tasks.

    Raises:
        DataError: there is no score, or lengths were measured with different tasks.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008): limits of a sum by
        recovering each part's variance from its own limits.
    """
    by_length: dict[int, dict[tuple, EvalResult]] = defaultdict(dict)
    for result in results:
        if is_score(result) and group_of(result.task) == group:
            by_length[result.length_tokens][result.task, result.details.get("kind")] = result
    if not by_length:
        tasks = "passkey, needles or RULER" if group == "retrieval" else "reasoning"
        raise DataError(f"no record has a {group} score; measure {tasks} tasks first", page="unusable-results")
    _require_same_tasks(by_length)
    return [_mean_score(length, list(records.values())) for length, records in sorted(by_length.items())]


def group_of(task: str) -> Group:
    """The group that a task with a score is of."""
    return "reasoning" if task in TASK_GROUPS["reasoning"] else "retrieval"


def chance_of(record: EvalResult) -> float:
    """The score of a guesser that a mean takes for 0: 0 of tasks that are not of the reasoning group."""
    return float(record.details.get("chance", 0.0)) if group_of(record.task) == "reasoning" else 0.0


def is_score(record: EvalResult) -> bool:
    """Whether a record is a score of answers over a whole input; a control without the context is none."""
    is_control = str(record.details.get("kind", "")).endswith("_control")
    return record.metric in _METRICS and record.is_whole and not is_control


def effective_length(
    results: Iterable[EvalResult],
    *,
    advertised_tokens: int,
    original_tokens: int,
    rule: Rule = "ruler",
    group: Group = "retrieval",
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
        group: the tasks that count.

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
        scores=mean_scores(results, group),
        group=group,
    )


def _mean_score(length: int, records: Sequence[EvalResult]) -> MeanScore:
    chances = tuple(map(chance_of, records))
    raw = [Estimate(record.value, record.ci_low, record.ci_high) for record in records]
    scores = [above_chance(score, chance) if chance else score for score, chance in zip(raw, chances, strict=True)]
    value = math.fsum(score.value for score in scores) / len(scores)
    below = _combined([None if score.low is None else score.value - score.low for score in scores])
    above = _combined([None if score.high is None else score.high - score.value for score in scores])
    return MeanScore(
        length_tokens=length,
        value=value,
        ci_low=None if below is None else value - below,
        ci_high=None if above is None else value + above,
        tasks=tuple(" ".join(filter(None, (record.task, record.details.get("kind")))) for record in records),
        num_samples=tuple(record.num_samples for record in records),
        chances=chances,
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

"""The effective context length: how far a model's window may be relied upon, read off evaluation records.

    for each length: mean score over the retrieval tasks, with its interval
    effective = the largest length up to which every lower end is at least the threshold

Two rules set the threshold: RULER's fixed score, and a share of the model's own score at a short length.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skipwise.errors import DataError
from skipwise.records.results import EvalResult
from skipwise.report.quantities import TO
from skipwise.report.records import is_whole
from skipwise.window import length_label

Rule = Literal["ruler", "relative"]

Outcome = Literal["holds", "holds as far as measured", "falls short", "not decided"]

RULER_THRESHOLD = 0.856
"""The mean score of Llama-2-7B (chat) at its own 4k tokens, which RULER takes for satisfactory."""

RULER_TASKS = 13

RELATIVE_SHARE = 0.85
"""The share of its own short score that a model has to keep, as NoLiMa asks."""

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
    def text(self) -> str:
        """`4k 93.1% (at least 91.0%)`."""
        low = "no interval" if self.ci_low is None else f"at least {self.ci_low:.1%}"
        return f"{length_label(self.length_tokens)} {self.value:.1%} ({low})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveLength:
    """How far the window holds under one rule.

    Attributes:
        rule: which one.
        effective_tokens: largest length up to which the score holds; 0 where it holds at none, and where the rule has
            nothing to go by.
        advertised_tokens: the model's configured window.
        short_limit_tokens: the longest length whose score may be the short one.
        scores: what it is read from, shortest length first.
    """

    rule: Rule
    effective_tokens: int
    advertised_tokens: int
    short_limit_tokens: int
    scores: Sequence[MeanScore]

    @property
    def measured_tokens(self) -> int:
        """The largest length measured."""
        return self.scores[-1].length_tokens

    @property
    def threshold(self) -> float | None:
        """The score to reach; None where the rule has no short score to go by."""
        if self.rule == "ruler":
            return RULER_THRESHOLD
        short = _short_score(self.scores, self.short_limit_tokens)
        return None if short is None else RELATIVE_SHARE * short.value

    @property
    def decided(self) -> bool:
        """Whether the rule has what it needs."""
        return self.threshold is not None

    @property
    def holds(self) -> bool:
        """Whether it reaches the advertised length."""
        return self.effective_tokens >= self.advertised_tokens

    @property
    def outcome(self) -> Outcome:
        """The verdict in a word or two: lengths that were not measured are held against nobody."""
        if not self.decided:
            return "not decided"
        if self.holds:
            return "holds"
        return "holds as far as measured" if self.effective_tokens == self.measured_tokens else "falls short"

    @property
    def too_few(self) -> MeanScore | None:
        """The score at which the rule stops though every answer is right, as so few tell too little; else None."""
        beyond = next((score for score in self.scores if score.length_tokens > self.effective_tokens), None)
        return beyond if self.decided and beyond and beyond.value == 1.0 and beyond.ci_low is not None else None

    @property
    def line(self) -> str:
        """The verdict in one line."""
        advertised = length_label(self.advertised_tokens)
        if self.threshold is None:
            return (
                "effective context length not decided under the relative rule: no short score, measure a length of "
                f"at most {length_label(self.short_limit_tokens)} too; advertised {advertised}"
            )
        found = length_label(self.effective_tokens) if self.effective_tokens else "none"
        measured = self.measured_tokens
        extent = f", measured to {length_label(measured)} only" if measured < self.advertised_tokens else ""
        if self.rule == "ruler":
            rule = f"RULER's rule: lower 95% bound of the mean score at least {self.threshold:.1%}"
        else:
            short = self.scores[0]
            rule = (
                f"the relative rule: mean score at least {RELATIVE_SHARE:.0%} of its own {short.value:.1%} at "
                f"{length_label(short.length_tokens)}, by the lower 95% bound of their difference"
            )
        few = f"; all is right at {self.too_few.text}: measure more samples" if self.too_few else ""
        return f"effective context length {found} under {rule}; advertised {advertised}{extent}{few}"

    def to_json(self) -> dict[str, Any]:
        """The verdict and what it rests on, as JSON values."""
        return {
            "verdict": self.rule,
            "decided": self.decided,
            "outcome": self.outcome,
            "holds": self.holds,
            "effective_tokens": self.effective_tokens,
            "measured_tokens": self.measured_tokens,
            "advertised_tokens": self.advertised_tokens,
            "threshold": self.threshold,
            "tasks": list(self.scores[0].tasks),
            "basis": basis(self.scores),
            "mean_scores": [
                {
                    "length_tokens": score.length_tokens,
                    "value": score.value,
                    "ci_low": score.ci_low,
                    "ci_high": score.ci_high,
                    "num_samples": sum(score.num_samples),
                }
                for score in self.scores
            ],
        }


def basis(scores: Sequence[MeanScore]) -> str:
    """What a verdict is over, in one line: tasks, prompts, and how far that is from RULER's own measurement."""
    tasks = scores[0].tasks
    counts = {count for score in scores for count in score.num_samples}
    prompts = str(min(counts)) if len(counts) == 1 else f"{min(counts)}{TO}{max(counts)}"
    over = f"over {len(tasks)} task{'s' if len(tasks) > 1 else ''} x {prompts} prompts a length"
    if len(tasks) == RULER_TASKS and all(task.startswith("ruler_") for task in tasks):
        return (
            f"{over}: RULER's {RULER_TASKS} tasks in skipwise's own words, where {RULER_THRESHOLD:.1%} is Llama-2-7B's "
            "score with RULER's"
        )
    return (
        f"{over}: {', '.join(tasks)}; these are not RULER's {RULER_TASKS} tasks, on which Llama-2-7B scored its "
        f"{RULER_THRESHOLD:.1%}"
    )


def short_limit(original_tokens: int, advertised_tokens: int) -> int:
    """The longest length, in tokens, that is short for a model: its original window, or half of one never extended."""
    return original_tokens if original_tokens < advertised_tokens else advertised_tokens // 2


def mean_scores(results: Iterable[EvalResult]) -> list[MeanScore]:
    """Mean over all retrieval tasks at each length, shortest first; of what was measured twice the later counts.

    The interval of the mean is put together from those of the tasks (they are independent):

        lower end = mean - sqrt(sum_i (value_i - ci_low_i)^2) / n,    upper end = mean + sqrt(...) / n likewise

    Args:
        results: evaluation records of one model; those that are no score over a whole input are passed over.

    Raises:
        DataError: when there is no score, or lengths were measured with different tasks.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008): limits of a sum by
        recovering each part's variance from its own limits.
    """
    by_length: dict[int, dict[tuple, EvalResult]] = defaultdict(dict)
    for result in results:
        if is_score(result):
            by_length[result.length_tokens][result.task, result.details.get("kind")] = result
    if not by_length:
        raise DataError("no record has a retrieval score; measure passkey, needles or RULER tasks first")
    _require_same_tasks(by_length)
    return [_mean_score(length, list(records.values())) for length, records in sorted(by_length.items())]


def is_score(record: EvalResult) -> bool:
    """Whether a record is a retrieval score over a whole input; what a control scores without the context is none."""
    is_control = str(record.details.get("kind", "")).endswith("_control")
    return record.metric in _METRICS and is_whole(record) and not is_control


def effective_length(
    results: Iterable[EvalResult], *, advertised_tokens: int, original_tokens: int, rule: Rule = "ruler"
) -> EffectiveLength:
    """The largest length up to which the score holds, by its lower 95% bound.

        ruler:     ci_low(L) >= 0.856
        relative:  d - sqrt((s(L) - ci_low(L))^2 + (0.85 (ci_high(S) - s(S)))^2) >= 0,    d = s(L) - 0.85 s(S)

    The relative rule holds the model to its own score at the shortest length S measured, if that is a short one. Its
    bound is that of a difference of two measured scores, for the short one is as uncertain as the others. S itself
    holds. A length without an interval does not, nor does a score of 0.

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
    scores = mean_scores(results)
    limit = short_limit(original_tokens, advertised_tokens)
    short = _short_score(scores, limit)
    effective = 0
    for score in scores:
        if score.value == 0:
            # A model that never scores would keep all of its nothing.
            break
        if rule == "ruler":
            holds = score.ci_low is not None and score.ci_low >= RULER_THRESHOLD
        else:
            holds = short is not None and (score is short or _keeps_share(score, short))
        if not holds:
            break
        effective = score.length_tokens
    return EffectiveLength(
        rule=rule,
        effective_tokens=effective,
        advertised_tokens=advertised_tokens,
        short_limit_tokens=limit,
        scores=scores,
    )


def _short_score(scores: Sequence[MeanScore], limit_tokens: int) -> MeanScore | None:
    """The score at the shortest length, if that is short."""
    return scores[0] if scores[0].length_tokens <= limit_tokens else None


def _keeps_share(score: MeanScore, short: MeanScore) -> bool:
    if score.ci_low is None or short.ci_high is None:
        return False
    difference = score.value - RELATIVE_SHARE * short.value
    return difference >= math.hypot(score.value - score.ci_low, RELATIVE_SHARE * (short.ci_high - short.value))


def _mean_score(length: int, records: Sequence[EvalResult]) -> MeanScore:
    value = math.fsum(record.value for record in records) / len(records)
    below = _reach([None if record.ci_low is None else record.value - record.ci_low for record in records])
    above = _reach([None if record.ci_high is None else record.ci_high - record.value for record in records])
    return MeanScore(
        length_tokens=length,
        value=value,
        ci_low=None if below is None else value - below,
        ci_high=None if above is None else value + above,
        tasks=tuple(" ".join(filter(None, (record.task, record.details.get("kind")))) for record in records),
        num_samples=tuple(record.num_samples for record in records),
    )


def _reach(reaches: Sequence[float | None]) -> float | None:
    """How far an end of the interval of a mean is from it, from how far those of its parts are."""
    known = [reach for reach in reaches if reach is not None]
    return math.hypot(*known) / len(reaches) if len(known) == len(reaches) else None


def _require_same_tasks(by_length: Mapping[int, Mapping[tuple, EvalResult]]) -> None:
    shortest = min(by_length)
    for length, records in by_length.items():
        if differing := {name for name, _ in records.keys() ^ by_length[shortest].keys()}:
            raise DataError(
                f"{', '.join(sorted(differing))} was not measured at both {shortest} and {length} tokens; means over "
                "different tasks do not compare: measure the same tasks at every length"
            )

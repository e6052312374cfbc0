"""The effective context length: how far a model's window may be relied upon, read off evaluation records.

    for each length: mean score over the retrieval tasks, with its interval
    effective = the largest length up to which every lower end is at least the threshold

Two rules set the threshold: RULER's fixed score, and a share of the model's own score at its shortest length.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skipwise.errors import DataError
from skipwise.report.records import Record, is_whole, length_label

Rule = Literal["ruler", "relative"]

RULER_THRESHOLD = 0.856
"""The mean score of Llama-2-7B (chat) at its own 4k tokens, which RULER takes for satisfactory."""

RELATIVE_SHARE = 0.85
"""The share of its own short score that a model has to keep, as NoLiMa asks."""

_METRICS = ("score", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """Mean over the retrieval tasks at one length, 0 to 1, with the lower end of its 95% interval.

    Attributes:
        length_tokens: input length.
        value: the mean, every task weighing the same.
        ci_low: lower end of its interval; None where some task has no interval.
        num_tasks: tasks in the mean.
    """

    length_tokens: int
    value: float
    ci_low: float | None
    num_tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveLength:
    """How far the window holds under one rule.

    Attributes:
        rule: which one.
        threshold: the score that the lower end has to reach.
        effective_tokens: largest length up to which all do; 0 where not even the shortest does.
        measured_tokens: largest length measured.
        advertised_tokens: the model's configured window.
        scores: what it is read from, shortest length first.
    """

    rule: Rule
    threshold: float
    effective_tokens: int
    measured_tokens: int
    advertised_tokens: int
    scores: Sequence[MeanScore]

    @property
    def holds(self) -> bool:
        """Whether it reaches the advertised length."""
        return self.effective_tokens >= self.advertised_tokens

    @property
    def line(self) -> str:
        """The verdict in one line."""
        name = {"ruler": "RULER's rule", "relative": f"the relative rule ({RELATIVE_SHARE:.0%} of its own short score)"}
        found = length_label(self.effective_tokens) if self.effective_tokens else "none"
        advertised, measured = length_label(self.advertised_tokens), length_label(self.measured_tokens)
        beyond = f", measured to {measured} only" if self.measured_tokens < self.advertised_tokens else ""
        return (
            f"effective context length {found} under {name[self.rule]}: lower 95% bound of the mean score at least "
            f"{self.threshold:.1%}; advertised {advertised}{beyond}"
        )


def mean_scores(results: Iterable[Record]) -> list[MeanScore]:
    """Mean over all retrieval tasks at each length, shortest first; of what was measured twice the later counts.

    The interval of the mean is put together from those of the tasks (they are independent):

        lower end = mean - sqrt(sum_i (value_i - ci_low_i)^2) / n

    Args:
        results: evaluation records of one model; those that are no score over a whole input are passed over.

    Raises:
        DataError: when there is no score, or lengths were measured with different tasks.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008): limits of a sum by
    recovering each part's variance from its own limits.
    """
    by_length: dict[int, dict[tuple, Record]] = defaultdict(dict)
    for result in results:
        is_control = str(result.details.get("kind", "")).endswith("_control")
        if result.metric in _METRICS and is_whole(result) and not is_control:
            by_length[result.length_tokens][result.task, result.details.get("kind")] = result
    if not by_length:
        raise DataError("no record has a retrieval score; measure passkey, needles or RULER tasks first")
    _require_same_tasks(by_length)
    scores = []
    for length, records in sorted(by_length.items()):
        drops = [None if r.ci_low is None else r.value - r.ci_low for r in records.values()]
        value = math.fsum(record.value for record in records.values()) / len(records)
        spread = None if None in drops else math.sqrt(math.fsum(drop**2 for drop in drops if drop is not None))
        low = None if spread is None else value - spread / len(records)
        scores.append(MeanScore(length_tokens=length, value=value, ci_low=low, num_tasks=len(records)))
    return scores


def effective_length(results: Iterable[Record], advertised_tokens: int, rule: Rule = "ruler") -> EffectiveLength:
    """The largest length up to which the score holds, by its lower 95% bound.

    Args:
        results: evaluation records of one model, of the same tasks at every length.
        advertised_tokens: the model's configured window.
        rule: `ruler`: the score is at least `RULER_THRESHOLD`; `relative`: at least `RELATIVE_SHARE` of the model's
            own score at the shortest length measured. A length without an interval does not hold.

    Raises:
        DataError: as `mean_scores`.

    Source: RULER, arXiv 2404.06654, section 4 (there the mean itself); NoLiMa, arXiv 2502.05167, section 4 (there the
    best of three lengths up to 1k is the short score).
    """
    scores = mean_scores(results)
    threshold = RULER_THRESHOLD if rule == "ruler" else RELATIVE_SHARE * scores[0].value
    effective = 0
    for score in scores:
        # A model that never scores would keep all of its nothing.
        if score.ci_low is None or score.ci_low < threshold or score.value == 0:
            break
        effective = score.length_tokens
    return EffectiveLength(
        rule=rule,
        threshold=threshold,
        effective_tokens=effective,
        measured_tokens=scores[-1].length_tokens,
        advertised_tokens=advertised_tokens,
        scores=scores,
    )


def _require_same_tasks(by_length: Mapping[int, Mapping[tuple, Record]]) -> None:
    shortest = min(by_length)
    for length, records in by_length.items():
        if differing := {name for name, _ in records.keys() ^ by_length[shortest].keys()}:
            raise DataError(
                f"{', '.join(sorted(differing))} was not measured at both {shortest} and {length} tokens; means over "
                "different tasks do not compare: measure the same tasks at every length"
            )

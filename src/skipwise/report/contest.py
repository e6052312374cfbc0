"""Who is decided about, and what they answered: base, interpolation only and the extended model, by length.

Answers are counted over all kinds of one task: the suite of the user's own documents if it was measured, else hidden
lines, hidden keys, RULER. Differences are paired by prompt where the evidence has pairs, else those of two independent
shares.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate, wilson
from skipwise.report.effective import chance_of, is_score
from skipwise.report.evidence import PASSKEY, PERPLEXITY, Arm, Evidence, Measure
from skipwise.report.samples import above_chance, perfect

TASKS = ("suite", "needles", PASSKEY.task, "ruler", "reasoning")
"""What questions are counted of, the most telling first."""

LEAST_SHARE = 0.3
"""The share that the base must answer within its own window for questions to tell anything."""

_UNTRAINED_NAMES = ("interpolation-only", "interpolation only")
_MOST_SAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many questions were answered rightly; graded answers count as their grades.

    Attributes:
        right: sum of the grades.
        of: number of questions.
        chance: the share that a guesser answers and that counts as none, of reasoning questions.
    """

    right: float
    of: int
    chance: float = 0.0

    @property
    def rate(self) -> float:
        """The share, whatever chance is."""
        return min(self.right, self.of) / self.of

    @property
    def share(self) -> Estimate:
        """The share with Wilson's interval; of reasoning questions, what is above chance."""
        return above_chance(wilson(min(self.right, self.of), self.of), self.chance)

    @property
    def perfect(self) -> Estimate:
        """The share if all were right."""
        return perfect([self.of], [self.chance])

    @property
    def number(self) -> str:
        """`18`, or `18.5` of graded answers."""
        return f"{self.right:.0f}" if math.isclose(self.right, round(self.right), abs_tol=0.01) else f"{self.right:.1f}"

    @property
    def text(self) -> str:
        """`18 of 20`."""
        return f"{self.number} of {self.of}"


def minus(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two independent estimates.

    Source: Newcombe, "Interval estimation for the difference between independent proportions" (1998), method 10, where
        both are shares with Wilson's intervals.
    """
    value = first.value - second.value
    if None in (first.low, first.high, second.low, second.high):
        return Estimate(value, None, None)
    below = math.hypot(first.value - first.low, second.high - second.value)  # type: ignore[operator]
    above = math.hypot(first.high - first.value, second.value - second.low)  # type: ignore[operator]
    return Estimate(value, value - below, value + above)


def samples_to_tell(better: float, worse: float) -> int | None:
    """The least number of questions at which these two shares, each over as many, are told apart; None: none does."""
    if better <= worse:
        return None
    found = (
        number
        for number in range(2, _MOST_SAMPLES)
        if (minus(wilson(better * number, number), wilson(worse * number, number)).low or 0.0) > 0
    )
    return next(found, None)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Three arms of some evidence, the questions that they were asked, and how they compare.

    Attributes:
        evidence: all of it.
        base: the unchanged model; None where it was not measured.
        interpolated: the base under the interpolation, untrained; None where it was not measured.
        extended: the trained model; of several the one that answers most at the target, and of these the one that
            predicts text best; None where none was measured.
        tried: how many trained models were measured.
    """

    evidence: Evidence
    base: Arm | None
    interpolated: Arm | None
    extended: Arm | None
    tried: int

    @classmethod
    def of(cls, evidence: Evidence) -> "Contest | None":
        """The contest in some evidence; None where nothing tells who was extended."""
        base = evidence.base
        interpolated = next((arm for arm in evidence.arms if _is_interpolated(evidence, arm)), None)
        others = [arm for arm in evidence.arms if arm is not base and arm is not interpolated]
        compared = evidence.compared
        trained = [arm for arm in others if compared[arm.name].trained] if compared else others
        if compared:
            if evidence.pilot is None and not any(arm.trained for arm in compared.values()):
                return None
        elif base is None or len(trained) != 1:
            return None
        target = evidence.advertised_tokens
        extended = min(trained, key=lambda arm: _worth(arm, target, evidence.perplexity), default=None)
        return cls(evidence=evidence, base=base, interpolated=interpolated, extended=extended, tried=len(trained))

    @property
    def target(self) -> int:
        """The window that is decided about, in tokens."""
        return self.evidence.pilot.target_tokens if self.evidence.pilot else self.evidence.advertised_tokens

    @cached_property
    def task(self) -> str | None:
        """What questions are counted of; None where the extended model was asked none.

        Questions that the base cannot answer even within its own window tell nothing, so others come first.
        """
        arms = [self.extended] if self.extended else [arm for arm in (self.interpolated, self.base) if arm]
        asked = [task for task in TASKS for arm in arms if counts(arm, task)]
        return next((task for task in asked if self.unable(task) is None), asked[0] if asked else None)

    def unable(self, task: str) -> Count | None:
        """What the base answers within its window, if that is so little that questions of this task tell nothing."""
        found = counts(self.base, task) if self.base else {}
        within = [length for length in found if length <= self.evidence.original_tokens]
        count = found[max(within)] if within else None
        return count if count and count.share.value < LEAST_SHARE else None

    @cached_property
    def longest(self) -> int | None:
        """The longest length up to the target at which the extended model was asked."""
        found = counts(self.extended, self.task) if self.extended else {}
        return max((length for length in found if length <= self.target), default=None)

    @cached_property
    def short(self) -> int | None:
        """The longest length within the original window at which the base was asked."""
        found = counts(self.base, self.task) if self.base else {}
        return max((length for length in found if length <= self.evidence.original_tokens), default=None)

    def count(self, arm: Arm | None, length: int | None) -> Count | None:
        """How many questions of a length an arm answered, of the kinds that all were asked; None: it was not asked."""
        found = {} if arm is None or length is None else self._asked_of_all(arm, length)
        return _count(list(found.values())) if found else None

    def _asked_of_all(self, arm: Arm, length: int) -> dict[Measure, EvalResult]:
        """An arm's scores at a length, of the kinds that every arm has that was asked there at all.

        A pilot may leave a kind out in its later arms.
        """
        arms = [one for one in (self.base, self.interpolated, self.extended) if one is not None]
        asked = [found for one in arms if (found := _scores(one, self.task).get(length))]
        common = set.intersection(*map(set, asked)) if asked else set()
        own = _scores(arm, self.task).get(length, {})
        return {measure: record for measure, record in own.items() if measure in common}

    def gain(self, over: Arm | None, length: int | None) -> Estimate | None:
        """How many more shares of the questions the extended model answers than another arm; None: not measured.

        Kinds weigh by their number of questions. Limits of the sum are combined from those of each kind, as in
        `effective.mean_scores`.
        """
        if over is None or self.extended is None or length is None:
            return None
        ours, theirs = (self._asked_of_all(arm, length) for arm in (self.extended, over))
        if not ours or ours.keys() != theirs.keys():
            return None
        total = sum(record.num_samples for record in ours.values())
        parts = [
            (record.num_samples / total, self.difference(over, record, theirs[measure]))
            for measure, record in ours.items()
        ]
        value = math.fsum(weight * part.value for weight, part in parts)
        if any(part.low is None or part.high is None for _, part in parts):
            return Estimate(value, None, None)
        below = math.hypot(*(weight * (part.value - part.low) for weight, part in parts))  # type: ignore[operator]
        above = math.hypot(*(weight * (part.high - part.value) for weight, part in parts))  # type: ignore[operator]
        return Estimate(value, value - below, value + above)

    def difference(self, over: Arm, ours: EvalResult, theirs: EvalResult) -> Estimate:
        """The extended model's share of one measure minus another arm's, paired if the evidence has pairs."""
        kind = Measure.of(ours).part
        paired = self._paired(over, f"{ours.task} {kind}".strip(), ours.length_tokens)
        return paired or minus(*(wilson(one.value * one.num_samples, one.num_samples) for one in (ours, theirs)))

    def perplexity_ratio(self, over: Arm | None) -> tuple[int, Estimate] | None:
        """ln(extended / other) of perplexity at the longest length up to the target, and that length."""
        if over is None or self.extended is None:
            return None
        measure = self.evidence.perplexity
        ours, theirs = (arm.by_length(measure) for arm in (self.extended, over))
        length = max((at for at in ours.keys() & theirs.keys() if at <= self.target), default=None)
        if length is None:
            return None
        paired = self._paired(over, measure.task, length)
        return length, paired or minus(_log(ours[length]), _log(theirs[length]))

    def perplexity_beside_short(self, arm: Arm | None) -> Estimate | None:
        """ln of an arm's perplexity at its longest length up to the target over the base's within its own window."""
        if arm is None or self.base is None:
            return None
        theirs, ours = self.base.by_length(PERPLEXITY), arm.by_length(PERPLEXITY)
        short = max((length for length in theirs if length <= self.evidence.original_tokens), default=None)
        long = max((length for length in ours if length <= self.target), default=None)
        if short is None or long is None or long <= short:
            return None
        return minus(_log(ours[long]), _log(theirs[short]))

    def perplexity_rise(self) -> tuple[int, int, Estimate] | None:
        """ln of the extended model's perplexity at its longest length over that within the original window.

        Both lengths and the difference, paired by document where the evidence has pairs.
        """
        found = self.extended.by_length(PERPLEXITY) if self.extended else {}
        lengths = [length for length in found if length <= self.target]
        short = max((length for length in lengths if length <= self.evidence.original_tokens), default=None)
        if short is None or max(lengths) == short:
            return None
        rises = self.evidence.comparison.rises if self.evidence.comparison else ()
        names = {self.extended.name} if self.extended and short == min(lengths) else set()
        paired = [one for one in rises if one.arm in names and one.length_tokens == max(lengths)]
        unpaired = minus(_log(found[max(lengths)]), _log(found[short]))
        return short, max(lengths), _estimate(paired[0]) if paired else unpaired

    def fallen(self) -> Iterator[tuple[str, Arm, Count, Count, int]]:
        """Kinds of question that the extended model answers worse for certain: than whom, before, after, length."""
        for task, other in product(dict.fromkeys((self.task, "reasoning")), (self.base, self.interpolated)):
            if other is None or self.extended is None:
                continue
            for length, ours in _scores(self.extended, task).items():
                theirs = _scores(other, task).get(length, {})
                for measure in ours.keys() & theirs.keys():
                    found = self.difference(other, ours[measure], theirs[measure])
                    if found.high is not None and found.high < 0:
                        before, after = _count([theirs[measure]]), _count([ours[measure]])
                        kind = measure.task if task == "reasoning" else measure.part
                        yield kind.replace("_", " "), other, before, after, length

    def _paired(self, over: Arm, task: str, length: int) -> Estimate | None:
        """Extended minus other, from the paired differences of the evidence."""
        if self.extended is None:
            return None
        names = (self.extended.name, over.name)
        for one in self.evidence.differences:
            if one.task == task and one.length_tokens == length and {one.arm, one.reference} == {*names}:
                return _estimate(one.turned if one.reference == self.extended.name else one)
        return None


def counts(arm: Arm, task: str | None) -> dict[int, Count]:
    """How many questions of a task an arm answered, by length."""
    return {length: _count(list(records.values())) for length, records in sorted(_scores(arm, task).items())}


def _scores(arm: Arm, task: str | None) -> dict[int, dict[Measure, EvalResult]]:
    """Scores of a task, all its kinds, by length; the later of two equal measurements counts."""
    found: dict[int, dict[Measure, EvalResult]] = {}
    for record in arm.results:
        if task is not None and is_score(record) and (record.task == task or record.task.startswith(f"{task}_")):
            found.setdefault(record.length_tokens, {})[Measure.of(record)] = record
    return found


def _count(records: Sequence[EvalResult]) -> Count:
    return Count(
        right=math.fsum(record.value * record.num_samples for record in records),
        of=(number := sum(record.num_samples for record in records)),
        chance=math.fsum(chance_of(record) * record.num_samples for record in records) / number,
    )


def _worth(arm: Arm, target: int, measure: Measure) -> tuple[float, float]:
    """Orders trained arms, the best first: by questions at the longest length, then by perplexity there."""
    task = next((task for task in TASKS if counts(arm, task)), None)
    asked = {length: one for length, one in counts(arm, task).items() if length <= target}
    perplexities = arm.by_length(measure)
    share = asked[max(asked)].share.value if asked else 0.0
    return -share, perplexities[max(perplexities)].value if perplexities else math.inf


def _is_interpolated(evidence: Evidence, arm: Arm) -> bool:
    if known := evidence.compared.get(arm.name):
        return not known.trained and (known.interpolation or {}).get("kind", "none") != "none"
    return arm.name in _UNTRAINED_NAMES


def _log(record: EvalResult) -> Estimate:
    """Logarithm of a perplexity with its interval."""
    low, high = (None if end is None or end <= 0 else math.log(end) for end in (record.ci_low, record.ci_high))
    return Estimate(math.log(record.value), low, high)


def _estimate(one: Difference) -> Estimate:
    return Estimate(one.value, one.ci_low, one.ci_high)

"""Everything that a report is made from: evaluation records by arm, and how the arms were trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skipwise.records.comparison import ComparedArm, Comparison, Cost, Difference, ExtendedRun
from skipwise.records.pilot import Pilot
from skipwise.records.results import EvalResult
from skipwise.records.stats import Estimate
from skipwise.report.quantities import TO, bytes_text, digits_text, per_cent_of_log, seconds_text, signed_text

MOST_TIMES = 1000
"""An interval whose upper end is more times its lower one is not shown."""
LOG_RATIO = "log_perplexity_ratio"
MOST_OUTPUTS = 6
MOST_OUTPUT_LETTERS = 200
_SHARES = ("accuracy", "score", "same_top", "key_share")

Depth = tuple[float, float]
"""A part of the prompt in which keys were hidden, from and to; 0 is its start, 1 its end."""


class Measure(NamedTuple):
    """What was measured: a task, the metric it is scored by, and which part of the task where it has several.

    Parts are the kinds of `needles` and `suite`, and the untrained arm that `regression` measures beside the model.
    """

    task: str
    metric: str
    part: str = ""

    @classmethod
    def of(cls, record: EvalResult) -> "Measure":
        """The measure of a record; the model's own arm of `regression` is the task's whole, not a part of it."""
        arm = record.details.get("arm")
        part = record.details.get("kind") or (arm if arm != "model" else None)
        return cls(record.task, record.metric, str(part or ""))

    @property
    def is_share(self) -> bool:
        """Whether values run from 0 to 1 and are written in per cent."""
        return self.metric.startswith(_SHARES)

    @property
    def title(self) -> str:
        """The measure as a heading, without saying a word twice: `Perplexity`, `Passkey accuracy`."""
        words = self.metric if self.task in self.metric else f"{self.task} {self.metric}"
        text = ", ".join(filter(None, (words, self.part))).replace("_", " ")
        return text[:1].upper() + text[1:]

    def text(self, value: float) -> str:
        """One value as people read it: `85%`, `9.19`, `2,100`, `+4.2%`, `1.5 GiB`."""
        if self.is_share:
            # Key tokens are often less than one in a hundred.
            return f"{100 * value:.{1 if self.metric == 'key_share' else 0}f}%"
        if self.metric == LOG_RATIO:
            return f"{signed_text(per_cent_of_log(value))}%"
        if self.metric.startswith("kl_"):
            return digits_text(value, 2)
        if self.metric.endswith("_bytes"):
            return bytes_text(value)
        return seconds_text(value) if self.metric.endswith("_seconds") else digits_text(value)

    def interval(self, record: EvalResult) -> tuple[float, float] | None:
        """The ends of a record's interval; None where it has none, or one that says nothing.

        The perplexity of two texts may have an interval from 1 to a million.
        """
        if record.ci_low is None or record.ci_high is None:
            return None
        says_nothing = not self.is_share and record.ci_low > 0 and record.ci_high > MOST_TIMES * record.ci_low
        return None if says_nothing else (record.ci_low, record.ci_high)

    def text_with_interval(self, record: EvalResult) -> str:
        """A value and its interval: `9.19 (8.90–9.48)`; the value alone when the record has no interval."""
        if (ends := self.interval(record)) is None:
            return self.text(record.value)
        low, high = map(self.text, ends)
        # Signs make a dash between two numbers hard to read.
        between = " to " if self.metric == LOG_RATIO else TO
        return f"{self.text(record.value)} ({low.removesuffix('%')}{between}{high})"

    def texts(self, records: Mapping[int, EvalResult]) -> dict[int, str]:
        """Values with their intervals, by length."""
        return {length: self.text_with_interval(record) for length, record in records.items()}


PERPLEXITY = Measure("perplexity", "perplexity")
TRUNCATED = Measure("truncated", "perplexity")
PASSKEY = Measure("passkey", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model under comparison and everything measured on it.

    Attributes:
        name: what readers call it: `base`, `interpolation only`, `extended`.
        results: its records, oldest first; where the same thing was measured twice, the later record counts.
    """

    name: str
    results: Sequence[EvalResult]

    def by_length(self, measure: Measure) -> dict[int, EvalResult]:
        """Its records of one measure over the whole input, by length in tokens, shortest first."""
        found = {r.length_tokens: r for r in self.results if r.is_whole and Measure.of(r) == measure}
        return dict(sorted(found.items()))

    def by_length_and_depth(self, task: str = PASSKEY.task, part: str = "") -> dict[tuple[int, Depth], EvalResult]:
        """Its records of single depths of a retrieval task, by length in tokens and depth."""
        return {
            (r.length_tokens, (r.details["depth_from"], r.details["depth_to"])): r
            for r in self.results
            if r.task == task and "depth_from" in r.details and Measure.of(r).part == part
        }


def measures(arms: Iterable[Arm]) -> list[Measure]:
    """All that was measured over whole inputs on any arm, in the order of first appearance."""
    return list(dict.fromkeys(Measure.of(r) for arm in arms for r in arm.results if r.is_whole))


def scaled(difference: Difference) -> Estimate:
    """A difference with its interval: in per cent more for a log ratio, in points of a hundred for shares."""
    scale = per_cent_of_log if difference.is_log_ratio else lambda share: 100 * share
    ends = (end if end is None else scale(end) for end in (difference.ci_low, difference.ci_high))
    return Estimate(scale(difference.value), *ends)


def difference_text(difference: Difference, *, with_unit: bool = True) -> str:
    """`−12.1% (−15.0 to −8.9%)`, or `+4.0 (−2.0 to +9.9) points`; tenths only where they matter."""
    value, low, high = scaled(difference)
    places = 1 if abs(value) < 100 else 0
    per_cent = "%" if difference.is_log_ratio and with_unit else ""
    text = signed_text(value, places) + per_cent
    if low is not None and high is not None:
        text += f" ({signed_text(low, places)} to {signed_text(high, places)}{per_cent})"
    return text if per_cent or not with_unit else f"{text} points"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a model wrote in one sample, shown only when asked for.

    Attributes:
        task: of the sample.
        length_tokens: of its input.
        output: what the model wrote.
        expected: the right answer, if known.
    """

    task: str
    length_tokens: int
    output: str
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured and how it came about.

    Attributes:
        arms: models under comparison, with their records.
        original_tokens: window of the base model.
        target_tokens: window that the arms are to handle; None if unknown.
        comparison: how the arms were trained, if they were compared.
        runs: of `skipwise extend`.
        outputs: samples to show.
        pilot: what fitted into the time of a pilot, if it was one.
    """

    arms: Sequence[Arm]
    original_tokens: int
    target_tokens: int | None = None
    comparison: Comparison | None = None
    runs: Sequence[ExtendedRun] = ()
    outputs: Sequence[Output] = ()
    pilot: Pilot | None = None

    @property
    def compared(self) -> Mapping[str, ComparedArm]:
        """How each arm was trained, by name; empty without a comparison."""
        return self.comparison.arms if self.comparison else {}

    @property
    def costs(self) -> Sequence[Cost]:
        """Of training steps."""
        return self.comparison.costs if self.comparison else ()

    @property
    def differences(self) -> Sequence[Difference]:
        """Between arms and the reference."""
        return self.comparison.differences if self.comparison else ()

    @property
    def perplexity(self) -> Measure:
        """Tells how well arms predict text of a length: `PERPLEXITY`, or `TRUNCATED` where only that was measured.

        Lengths compare by `PERPLEXITY` alone, which scores the same tokens at each of them.
        """
        measured = measures(self.arms)
        return TRUNCATED if TRUNCATED in measured and PERPLEXITY not in measured else PERPLEXITY

    @property
    def records(self) -> list[EvalResult]:
        """Of all arms."""
        return [record for arm in self.arms for record in arm.results]

    @property
    def advertised_tokens(self) -> int:
        """The window that effective lengths are held against: the target, or else the longest length measured."""
        return self.target_tokens or max((record.length_tokens for record in self.records), default=0)

    @property
    def many(self) -> bool:
        """Whether there are too many arms for a column each."""
        return len(self.arms) > 4

    def number(self, name: str) -> int:
        """The place of an arm among all, which gives it its colour; arms without results come last."""
        names = dict.fromkeys((*(arm.name for arm in self.arms), *self.compared, name))
        return list(names).index(name)

    @property
    def base(self) -> Arm | None:
        """The arm that is the unchanged model: by what the comparison says of it, or by its name."""
        return next((arm for arm in self.arms if self._is_base(arm)), None)

    def _is_base(self, arm: Arm) -> bool:
        if known := self.compared.get(arm.name):
            return not known.trained and (known.interpolation or {}).get("kind", "none") == "none"
        return arm.name == "base"

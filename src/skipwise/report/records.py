"""What a report reads: evaluation records, grouped by arm, and how their numbers are written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skipwise.records.results import EvalResult
from skipwise.report.quantities import TO, bytes_text, digits_text, per_cent_of_log, seconds_text, signed_text

LOG_RATIO = "log_perplexity_ratio"
_SHARES = ("accuracy", "score", "same_top", "key_share")


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
            return f"{100 * value:.0f}%"
        if self.metric == LOG_RATIO:
            return f"{signed_text(per_cent_of_log(value))}%"
        if self.metric.startswith("kl_"):
            return digits_text(value, 2)
        if self.metric.endswith("_bytes"):
            return bytes_text(value)
        return seconds_text(value) if self.metric.endswith("_seconds") else digits_text(value)

    def text_with_interval(self, record: EvalResult) -> str:
        """A value and its interval: `9.19 (8.90–9.48)`; the value alone when the record has no interval."""
        if record.ci_low is None or record.ci_high is None:
            return self.text(record.value)
        low, high = self.text(record.ci_low), self.text(record.ci_high)
        # Signs make a dash between two numbers hard to read.
        between = " to " if self.metric == LOG_RATIO else TO
        return f"{self.text(record.value)} ({low.removesuffix('%')}{between}{high})"

    def texts(self, records: Mapping[int, EvalResult]) -> dict[int, str]:
        """Values with their intervals, by length."""
        return {length: self.text_with_interval(record) for length, record in records.items()}


PERPLEXITY = Measure("perplexity", "perplexity")
PASSKEY = Measure("passkey", "accuracy")


class DepthBand(NamedTuple):
    """A stretch of the prompt in which keys were hidden; 0 is its start, 1 its end."""

    start: float
    end: float


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
        found = {r.length_tokens: r for r in self.results if is_whole(r) and Measure.of(r) == measure}
        return dict(sorted(found.items()))

    def by_length_and_depth(self, task: str = PASSKEY.task, part: str = "") -> dict[tuple[int, DepthBand], EvalResult]:
        """Its records of single depths of a retrieval task, by length in tokens and depth."""
        return {
            (r.length_tokens, DepthBand(r.details["depth_from"], r.details["depth_to"])): r
            for r in self.results
            if r.task == task and "depth_from" in r.details and Measure.of(r).part == part
        }


def is_whole(record: EvalResult) -> bool:
    """Whether a record speaks of the whole input, not of a depth or a stretch of positions within it."""
    return "depth_from" not in record.details and "position_from" not in record.details


def measures(arms: Iterable[Arm]) -> list[Measure]:
    """All that was measured over whole inputs on any arm, in the order of first appearance."""
    return list(dict.fromkeys(Measure.of(r) for arm in arms for r in arm.results if is_whole(r)))

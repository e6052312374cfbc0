"""What a report reads: evaluation records, grouped by arm, and how their numbers are written.

The records are those of `skipwise.evals`, known here by shape alone, so that a report needs no model library.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

TO = "\N{EN DASH}"


class Record(Protocol):
    """One measured number with its interval, as `skipwise eval` writes it."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def metric(self) -> str:
        """What the value is."""
        ...

    @property
    def length_tokens(self) -> int:
        """Length of the input in tokens."""
        ...

    @property
    def value(self) -> float:
        """The point estimate; shares from 0 to 1."""
        ...

    @property
    def ci_low(self) -> float | None:
        """Lower end of its 95% interval, or None."""
        ...

    @property
    def ci_high(self) -> float | None:
        """Upper end."""
        ...

    @property
    def num_samples(self) -> int:
        """Inputs that were measured."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """Settings, and the depth or positions that the number is limited to."""
        ...


class Measure(NamedTuple):
    """What was measured: a task and the metric it is scored by."""

    task: str
    metric: str

    @property
    def is_share(self) -> bool:
        """Whether values run from 0 to 1 and are written in per cent."""
        return self.metric.startswith("accuracy")

    @property
    def title(self) -> str:
        """The measure as a heading, without saying a word twice: `Perplexity`, `Passkey accuracy`."""
        words = self.metric if self.task in self.metric else f"{self.task} {self.metric}"
        return words.replace("_", " ").capitalize()

    def text(self, value: float) -> str:
        """One value as people read it: `85%`, `9.19`, `2,100`."""
        if self.is_share:
            return f"{100 * value:.0f}%"
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{digits}f}"

    def text_with_interval(self, record: Record) -> str:
        """A value and its interval: `9.19 (8.90–9.48)`; the value alone when the record has no interval."""
        if record.ci_low is None or record.ci_high is None:
            return self.text(record.value)
        low, high = self.text(record.ci_low), self.text(record.ci_high)
        return f"{self.text(record.value)} ({low.removesuffix('%')}{TO}{high})"


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
    results: Sequence[Record]

    def by_length(self, measure: Measure) -> dict[int, Record]:
        """Its records of one measure over the whole input, by length in tokens, shortest first."""
        found = {r.length_tokens: r for r in self.results if Measure(r.task, r.metric) == measure and is_whole(r)}
        return dict(sorted(found.items()))

    def by_length_and_depth(self) -> dict[tuple[int, DepthBand], Record]:
        """Its passkey records of single depths, by length in tokens and depth."""
        return {
            (r.length_tokens, DepthBand(r.details["depth_from"], r.details["depth_to"])): r
            for r in self.results
            if r.task == PASSKEY.task and "depth_from" in r.details
        }


def is_whole(record: Record) -> bool:
    """Whether a record speaks of the whole input, not of a depth or a stretch of positions within it."""
    return "depth_from" not in record.details and "position_from" not in record.details


def measures(arms: Iterable[Arm]) -> list[Measure]:
    """All that was measured over whole inputs on any arm, in the order of first appearance."""
    return list(dict.fromkeys(Measure(r.task, r.metric) for arm in arms for r in arm.results if is_whole(r)))


def lengths(arms: Iterable[Arm], measure: Measure) -> list[int]:
    """Every length in tokens at which some arm was measured, shortest first."""
    return sorted({length for arm in arms for length in arm.by_length(measure)})


def length_label(length_tokens: int) -> str:
    """A length as people write it; `skipwise.window.parse_length` reads it back: `256`, `4k`, `1.5k`, `1M`."""
    for unit, letter in ((1024 * 1024, "M"), (1024, "k")):
        if length_tokens >= unit and length_tokens % (unit // 4) == 0:
            return f"{length_tokens / unit:g}{letter}"
    return str(length_tokens)

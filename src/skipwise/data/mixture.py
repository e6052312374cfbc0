"""Several sources in one run, each with its exact share: which source a window is of, by integer arithmetic alone.

    place in the run -> number of the window -> source, and number among the source's own windows -> item of the source

All windows of a stage have as many tokens, so shares of windows are shares of tokens. Nothing is drawn and nothing is
counted on the way, so the items are the same on any number of workers and processes and after any resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from skipwise.data.items import TrainingItem, TrainingItems

# Separates the seeds of sources from other draws, whose key begins with the run's seed as well.
_SOURCES = 0x50C5


class Shares:
    """Deals windows to sources: the first one against the rest, then the second against those after it, and so on.

    Of the first `n` windows, the first source has `floor(n * share)`. So after any number of windows every source is
    within one window for each source of its exact share.

    Args:
        weights: of the sources, above 0; a share is a weight divided by their sum.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.weights = tuple(weights)
        left = [sum(self.weights[i:], Fraction(0)) for i in range(len(self.weights))]
        # Of what is left by those before; the last one's is 1.
        self._of_rest = [(weight / rest).as_integer_ratio() for weight, rest in zip(self.weights, left, strict=True)]

    def __getitem__(self, source: int) -> Fraction:
        """The share of a source."""
        return self.weights[source] / sum(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, window: int) -> tuple[int, int]:
        """The source of a window, and how many windows before it are of the same source."""
        for source, (numerator, denominator) in enumerate(self._of_rest):
            before = window * numerator // denominator
            if (window + 1) * numerator // denominator > before:
                return source, before
            window -= before
        raise ValueError("no sources")

    def counts(self, windows: int) -> list[int]:
        """How many of the first windows each source has."""
        counts = []
        for numerator, denominator in self._of_rest:
            counts.append(windows * numerator // denominator)
            windows -= counts[-1]
        return counts


class Windows(Protocol):
    """Numbers the windows of a run, as some places have none and replay is numbered by itself."""

    def __len__(self) -> int:
        """Places of the run."""
        ...

    def number(self, place: int) -> int:
        """How many windows of the same kind, replay or not, come before the one at a place."""
        ...

    def number_in_run(self, place: int) -> int:
        """How many windows of the same kind as that at a place the run has."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedItems:
    """The items of several sources, each in its own order, at the places of a run.

    Each source goes through its epochs by the windows that it has had so far, also from one stage to the next.

    Attributes:
        names: of the sources.
        items: of each, with a seed of its own.
        shares: of the windows.
        windows: of the run.
    """

    names: Sequence[str]
    items: Sequence[TrainingItems]
    shares: Shares
    windows: Windows

    def at(self, place: int) -> TrainingItem:
        """The item at a place of the run. One beyond its end is of the same source, and is nowhere in the run."""
        source, own = self._find(place)
        return self.items[source].at(own)

    def describe(self, place: int) -> dict[str, Any]:
        """The source of a place, and what `TrainingItems.describe` tells of it."""
        source, own = self._find(place)
        return {"source": self.names[source], **self.items[source].describe(own)}

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A random document of the place's source, as the text that an exercise hides something in."""
        source, own = self._find(place)
        return self.items[source].document_for(own, rng)

    def _find(self, place: int) -> tuple[int, int]:
        """The source of a place, and the number of the window among the source's own."""
        times, within = divmod(place, len(self.windows))
        source, own = self.shares.at(self.windows.number(within))
        if times:
            own += times * self.shares.counts(self.windows.number_in_run(within))[source]
        return source, own


def seed_of(seed: int, source: int) -> int:
    """The seed of a source's own draws.

    Args:
        seed: of the run.
        source: its number among all sources of the run.
    """
    return int(np.random.SeedSequence((seed, _SOURCES, source)).generate_state(1)[0])

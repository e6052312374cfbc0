"""Which of two headings or sentences comes first, in a text whose sections were shuffled."""

from itertools import pairwise
from typing import ClassVar

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.kind import INSTRUCTION, Place, Scoring
from skipwise.evals.suite.library import Library, cut, place_near
from skipwise.evals.suite.sentences import Quote, headings, quotable_sentences, squeezed

_LABELS = ("A", "B")
_SECTION_CHARACTERS = 800
_MOST_SECTIONS = 8


class Order:
    """Two headings (or sentences, where sections have none) of different sections; which comes first?

    The running text is cut into up to eight sections and these are put in random order. Otherwise numbered headings,
    or a model that knows the document, would tell the order without the text being read.
    """

    name: ClassVar[str] = "order"
    chance: ClassVar[float] = 0.5
    num_texts: ClassVar[int] = 1
    scoring: ClassVar[Scoring] = "likeliest"
    asks: ClassVar[str] = "which of two lines comes first in a text of shuffled sections"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; the right answers of even and odd numbers differ."""
        (stretch,) = library.stretches(1, place.most, rng)
        number = max(2, min(_MOST_SECTIONS, place.size // _SECTION_CHARACTERS))
        edges = [place_near(stretch.text, len(stretch.text) * k // number) for k in range(number)]
        edges.append(len(stretch.text))
        origin = [int(index) for index in rng.permutation(number)]
        sections = [stretch.text[edges[index] : edges[index + 1]] for index in origin]
        asked = _landmarks(sections, place.size // number, rng)
        if asked is None:
            return []
        what, first, second = asked
        right = place.number % 2
        shown = (first, second) if right == 0 else (second, first)

        def assemble(num_characters: int) -> Passage:
            share = num_characters // number
            body = "\n\n".join(cut(section, share).strip() for section in sections)
            ends = [min(edges[index] + share, edges[index + 1]) for index in range(number)]
            names = [
                name
                for name, (start, end) in zip(
                    stretch.names, pairwise([*stretch.starts, len(stretch.text)]), strict=True
                )
                if any(edges[index] < end and start < ends[index] for index in range(number))
            ]
            return Passage(f"{INSTRUCTION}{body}\n\n", None, names)

        lines = "".join(f"{label}: {quote}\n" for label, quote in zip(_LABELS, shown, strict=True))
        question = (
            f"Two {what} of the text above, in no particular order:\n{lines}"
            "Of these two, the one that comes first in the text is"
        )
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {_LABELS[right]}",
                choices=[f" {label}" for label in _LABELS],
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def _landmarks(sections: list[str], size: int, rng: np.random.Generator) -> tuple[str, str, str] | None:
    """What two quotes of different sections are, and both in the order of the text, each of them once in it."""
    once = squeezed("\n\n".join(sections))
    for what, find in (("lines", headings), ("sentences", quotable_sentences)):
        found = [_standing_once(find(cut(section, size)), once) for section in sections]
        usable = [index for index, quotes in enumerate(found) if quotes]
        if len(usable) >= 2:
            earlier, later = sorted(int(index) for index in rng.choice(usable, 2, replace=False))
            first, second = (found[index][rng.integers(len(found[index]))] for index in (earlier, later))
            return what, first, second
    return None


def _standing_once(quotes: list[Quote], once: str) -> list[str]:
    return [quote.text for quote in quotes if once.count(squeezed(quote.text)) == 1]

"""Facts that no document holds, planted in the text and asked for at its end."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.kind import INSTRUCTION, Place, Scoring, stratum
from skipwise.evals.suite.library import Library, cut, place_near

_SENTENCES = (
    "The access code of the {name} store room is",
    "The last invoice of the {name} company carries the number",
    "The shipment for {name} is tracked under the number",
    "The emergency line of the {name} office has the number",
    "The serial number of the {name} pump is",
    "The land register lists the {name} estate under the number",
    "The archive keeps the {name} file on the shelf with the number",
    "The insurance policy of the {name} mill has the number",
)
_DECOYS = 3
_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("k", "l", "m", "n", "r", "sk", "t", "x")


class Fact:
    """An invented name with an invented six-digit number, in one sentence somewhere in the text.

    Three more sentences of the same wording give other names other numbers, so that finding a sentence which does not
    belong is not enough: the number must be the one of the name. Neither name nor number is a word of any document.
    """

    name: ClassVar[str] = "fact"
    chance: ClassVar[float] = 0.0
    num_texts: ClassVar[int] = 1
    scoring: ClassVar[Scoring] = "contains"
    asks: ClassVar[str] = "the number of an invented name, planted in the text beside three of other names"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; its fact stands in the depth stratum of its number."""
        (stretch,) = library.stretches(1, place.most, rng)
        begin = _SENTENCES[rng.integers(len(_SENTENCES))]
        names, numbers = _new_names(library, rng), _new_numbers(library, rng)
        openings = [begin.format(name=name) for name in names]
        low, high = stratum(place.number)
        # Depths of each sentence: where, not before, not after.
        places = [(rng.uniform(low, high), low, high), *((rng.random(), 0.0, 1.0) for _ in range(_DECOYS))]
        planted = [f"{opening} {number}." for opening, number in zip(openings, numbers, strict=True)]

        def assemble(num_characters: int) -> Passage:
            body = cut(stretch.text, num_characters)
            points = [place_near(body, *(int(depth * len(body)) for depth in depths)) for depths in places]
            depth = points[0] / max(1, len(body))
            # From the last to the first, so that the earlier places stay where they are.
            for point, sentence in sorted(zip(points, planted, strict=True), reverse=True):
                gap = "\n" if body[:point].endswith("\n") else " "
                body = f"{body[:point]}{sentence}{gap}{body[point:]}"
            return Passage(f"{INSTRUCTION}{body}\n\n", depth, stretch.names_until(num_characters))

        question = f'One sentence of the text above is repeated here word for word:\n"{openings[0]}'
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {numbers[0]}",
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def _new_names(library: Library, rng: np.random.Generator) -> list[str]:
    """Invented words that no document holds, each once."""

    def draw() -> str:
        syllables = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(3)]
        return ("".join(syllables) + str(rng.choice(_CODAS))).capitalize()

    return _unheard(library, draw)


def _new_numbers(library: Library, rng: np.random.Generator) -> list[str]:
    """Six-digit numbers that no document holds, each once."""
    return _unheard(library, lambda: str(rng.integers(100_000, 1_000_000)))


def _unheard(library: Library, draw: Callable[[], str]) -> list[str]:
    words: list[str] = []
    while len(words) <= _DECOYS:
        word = draw()
        if word not in words and not library.has_word(word):
            words.append(word)
    return words

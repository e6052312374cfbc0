"""What a kind of question is, and what all kinds share."""

from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from skipwise.evals.suite.item import Draft
from skipwise.evals.suite.library import Library

INSTRUCTION = "Read the text below. A question about it follows at its end.\n\n"
NUM_DEPTHS = 5
# A and I are words, too, and O looks like a zero.
LABELS = "BCDEFGHJKLMNPQRSTUVWXYZ"

Scoring = Literal["contains", "begins", "likeliest"]
"""When an item counts: the output contains the answer, or begins with it, or it is the likeliest of the choices."""


class Place(NamedTuple):
    """Where in a suite a question belongs.

    Attributes:
        number: of the question among those of its kind and length, from 0; depths and answers are balanced over it.
        size: characters of text that surely fit: what is asked about must stand in them.
        most: characters of text to draw.
        labels: letters that documents may go by, which the suite's tokenizer writes in equally many tokens.
    """

    number: int
    size: int
    most: int
    labels: str


class Kind(Protocol):
    """One kind of question."""

    name: ClassVar[str]
    chance: ClassVar[float]
    """Score of a guesser who knows the answers on offer and has not read the text."""
    asks: ClassVar[str]
    """What is asked, for people."""
    scoring: ClassVar[Scoring]
    num_texts: ClassVar[int]
    """Running texts in the context; each is one document, or several where one is too short. No fewer documents do."""

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """Questions about text drawn from the library; none where the drawn text does not serve: draw again."""
        ...


def stratum(number: int) -> tuple[float, float]:
    """The part of the text, as depths from and to, that question `number` is about."""
    part = number % NUM_DEPTHS
    return part / NUM_DEPTHS, (part + 1) / NUM_DEPTHS

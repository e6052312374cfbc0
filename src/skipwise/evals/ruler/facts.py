"""Questions about people and towns that do not exist, for question tasks without a file of questions.

No two people were born in the same town, and no two towns share a founder or a river, so only a question's own passages
contain its answer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_GIVEN = "Ada Bram Celia Dorian Elsa Fabian Greta Hugo Ines Jonas Kira Leo Mira Nils Olga Piet Quinn Rosa Sven Tilda"
_HEADS = "Bal Cor Dra Fen Gal Hol Jar Kel Lor Mar Nor Or Pel Ras Sol Tar Ul Var Wes Zan"
_MIDDLES = "a e i o u an en in on un ar er ir or ur al el il ol ul"
_LINKS = "da fe go li mo ne pa ra su ti"
_SURNAME_TAILS = "bach dahl feld gast hart kamp lund mann nagel quist rup sson tvedt veld wick"
_TOWN_HEADS = "Ash Birch Clay Dun East Frost Grim Hazel Iron Kings Long Moss North Oak Pine Rook South Thorn West Wolf"
_TOWN_TAILS = "borough bridge bury cliffe dale ford gate ham holm ley mere minster mouth port stead stoke ton well"
_RIVER_TAILS = "beck brook rill stream water"
_TRADES = "baker clockmaker cooper glassblower gardener joiner mason potter printer saddler surveyor weaver"
_HOBBIES = "acting chess falconry fencing gymnastics juggling poetry rowing singing sketching storytelling"
_GOODS = "barrels candles cheese cider honey lace paper pottery rope salt wool woodwork"
_SIGHTS = "archive belfry bridge lighthouse market orchard windmill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question and its answers.

    Attributes:
        text: the question.
        references: the right answers, any of which suffices; empty if the answer is unknown.
        passages: the passages with the answer, which are in every prompt.
        related: the most distracting passages, used before any others.
    """

    text: str
    references: list[str]
    passages: list[str]
    related: list[str] = field(default_factory=list)


class _Life(NamedTuple):
    person: str
    town: str
    founder: str
    river: str


class FactWorld:
    """An endless supply of people and towns with a passage about each; no name is used twice.

    Args:
        rng: source of all draws.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._names: set[str] = set()

    def question(self, num_hops: int) -> Question:
        """A question that takes one or two passages to answer."""
        life = self._life()
        about_person, about_town = self._person_passage(life), self._town_passage(life)
        if num_hops == 2:
            text, answer = self._either(
                (f"Who founded the town in which {life.person} was born?", life.founder),
                (f"On which river lies the town in which {life.person} was born?", life.river),
            )
            return Question(text=text, references=[answer], passages=[about_person, about_town])
        text, answer = self._either(
            (f"In which town was {life.person} born?", life.town),
            (f"Who founded the town of {life.town}?", life.founder),
            (f"On which river does the town of {life.town} lie?", life.river),
        )
        return Question(text=text, references=[answer], passages=[about_person if answer == life.town else about_town])

    def passages(self) -> Iterator[str]:
        """Passages about other people and other towns, alternating."""
        while True:
            life = self._life()
            yield self._person_passage(life)
            yield self._town_passage(life)

    def _life(self) -> _Life:
        return _Life(self._person(), self._town(), self._person(), self._river())

    def _person(self) -> str:
        return self._unique(lambda: f"{self._draw(_GIVEN)} {self._draw(_HEADS, _MIDDLES, _LINKS, _SURNAME_TAILS)}")

    def _town(self) -> str:
        return self._unique(lambda: self._draw(_TOWN_HEADS, _MIDDLES, _LINKS, _TOWN_TAILS))

    def _river(self) -> str:
        return self._unique(lambda: self._draw(_HEADS, _MIDDLES, _LINKS, _RIVER_TAILS))

    def _person_passage(self, life: _Life) -> str:
        given = life.person.split()[0]
        year = int(self._rng.integers(1720, 1900))
        return (
            f"{life.person}\n{life.person} was born in {life.town} in the year {year}. {given} learned the trade of a "
            f"{self._draw(_TRADES)} and was later known for {self._draw(_HOBBIES)}. At the age of "
            f"{self._rng.integers(20, 50)} {given} moved away to work as a {self._draw(_TRADES)}, and letters from "
            f"those years still exist. {given} died in {year + int(self._rng.integers(52, 90))}."
        )

    def _town_passage(self, life: _Life) -> str:
        return (
            f"{life.town}\n{life.town} is a town on the river {life.river}. It was founded by {life.founder} in "
            f"{self._rng.integers(1100, 1700)} and has long been known for its {self._draw(_GOODS)} and its "
            f"{self._draw(_GOODS)}. Visitors come for the {self._draw(_SIGHTS)}, which was restored in "
            f"{self._rng.integers(1900, 2000)}. About {self._rng.integers(2, 90)} hundred people live there."
        )

    def _draw(self, *syllables: str) -> str:
        """A random choice of each argument, joined."""
        return "".join(choices[self._rng.integers(len(choices))] for choices in map(str.split, syllables))

    def _unique(self, draw: Callable[[], str]) -> str:
        while (name := draw()) in self._names:
            pass
        self._names.add(name)
        return name

    def _either(self, *choices: tuple[str, str]) -> tuple[str, str]:
        return choices[int(self._rng.integers(len(choices)))]

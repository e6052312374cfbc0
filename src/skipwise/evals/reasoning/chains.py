"""Chains of facts in the user's text: where is a thing that went from hand to hand?

Two things are each taken by one person and given to the next, and every person stays in a place of their own. The
question asks for the place of one of the things. No single fact answers it: the place is that of the last person who
was given the thing. The facts stand in their order, far apart, in text of the user's documents.

Source: the idea is BABILong's (arXiv 2406.10149). Stories and wording are our own.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from skipwise.evals.context import EvalContext
from skipwise.evals.languages import Language
from skipwise.evals.languages.wording import ChainWords, ReasoningWords
from skipwise.evals.reasoning.hidden import HidingTask
from skipwise.evals.reasoning.task import Case, any_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains(HidingTask):
    """Share of things whose place is named, which takes several facts of the text.

    Chance is `1 / (2 * (num_gifts + 1))`: a guesser takes one of the places in the text. The depth is that of the fact
    with the place; the others are anywhere.

    Attributes:
        num_gifts: number of times that each thing is given away; there is a place for every person.
    """

    name: ClassVar[str] = "reasoning_chains"
    num_gifts: Annotated[int, Field(ge=0, le=3)] = 1

    def words(self, words: ReasoningWords) -> ChainWords:
        """The templates of this task."""
        return words.chains

    def possible(self, words: ReasoningWords) -> str:
        """All places."""
        return any_of(_place(place) for place in words.chains.places)

    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """One of two things is asked for; whoever held the other one distracts."""
        words, size = self.words(language.reasoning), self.num_gifts + 1
        names = rng.choice(language.reasoning.names.split(), size=2 * size, replace=False).tolist()
        places = rng.choice(words.places, size=2 * size, replace=False).tolist()
        things = rng.choice(words.things, size=2, replace=False).tolist()
        end, depth = self.num_gifts, self.depth(trial, rng)
        depths = rng.random(2 * size).tolist()
        depths[end] = depth
        facts = [
            (where, words.stays.format(name=name, place=place))
            for where, name, place in zip(depths, names, places, strict=True)
        ]
        for thing, hands in zip(things, (names[:size], names[size:]), strict=True):
            told = [words.takes.format(name=hands[0], thing=thing)]
            told += [words.gives.format(name=name, thing=thing, other=other) for name, other in pairwise(hands)]
            facts += zip(np.sort(rng.random(size)).tolist(), told, strict=True)
        hidden = self.hidden(context, language, facts, rng, chance=1 / len(places), depth=depth, thing=things[0])
        return Case({"thing": things[0]}, places[end], _place(places[end]), hidden)


def _place(place: str) -> str:
    """The word of a place that tells which it is: `kitchen` of `in the kitchen`."""
    return place.split()[-1]

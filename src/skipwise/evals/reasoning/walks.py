"""Walks over edges: where does one arrive from a number after some steps?

All of the text is edges, one a line, in a random order. Each number has one edge to it and one from it, and all edges
together are one circle, so that each step takes a search through the whole text.

Source: the idea is that of Graphwalks, which asks for sets of nodes. Graphs and wording are our own.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from skipwise.evals.context import EvalContext
from skipwise.evals.languages import Language
from skipwise.evals.languages.wording import AskedWords, ReasoningWords
from skipwise.evals.reasoning.listed import ListingTask
from skipwise.evals.reasoning.task import NUMBER, Case

# Three digits name more nodes than fit into a text below this length, six more than fit into any.
_SHORT_TOKENS, _DIGITS = 4096, (3, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walks(ListingTask):
    """Share of walks whose end is named: some steps from a number to another along the edges in the text.

    Chance is 1 over the number of nodes, which grows with the length: a guesser takes one of the numbers in the text.

    Attributes:
        num_steps: number of steps of a walk.
    """

    name: ClassVar[str] = "reasoning_walks"
    num_steps: Annotated[int, Field(ge=1, le=8)] = 2

    def words(self, words: ReasoningWords) -> AskedWords:
        """The templates of this task."""
        return words.walks

    def possible(self, words: ReasoningWords) -> str:
        """Any number."""
        return NUMBER

    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """A walk from the first node of a circle of as many nodes as fit."""
        digits = _DIGITS[length_tokens >= _SHORT_TOKENS]
        nodes = 10 ** (digits - 1) + rng.permutation(9 * 10 ** (digits - 1))
        seed = int(rng.integers(2**63))

        def order(number: int) -> list[int]:
            return np.random.default_rng(seed).permutation(number).tolist()

        def edges(number: int) -> list[str]:
            return [f"{nodes[place]} -> {nodes[(place + 1) % number]}" for place in order(number)]

        def about(number: int) -> tuple[float, dict[str, Any]]:
            places = {place: line for line, place in enumerate(order(number))}
            return 1 / number, {"nodes": number, "depths": [places[step] / number for step in range(self.num_steps)]}

        start, end = str(nodes[0]), str(nodes[self.num_steps])
        slots = {"start": start, "steps": str(self.num_steps)}
        return Case(slots, end, end, self.listed(context, language, edges, self.num_steps + 1, rng, about))

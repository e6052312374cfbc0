"""Many-shot classification: the text is examples, and the question is one more of them.

A line has three words of one class and the number of that class. Numbers are drawn for each prompt, so that they are
learned from the examples alone; the asked words stand in no example, so that copying an example does not do.

Source: the idea is that of many-shot in-context learning (arXiv 2404.11018). Classes and wording are our own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.languages import Language
from skipwise.evals.languages.wording import ReasoningWords, ShotWords
from skipwise.evals.reasoning.listed import ListingTask
from skipwise.evals.reasoning.task import NUMBER, Case

_WORDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots(ListingTask):
    """Share of words whose class is named by its number, after as many examples as fit.

    Chance is 1 over the number of classes, 1/6: a guesser takes one of the numbers in the text.
    """

    name: ClassVar[str] = "reasoning_shots"

    def words(self, words: ReasoningWords) -> ShotWords:
        """The templates of this task."""
        return words.shots

    def possible(self, words: ReasoningWords) -> str:
        """Any number."""
        return NUMBER

    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """Words of one class are asked for; each class has as many examples as the others, or one more."""
        classes = [each.split() for each in self.words(language.reasoning).classes]
        numbers = [str(number) for number in 10 + rng.choice(90, size=len(classes), replace=False)]
        asked = int(rng.integers(len(classes)))
        held_out = rng.choice(classes[asked], size=_WORDS, replace=False).tolist()
        classes[asked] = [word for word in classes[asked] if word not in held_out]
        draws = np.random.default_rng(int(rng.integers(2**63)))
        shots: list[str] = []

        def lines(number: int) -> list[str]:
            while len(shots) < number:
                for place in draws.permutation(len(classes)):
                    words = draws.choice(classes[place], size=_WORDS, replace=False).tolist()
                    shots.append(f"{language.comma.join(words)}:{language.answer(numbers[place])}")
            return shots[:number]

        def about(number: int) -> tuple[float, dict[str, Any]]:
            return 1 / len(classes), {"shots": number}

        listed = self.listed(context, language, lines, len(classes), rng, about)
        return Case({"words": language.comma.join(held_out)}, numbers[asked], numbers[asked], listed)

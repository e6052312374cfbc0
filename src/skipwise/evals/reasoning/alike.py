"""The i-th of several asks that are alike: only their order tells them apart.

Codes are asked for and given several times for the same place, and as often for another one. The question asks for the
code that was given for one of the places the i-th time.

Source: the idea is that of MRCR (Michelangelo, arXiv 2409.12640). Exchanges and wording are our own.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from skipwise.evals.context import EvalContext
from skipwise.evals.languages import LANGUAGES, Language
from skipwise.evals.languages.wording import AlikeWords, ReasoningWords
from skipwise.evals.reasoning.hidden import HidingTask
from skipwise.evals.reasoning.task import NUMBER, Case

_MOST_ALIKE = min(len(language.reasoning.alike.ordinals) for language in LANGUAGES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike(HidingTask):
    """Share of codes that are found by the number of the ask alone, among asks in the same words.

    Chance is `1 / num_alike`: a guesser takes one of the codes that were given for the place. The depth is that of the
    asked exchange, and does not depend on its number, so that the last one is not always the nearest.

    Attributes:
        num_alike: number of asks for each of the two places.
    """

    name: ClassVar[str] = "reasoning_alike"
    num_alike: Annotated[int, Field(ge=2, le=_MOST_ALIKE)] = 4

    def words(self, words: ReasoningWords) -> AlikeWords:
        """The templates of this task."""
        return words.alike

    def possible(self, words: ReasoningWords) -> str:
        """Any number."""
        return NUMBER

    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """One ask is asked for; those before it are anywhere before it, those after it anywhere after it."""
        words, number = self.words(language.reasoning), self.num_alike
        keys = [language.needles.key_of(k) for k in rng.choice(language.needles.num_keys, size=2, replace=False)]
        values = [str(value) for value in 10_000 + rng.choice(90_000, size=2 * number, replace=False)]
        asked, depth = int(rng.integers(number)), self.depth(trial, rng)
        before = np.sort(rng.random(asked) * depth)
        after = np.sort(depth + rng.random(number - 1 - asked) * (1 - depth))
        depths = [*before.tolist(), depth, *after.tolist(), *rng.random(number).tolist()]
        exchanges = [
            (depth, words.exchange.format(key=keys[place // number], value=value))
            for place, (depth, value) in enumerate(zip(depths, values, strict=True))
        ]
        about = {"depth": depth, "key": keys[0], "number": asked + 1}
        hidden = self.hidden(context, language, exchanges, rng, chance=1 / number, **about)
        slots = {"key": keys[0], "ordinal": words.ordinals[asked]}
        return Case(slots, values[asked], values[asked], hidden)

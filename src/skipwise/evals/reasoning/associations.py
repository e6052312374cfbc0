"""Associations: the question shares no content word with the fact that answers it.

A fact says beside which landmark a person lives. The question asks who has been to the country of that landmark, so it
takes knowledge of the world, not a search for words, to find the fact. Other people live in other countries.

Source: the idea is NoLiMa's (arXiv 2502.05167). Facts, people and wording are our own.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from skipwise.evals.context import EvalContext
from skipwise.evals.languages import LANGUAGES, Language
from skipwise.evals.languages.wording import AssociationWords, ReasoningWords
from skipwise.evals.reasoning.hidden import HidingTask
from skipwise.evals.reasoning.task import Case, any_of

_MOST_PEOPLE = min(len(language.reasoning.names.split()) for language in LANGUAGES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Associations(HidingTask):
    """Share of people who are found by where they must have been, when the text says beside which landmark they live.

    Chance is `1 / num_people`: a guesser takes one of the people in the text. The depth is that of the
    person's fact.

    Attributes:
        num_people: number of people in the text, each in another country.
    """

    name: ClassVar[str] = "reasoning_associations"
    num_people: Annotated[int, Field(ge=2, le=_MOST_PEOPLE)] = 5

    def words(self, words: ReasoningWords) -> AssociationWords:
        """The templates of this task."""
        return words.associations

    def possible(self, words: ReasoningWords) -> str:
        """The names of all people."""
        return any_of(words.names.split())

    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """One person is asked for, the others are anywhere in the text."""
        words = self.words(language.reasoning)
        names = rng.choice(language.reasoning.names.split(), size=self.num_people, replace=False).tolist()
        chosen = rng.choice(len(words.landmarks), size=self.num_people, replace=False)
        landmarks = [words.landmarks[number] for number in chosen]
        depths = [self.depth(trial, rng), *rng.random(self.num_people - 1).tolist()]
        facts = [
            (depth, words.fact.format(name=name, landmark=landmark))
            for depth, name, (landmark, _) in zip(depths, names, landmarks, strict=True)
        ]
        about = {"depth": depths[0], "landmark": landmarks[0][0]}
        hidden = self.hidden(context, language, facts, rng, chance=1 / self.num_people, **about)
        return Case({"place": landmarks[0][1]}, names[0], names[0], hidden)

"""Reasoning tasks whose facts are hidden in a haystack: of sentences that say nothing, or of the user's documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.haystack import closed, filler_ids, running_text, with_lines
from skipwise.evals.languages import Language
from skipwise.evals.reasoning.task import Body, ReasoningTask, Text
from skipwise.evals.settings import AtDepths, Count, Haystack


@dataclass(frozen=True, slots=True, kw_only=True)
class HidingTask(ReasoningTask, AtDepths):
    """Base of the tasks that hide lines. Depths are stratified as in `needles`.

    Attributes:
        num_depths: number of parts of the text; the number of trials is a multiple of it.
        haystack: the text around the facts: plain sentences, or text of the documents.
    """

    num_depths: Count = 5
    haystack: Haystack = "documents"

    def __post_init__(self) -> None:
        AtDepths.__post_init__(self)
        ReasoningTask.__post_init__(self)

    @property
    def uses_documents(self) -> bool:
        """Whether the haystack is text of the documents."""
        return self.haystack == "documents"

    def parts(self) -> list[dict[str, float]]:
        """Where each part of the text begins and ends, as details of a result."""
        return AtDepths.parts(self)

    def depth(self, trial: int, rng: np.random.Generator) -> float:
        """The depth of a trial, 0 start to 1 end; the parts take turns, so that more trials keep the earlier ones."""
        return (trial % self.num_depths + rng.random()) / self.num_depths

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that every trial's text, question and answer fit, and that the haystack has text."""
        if self.uses_documents:
            running_text(context, 1, context.rng(self.name))
        ReasoningTask.check_lengths(self, context, lengths)

    def hidden(
        self,
        context: EvalContext,
        language: Language,
        lines: Sequence[tuple[float, str]],
        rng: np.random.Generator,
        *,
        chance: float,
        **details: Any,
    ) -> Body:
        """Lines, each hidden at its depth in a haystack of any size."""
        tokenizer = context.tokenizer
        encoded = [(depth, list(tokenizer.encode(line, add_special_tokens=False))) for depth, line in lines]
        least = sum(len(ids) for _, ids in encoded)

        def text(num_tokens: int) -> Text:
            room = num_tokens - least
            if self.uses_documents:
                haystack = running_text(context, room, rng)
            else:
                haystack = filler_ids(tokenizer, language, room, rng)
            return Text(with_lines(tokenizer, closed(tokenizer, haystack), encoded), chance, details)

        return Body(least, text)

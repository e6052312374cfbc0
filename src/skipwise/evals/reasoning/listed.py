"""Reasoning tasks whose text is a list: as many lines as fit, and no haystack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.haystack import closed, filler_ids
from skipwise.evals.languages import Language
from skipwise.evals.reasoning.task import Body, ReasoningTask, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingTask(ReasoningTask):
    """Base of the tasks that list lines. What is asked is all over the text, so there are no depths."""

    def listed(
        self,
        context: EvalContext,
        language: Language,
        lines: Callable[[int], Sequence[str]],
        least_lines: int,
        rng: np.random.Generator,
        about: Callable[[int], tuple[float, dict[str, Any]]],
    ) -> Body:
        """As many lines as fit, after sentences that say nothing and take up the rest.

        Args:
            context: the tokenizer.
            language: of the sentences.
            lines: makes a number of lines.
            least_lines: the smallest number.
            rng: source of the sentences' beginning.
            about: chance and details of a text of a number of lines.
        """
        tokenizer = context.tokenizer

        def encoded(number: int) -> list[int]:
            return list(tokenizer.encode("\n" + "\n".join(lines(number)), add_special_tokens=False))

        least = len(encoded(least_lines))

        def text(num_tokens: int) -> Text:
            number, ids = _most(encoded, num_tokens, least_lines, least)
            filler = closed(tokenizer, filler_ids(tokenizer, language, num_tokens - len(ids), rng))
            return Text(filler + ids, *about(number))

        return Body(least, text)


def _most(encoded: Callable[[int], list[int]], room: int, least_lines: int, least: int) -> tuple[int, list[int]]:
    """A number of lines that fit into a room of tokens and leave little of it, with their token ids.

    Tokens need not grow evenly with lines, so what is returned was measured.
    """
    number = max(least_lines, room * least_lines // least)
    while len(ids := encoded(number)) > room:
        number = max(least_lines, min(number - 1, number * room // len(ids)))
    while len(more := encoded(number + 1)) <= room:
        number, ids = number + 1, more
    return number, ids

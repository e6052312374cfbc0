"""The text around hidden lines as token ids: filler or documents, cut to a number of tokens, and lines put into it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skipwise.errors import DataError
from skipwise.evals.context import EvalContext
from skipwise.evals.languages import ENGLISH, Language

# At most so many tokens are one character, and some more before it.
_CHARACTER_TOKENS = 8


def filler_ids(tokenizer: Any, language: Language, num_tokens: int, rng: np.random.Generator) -> list[int]:
    """Token ids of sentences that say nothing, repeated, from a random place in them on."""
    filler = tokenizer.encode(language.passkey.filler, add_special_tokens=False)
    start = int(rng.integers(len(filler)))
    if language is not ENGLISH:
        start = whole_until(tokenizer, filler, start)
    return np.resize(np.roll(np.asarray(filler), -start), num_tokens).tolist()


def with_lines(
    tokenizer: Any, haystack: Sequence[int], lines: Sequence[tuple[float, Sequence[int]]], *, whole: bool = True
) -> list[int]:
    """A haystack with lines in it.

    Args:
        tokenizer: the tokenizer.
        haystack: token ids.
        lines: depth in the haystack, 0 start to 1 end, and token ids of each.
        whole: whether no character is cut: one may be several tokens.
    """
    text, begin = [], 0
    for depth, line in sorted(lines, key=lambda placed: placed[0]):
        cut = round(depth * len(haystack))
        if whole:
            cut = whole_until(tokenizer, haystack, cut)
        text += [*haystack[begin:cut], *line]
        begin = cut
    return [*text, *haystack[begin:]]


def whole_until(tokenizer: Any, ids: Sequence[int], place: int) -> int:
    """The last place up to the given one at which no character is cut: a character may be several tokens."""
    while place > 0 and tokenizer.decode(list(ids[max(0, place - _CHARACTER_TOKENS) : place])).endswith("\ufffd"):
        place -= 1
    return place


def closed(tokenizer: Any, ids: list[int]) -> list[int]:
    """As many token ids, with line breaks in place of a character that is cut at the end."""
    end = whole_until(tokenizer, ids, len(ids))
    return ids[:end] + list(tokenizer.encode("\n", add_special_tokens=False))[-1:] * (len(ids) - end)


def running_text(context: EvalContext, num_tokens: int, rng: np.random.Generator) -> list[int]:
    """The first `num_tokens` token ids of the concatenated documents, from a random document on.

    Raises:
        DataError: there are no documents, or all are empty.
    """
    number = len(context.documents)
    if not number:
        raise DataError("a haystack of documents was asked for and there are none: give documents, or take the filler")
    text: list[int] = []
    start = index = int(rng.integers(number))
    while len(text) < num_tokens:
        if index - start == number and not text:
            raise DataError(f"none of the {number} documents has a token, which a haystack needs")
        text += context.body(index % number)[: num_tokens - len(text)].tolist()
        index += 1
    return text

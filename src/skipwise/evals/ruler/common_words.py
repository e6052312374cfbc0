"""Common words: the ten words that a long numbered list repeats most.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import string_match_all
from skipwise.evals.ruler.draft import Draft, Drafter, filler_words, numbered
from skipwise.evals.ruler.task import RulerTask
from skipwise.evals.ruler.vocabulary import ADJECTIVES, NOUNS, VERBS

WORDS = (*NOUNS, *ADJECTIVES, *VERBS)
NUM_COMMON = 10
_SHORT_TOKENS = 4096


class Repeats(NamedTuple):
    """How often a list repeats its common and its other words."""

    common: int
    other: int


class CommonWordsForm(NamedTuple):
    """The list that is asked about and the list of the worked example before it."""

    asked: Repeats
    example: Repeats
    example_others: int


LONG_FORM = CommonWordsForm(Repeats(30, 3), Repeats(10, 3), example_others=30)
# RULER's own counts below 4096 tokens.
SHORT_FORM = CommonWordsForm(Repeats(6, 1), Repeats(3, 1), example_others=10)


def common_words_draft(form: CommonWordsForm, seed: int, num_others: int, num_filler_words: int) -> Draft:
    """A worked example, then the question.

    Args:
        form: counts of both lists.
        seed: of every draw; the common words do not depend on the list's size.
        num_others: distinct words beside the common ones.
        num_filler_words: filler after the list.
    """
    rng = np.random.default_rng(seed)
    words = [WORDS[place] for place in rng.permutation(len(WORDS))]
    common = apart(words, NUM_COMMON)
    # An answer is scored by containment: no other word may contain a common one.
    rest = [word for word in words if not any(wanted in word for wanted in common)]
    shown, rest = rest[: NUM_COMMON + form.example_others], rest[NUM_COMMON + form.example_others :]
    others = [*rest[:num_others], *islice(compounds(rest, rng), max(0, num_others - len(rest)))]
    example = _question(_word_list(shown[:NUM_COMMON], shown[NUM_COMMON:], form.example, rng))
    text = _word_list(common, others, form.asked, rng)
    if num_filler_words:
        text += "\n" + filler_words(num_filler_words)
    request, prefix = _question(text)
    return Draft(
        request=f"{' '.join(example)} {numbered(shown[:NUM_COMMON])}\n{request}",
        answer_prefix=prefix,
        references=common,
        details={
            "repeats": list(form.asked),
            "other_words": num_others,
            "compound_words": max(0, num_others - len(rest)),
            "filler_words": num_filler_words,
        },
    )


def apart(words: list[str], count: int) -> list[str]:
    """The first words of which none contains another."""
    chosen: list[str] = []
    for word in words:
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
        if len(chosen) == count:
            break
    return chosen


def compounds(words: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Distinct pairs of words, for lists longer than there are words."""
    seen: set[tuple[int, int]] = set()
    while True:
        first, second = (int(place) for place in rng.integers(len(words), size=2))
        if first != second and (first, second) not in seen:
            seen.add((first, second))
            yield f"{words[first]}-{words[second]}"


def _word_list(common: list[str], others: list[str], repeats: Repeats, rng: np.random.Generator) -> str:
    entries = common * repeats.common + others * repeats.other
    return numbered([entries[place] for place in rng.permutation(len(entries))])


def _question(text: str) -> tuple[str, str]:
    return (
        "The numbered list of words below repeats some words more often than others. Keep in mind which ones it "
        f"repeats most.\n{text}\nQuestion: Which {NUM_COMMON} words are the most common in the list above?",
        f"Answer: The {NUM_COMMON} words that the list above repeats most are:",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonWords(RulerTask):
    """Ten words repeated 30 times among words repeated 3 times; 120 tokens of answer."""

    name: ClassVar[str] = "ruler_cwe"
    max_new_tokens: ClassVar[int] = 120
    score: ClassVar = staticmethod(string_match_all)

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """Prompts of one trial by distinct words."""
        seed = int(context.rng(self.name, length_tokens, index).integers(2**63))
        form = LONG_FORM if length_tokens >= _SHORT_TOKENS else SHORT_FORM
        return lambda others, filler: common_words_draft(form, seed, others, filler)

"""Frequent words: the three words that a coded text repeats most, when frequencies follow a power law.

    count of the word of rank k = floor(n * k^-alpha / zeta(alpha))

Rank 1 is noise, written as dots; ranks 2, 3 and 4 are wanted.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own.
"""

import math
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import string_match_all
from skipwise.evals.ruler.draft import Draft, Drafter, filler_words
from skipwise.evals.ruler.task import RulerTask

NOISE = "..."
ALPHA = 2.0
_ZETA = math.pi**2 / 6  # zeta(2)
_WORD_LETTERS = 6
_TOKENS_PER_WORD_TYPE = 50
# The fewest draws whose ranks 2 to 5 all differ in count: 8, 3, 2, 1. Below it the three words may be undetermined.
MIN_DRAWS = 53


def rank_counts(num_draws: int, num_types: int) -> list[int]:
    """How often the word of each rank occurs, most frequent first."""
    ranks = np.arange(1, num_types + 1)
    return (num_draws * ranks**-ALPHA / _ZETA).astype(int).tolist()


def frequent_words_draft(seed: int, num_types: int, num_draws: int, num_filler_words: int) -> Draft:
    """One coded text and the question.

    Args:
        seed: of every draw; the words do not depend on the text's size.
        num_types: distinct words, the noise among them.
        num_draws: `n` of the formula.
        num_filler_words: filler after the text.
    """
    rng = np.random.default_rng(seed)
    types: dict[str, None] = {NOISE: None}
    while len(types) < num_types:
        types["".join(ascii_lowercase[letter] for letter in rng.integers(0, 26, size=_WORD_LETTERS))] = None
    ranked = list(types)
    coded = [word for word, count in zip(ranked, rank_counts(num_draws, num_types), strict=True) for _ in range(count)]
    text = " ".join(coded[place] for place in rng.permutation(len(coded)))
    if num_filler_words:
        text += "\n" + filler_words(num_filler_words)
    return Draft(
        request="The text below is written in coded words. Keep track of how often each occurs and find the three "
        f"most frequent ones. {text}\nQuestion: Without explaining, and leaving out the dots '{NOISE}', which three "
        "words occur most often in the coded text above?",
        answer_prefix="Answer: The three words that occur most often in the coded text above are:",
        references=ranked[1:4],
        details={"draws": num_draws, "filler_words": num_filler_words},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequentWords(RulerTask):
    """Three coded words by frequency, with alpha 2; 50 tokens of answer."""

    name: ClassVar[str] = "ruler_fwe"
    max_new_tokens: ClassVar[int] = 50
    score: ClassVar = staticmethod(string_match_all)

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """Prompts of one trial by draws beyond the fewest that determine an answer."""
        seed = int(context.rng(self.name, length_tokens, index).integers(2**63))
        num_types = max(5, length_tokens // _TOKENS_PER_WORD_TYPE)
        return lambda draws, filler: frequent_words_draft(seed, num_types, MIN_DRAWS + draws, filler)

"""Counting words: the most common words of a long list, and the most frequent words of a coded text.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from string import ascii_lowercase
from typing import ClassVar, NamedTuple

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft
from skipwise.evals.ruler.task import Drafter, RulerTask, topped_up
from skipwise.evals.ruler.vocabulary import ADJECTIVES, NOUNS, VERBS

WORDS = (*NOUNS, *ADJECTIVES, *VERBS)
NUM_COMMON = 10
_SHORT_TOKENS = 4096


class Repeats(NamedTuple):
    """The number of times that a list repeats its common and its other words."""

    common: int
    other: int


class CommonWordsForm(NamedTuple):
    """The list of the question, and that of the worked example before it."""

    asked: Repeats
    example: Repeats
    example_others: int


LONG_FORM = CommonWordsForm(Repeats(30, 3), Repeats(10, 3), example_others=30)
# RULER's own counts below 4096 tokens.
SHORT_FORM = CommonWordsForm(Repeats(6, 1), Repeats(3, 1), example_others=10)


def common_words_draft(form: CommonWordsForm, seed: int, num_others: int, num_filler_words: int) -> Draft:
    """A worked example, then the question.

    Args:
        form: the counts of both lists.
        seed: seed of all draws; the common words do not depend on the list's size.
        num_others: number of distinct words besides the common ones.
        num_filler_words: number of filler words after the list.
    """
    rng = np.random.default_rng(seed)
    words = [WORDS[place] for place in rng.permutation(len(WORDS))]
    common = apart(words, NUM_COMMON)
    # Answers are scored by containment, so no other word may contain a common one.
    rest = [word for word in words if not any(wanted in word for wanted in common)]
    shown, rest = rest[: NUM_COMMON + form.example_others], rest[NUM_COMMON + form.example_others :]
    others = [*rest[:num_others], *islice(compounds(rest, rng), max(0, num_others - len(rest)))]
    example = _question(_word_list(shown[:NUM_COMMON], shown[NUM_COMMON:], form.example, rng))
    request, prefix = _question(topped_up(_word_list(common, others, form.asked, rng), num_filler_words))
    return Draft(
        request=f"{' '.join(example)} {_numbered(shown[:NUM_COMMON])}\n{request}",
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
    """The first `count` words of which none contains another."""
    chosen: list[str] = []
    for word in words:
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
        if len(chosen) == count:
            break
    return chosen


def compounds(words: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Distinct pairs of words, for lists of more entries than there are words."""
    seen: set[tuple[int, int]] = set()
    while True:
        first, second = (int(place) for place in rng.integers(len(words), size=2))
        if first != second and (first, second) not in seen:
            seen.add((first, second))
            yield f"{words[first]}-{words[second]}"


def _word_list(common: list[str], others: list[str], repeats: Repeats, rng: np.random.Generator) -> str:
    entries = common * repeats.common + others * repeats.other
    return _numbered([entries[place] for place in rng.permutation(len(entries))])


def _numbered(entries: Sequence[str]) -> str:
    """`1. first 2. second ...`"""
    return " ".join(f"{place}. {entry}" for place, entry in enumerate(entries, 1))


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

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by number of distinct words."""
        seed = self.seed(context, length_tokens, index)
        form = LONG_FORM if length_tokens >= _SHORT_TOKENS else SHORT_FORM
        return lambda others, filler: common_words_draft(form, seed, others, filler)


NOISE = "..."
ALPHA = 2.0
_ZETA = math.pi**2 / 6  # zeta(2)
_WORD_LETTERS = 6
_TOKENS_PER_WORD_TYPE = 50
# The fewest draws with different counts of ranks 2 to 5: 8, 3, 2, 1. With fewer, the three words may be ambiguous.
MIN_DRAWS = 53


def rank_counts(num_draws: int, num_types: int) -> list[int]:
    """The count of the word of each rank: `floor(n * k^-alpha / zeta(alpha))` for rank k of n draws.

    Rank 1 is noise, written as dots; ranks 2, 3 and 4 are the answer.
    """
    ranks = np.arange(1, num_types + 1)
    return (num_draws * ranks**-ALPHA / _ZETA).astype(int).tolist()


def frequent_words_draft(seed: int, num_types: int, num_draws: int, num_filler_words: int) -> Draft:
    """One coded text and the question.

    Args:
        seed: seed of all draws; the words do not depend on the text's size.
        num_types: number of distinct words, including the noise.
        num_draws: `n` in `rank_counts`.
        num_filler_words: number of filler words after the text.
    """
    rng = np.random.default_rng(seed)
    types: dict[str, None] = {NOISE: None}
    while len(types) < num_types:
        types["".join(ascii_lowercase[letter] for letter in rng.integers(0, 26, size=_WORD_LETTERS))] = None
    ranked = list(types)
    coded = [word for word, count in zip(ranked, rank_counts(num_draws, num_types), strict=True) for _ in range(count)]
    text = topped_up(" ".join(coded[place] for place in rng.permutation(len(coded))), num_filler_words)
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

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by number of draws beyond the minimum."""
        seed = self.seed(context, length_tokens, index)
        num_types = max(5, length_tokens // _TOKENS_PER_WORD_TYPE)
        return lambda draws, filler: frequent_words_draft(seed, num_types, MIN_DRAWS + draws, filler)

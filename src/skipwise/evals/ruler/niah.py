"""Needles in a haystack: the eight retrieval tasks of RULER.

A needle gives a value to a key. The haystack is filler sentences (`noise`), running text of documents (`essay`), or
needles of other keys (`needle`). The question asks for all values of one key or of several; other keys distract.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own.
"""

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from skipwise.errors import DataError
from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft
from skipwise.evals.ruler.task import Drafter, RulerTask, filler_lines, insert_at_random, topped_up
from skipwise.evals.ruler.vocabulary import ADJECTIVES, NOUNS

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]

NEEDLE = "One secret {kind} of {key} is: {value}."
# Depths in percent of the needles in running text; each is used once.
_DEPTHS = np.linspace(0, 100, num=40).round().astype(int)
# Text without sentence ends, such as code, is split after this many words.
_LONGEST_SENTENCE_WORDS = 32
_CLOSING_MARKS = "\"')]\u201d\u2019」』）"


class UniqueDraws:
    """Keys and values without repetition, so that a question has one answer."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._seen: set[str] = set()

    def draw(self, kind: Kind) -> str:
        """A new adjective-noun pair, seven-digit number or UUID."""
        while (drawn := _DRAWS[kind](self._rng)) in self._seen:
            pass
        self._seen.add(drawn)
        return drawn


def _word(rng: np.random.Generator) -> str:
    return f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]}-{NOUNS[rng.integers(len(NOUNS))]}"


_DRAWS: dict[Kind, Callable[[np.random.Generator], str]] = {
    "words": _word,
    "numbers": lambda rng: str(rng.integers(10**6, 10**7)),
    "uuids": lambda rng: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
}
_SINGULAR: dict[Kind, str] = {"words": "word", "numbers": "number", "uuids": "uuid"}


def _into_text(needles: Sequence[str], words: Sequence[str], rng: np.random.Generator) -> str:
    """Running text with needles between sentences, at distinct depths out of forty evenly spaced ones."""
    ends = [0, *sentence_ends(words)]
    depths = np.sort(rng.choice(_DEPTHS, size=len(needles), replace=False))
    parts: list[str] = []
    begin = 0
    for needle, depth in zip(needles, depths, strict=True):
        end = ends[(len(ends) - 1) * int(depth) // 100]
        parts += [*words[begin:end], needle]
        begin = end
    return " ".join([*parts, *words[begin:]])


class DocumentWords:
    """The first words of the documents, decoded only as far as needed.

    Documents follow each other from a given one on, and start over after the last. White space becomes single spaces.

    Args:
        context: the documents and their tokenizer.
        first: index of the first document.
    """

    def __init__(self, context: EvalContext, first: int) -> None:
        self._texts = _texts_from(context, first)
        self._num_documents = len(context.documents)
        self._words: list[str] = []

    def __call__(self, num_words: int) -> list[str]:
        """The first `num_words` words.

        Raises:
            DataError: no document has a word.
        """
        for read, text in enumerate(self._texts if len(self._words) < num_words else (), 1):
            self._words += text.split()
            if len(self._words) >= num_words:
                break
            if read >= self._num_documents and not self._words:
                raise DataError(
                    f"none of the {self._num_documents} documents has text, which a haystack needs: give documents"
                )
        return self._words[:num_words]


def _texts_from(context: EvalContext, first: int) -> Iterator[str]:
    for index in itertools.count(first):
        yield context.tokenizer.decode(context.body(index % len(context.documents)).tolist())


def sentence_ends(words: Sequence[str]) -> list[int]:
    """The number of words up to the end of each sentence, in order."""
    ends: list[int] = []
    last = 0
    for count, word in enumerate(words, 1):
        if (
            word.rstrip(_CLOSING_MARKS).endswith((".", "!", "?", "。", "！", "？"))
            or count - last >= _LONGEST_SENTENCE_WORDS
        ):
            ends.append(count)
            last = count
    return ends


class NeedleTask(RulerTask):
    """Base of the retrieval tasks: 128 tokens of answer, scored by the share of values that it contains.

    Attributes:
        haystack: what the needles hide in.
        keys: what keys are made of.
        values: what values are made of.
        num_keys: number of keys, including distractors.
        num_values: number of values of each key; the answer contains them all.
        num_queries: number of keys that are asked for; there are at least as many keys.
    """

    max_new_tokens = 128
    haystack: ClassVar[Haystack]
    keys: ClassVar[Kind] = "words"
    values: ClassVar[Kind] = "numbers"
    num_keys: ClassVar[int] = 1
    num_values: ClassVar[int] = 1
    num_queries: ClassVar[int] = 1

    @property
    def uses_documents(self) -> bool:
        """Whether the haystack is text of the documents."""
        return self.haystack == "essay"

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by size."""
        rng = context.rng(self.name, length_tokens, index)
        seed = int(rng.integers(2**63))
        first = int(rng.integers(len(context.documents))) if self.uses_documents else 0
        return partial(self.draft, seed, DocumentWords(context, first))

    def draft(self, seed: int, words: Callable[[int], Sequence[str]], num_units: int, num_filler_words: int) -> Draft:
        """One question over a haystack of a given size.

        Args:
            seed: seed of all draws; keys and values do not depend on the haystack's size.
            words: returns the first words of running text, given their number; used by `essay` alone.
            num_units: size of the haystack: words, or distractor needles if the haystack is needles.
            num_filler_words: number of filler words after it.
        """
        rng = np.random.default_rng(seed)
        unique = UniqueDraws(rng)
        kind = _SINGULAR[self.values]

        def needle(key: str, value: str) -> str:
            return NEEDLE.format(kind=kind, key=key, value=value)

        keys = [unique.draw(self.keys) for _ in range(max(self.num_keys, self.num_queries))]
        values = [[unique.draw(self.values) for _ in range(self.num_values)] for _ in keys]
        needles = [needle(key, value) for key, own in zip(keys, values, strict=True) for value in own]
        needles = [needles[place] for place in rng.permutation(len(needles))]
        if self.haystack == "essay":
            context = _into_text(needles, words(num_units), rng)
        else:
            if self.haystack == "noise":
                lines = filler_lines(num_units)
            else:
                lines = [needle(unique.draw(self.keys), unique.draw(self.values)) for _ in range(num_units)]
            context = "\n".join(insert_at_random(lines, needles, rng))
        context = topped_up(context, num_filler_words)
        queries = keys[: self.num_queries]
        references = [value for own in values[: self.num_queries] for value in own]
        listed = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
        if len(references) == 1:
            opening = f"A secret {kind} is hidden in the text below. Keep it in mind: you will be asked for the {kind}."
            question = f"What is the secret {kind} of {listed} that the text above states?"
            prefix = f"The secret {kind} of {listed} that the text above states is"
        else:
            opening = (
                f"Secret {kind}s are hidden in the text below. Keep them in mind: you will be asked for the {kind}s."
            )
            question = f"What are all the secret {kind}s of {listed} that the text above states?"
            prefix = f"The secret {kind}s of {listed} that the text above states are"
        return Draft(
            request=f"{opening}\n{context}\n{question}",
            answer_prefix=prefix,
            references=references,
            details={"keys": queries, "haystack": self.haystack, "filler_words": num_filler_words},
        )


class NeedleSingle1(NeedleTask):
    """One number of one key in filler sentences: much like a passkey."""

    name = "ruler_niah_single_1"
    haystack = "noise"


class NeedleSingle2(NeedleTask):
    """One number of one key in running text: the classic test."""

    name = "ruler_niah_single_2"
    haystack = "essay"


class NeedleSingle3(NeedleTask):
    """One UUID of one key in running text: a long value."""

    name = "ruler_niah_single_3"
    haystack = "essay"
    values = "uuids"


class NeedleMultiKey1(NeedleTask):
    """One number among those of four keys in running text."""

    name = "ruler_niah_multikey_1"
    haystack = "essay"
    num_keys = 4


class NeedleMultiKey2(NeedleTask):
    """One number where every line is a needle."""

    name = "ruler_niah_multikey_2"
    haystack = "needle"


class NeedleMultiKey3(NeedleTask):
    """One UUID where every line gives a UUID to a UUID."""

    name = "ruler_niah_multikey_3"
    haystack = "needle"
    keys = "uuids"
    values = "uuids"


class NeedleMultiValue(NeedleTask):
    """All four numbers of one key in running text."""

    name = "ruler_niah_multivalue"
    haystack = "essay"
    num_values = 4


class NeedleMultiQuery(NeedleTask):
    """The numbers of four keys in running text, all asked at once."""

    name = "ruler_niah_multiquery"
    haystack = "essay"
    num_queries = 4

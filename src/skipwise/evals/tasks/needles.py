"""Needles in a haystack by length and depth: one, one among others, several of one key, several keys.

The kinds are those of RULER's needle family (arXiv 2404.06654, section 3.1). The wording is our own, so figures cannot
be compared with published ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.haystack import closed, filler_ids, running_text, with_lines
from skipwise.evals.languages import ENGLISH, LANGUAGES, Language, NeedleWords
from skipwise.evals.prompts import (
    Prompt,
    answer_prompts,
    opening_ids,
    score_results,
    split_answers,
    string_match_all,
)
from skipwise.evals.settings import NO_KEY, AtDepths, Count, Haystack
from skipwise.records.results import EvalResult, Measurement, Sample

NeedleKind = Literal["single", "multi_key", "multi_value", "multi_query"]
KINDS: tuple[NeedleKind, ...] = NeedleKind.__args__
# Every language has as many keys.
_MOST_NEEDLES = min(language.needles.num_keys for language in LANGUAGES.values())


class Needle(NamedTuple):
    """One hidden line.

    Attributes:
        key: what it is about.
        value: its number, seven digits.
        depth: its position in the haystack, 0 start to 1 end.
    """

    key: str
    value: str
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleGrid(AtDepths):
    """Share of the asked needles that the model's answer contains, by length, kind and depth.

    Kinds: `single` hides one needle; `multi_key` hides others like it beside it; `multi_value` hides several values of
    one key and asks for all; `multi_query` hides several keys and asks for all. Prompt and answer together have exactly
    the asked length. Answers are decoded greedily; where one needle is asked for, a pass over the right answer decides.

    Depths are stratified: each of `num_depths` equal parts of the text gets the first asked needle of the same number
    of trials, at a random place in the part. Further asked needles follow at equal distances, wrapping around the end,
    and each counts in the part where it lies: the score at a depth is the share of the needles there that were found.
    Intervals are Wilson's, with the sum of the scores as the number of right trials.

    Attributes:
        kinds: the kinds to measure.
        trials: number of trials per length and kind, a multiple of `num_depths`.
        num_depths: number of parts of the text.
        num_needles: number of needles of every kind except `single`.
        max_new_tokens: maximum number of tokens of the answer, which count towards the length.
        haystack: the text around the needles: plain sentences, or text of the documents.
        language: code of the language of the instruction, the hidden lines and the question, such as `ja`. By default
            that of the haystack.
    """

    name: ClassVar[str] = "needles"
    kinds: Annotated[Sequence[NeedleKind], Field(min_length=1, description="a list of kinds")] = KINDS
    trials: Count = 25
    num_depths: Count = 5
    num_needles: Annotated[int, Field(ge=2, le=_MOST_NEEDLES)] = 4
    max_new_tokens: Count = 128
    haystack: Haystack = "filler"
    language: str | None = field(default=None, metadata=NO_KEY)

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that every trial's needles, question and answer fit, and that the haystack has text."""
        for length in lengths:
            for kind in dict.fromkeys(self.kinds):
                for trial in range(self.trials):
                    self.prompt(context, kind, length, trial)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length: the score of each kind, then of each kind by depth."""
        spoken = self.spoken(context)
        for length in lengths:
            by_kind: dict[NeedleKind, list[Sample]] = {}
            for kind in dict.fromkeys(self.kinds):
                build = partial(self.prompt, context, kind, length)
                score = string_match_all
                by_kind[kind] = answer_prompts(context, self, length, self.trials, build, score, kind=kind, **spoken)
            results: list[EvalResult] = []
            for kind, of_kind in by_kind.items():
                results += score_results(context, self, length, of_kind, kind=kind, **spoken)
            for kind, of_kind in by_kind.items():
                for part, depths in enumerate(self.parts()):
                    found = self._found_in(part, of_kind)
                    about = {"metric": "score_at_depth", "kind": kind, **spoken, **depths}
                    results += score_results(context, self, length, found, **about)
            yield Measurement(results, [sample for of_kind in by_kind.values() for sample in of_kind])

    def prompt(self, context: EvalContext, kind: NeedleKind, length_tokens: int, trial: int) -> Prompt:
        """One trial, which depends only on seed, kind, length and number.

        Raises:
            ConfigError: instruction, needles, question and answer alone are longer than the length.
        """
        rng = context.rng(f"{self.name} {kind}", length_tokens, trial)
        depth = self.depth(trial, rng)
        language = self.language_in(context)
        words = language.needles
        needles, num_asked = self._needles(kind, depth, words, rng)
        asked = needles[:num_asked]
        question, answer = _question(kind, asked, language, rng)
        question_ids, (answer_ids,) = split_answers(context.tokenizer, question, [answer])
        template = words.needle_of_several if kind == "multi_value" else words.needle
        lines = [
            context.tokenizer.encode(template.format(key=needle.key, value=needle.value), add_special_tokens=False)
            for needle in needles
        ]
        opening = opening_ids(context.tokenizer, words.instruction)
        room = length_tokens - len(opening) - sum(map(len, lines)) - len(question_ids) - self.max_new_tokens
        if room < 0:
            raise ConfigError(
                f"needles length is {length_tokens} tokens; instruction, needles and question of kind {kind} take "
                f"{length_tokens - room - self.max_new_tokens} with this tokenizer and the answer may take "
                f"{self.max_new_tokens}: ask for at least {length_tokens - room}, or set fewer max_new_tokens",
                page="length-does-not-fit",
            )
        haystack = self._haystack(context, room, rng)
        if language is not ENGLISH:
            haystack = closed(context.tokenizer, haystack)
        placed = [(needle.depth, line) for needle, line in zip(needles, lines, strict=True)]
        # English prompts stay as those of earlier versions.
        text = with_lines(context.tokenizer, haystack, placed, whole=language is not ENGLISH)
        return Prompt(
            prompt_ids=opening + text + question_ids,
            references=[needle.value for needle in asked],
            max_new_tokens=self.max_new_tokens,
            answer_ids=answer_ids,
            details={
                "kind": kind,
                "depth": depth,
                "depths": [needle.depth for needle in asked],
                "keys": [needle.key for needle in asked],
            },
        )

    def _needles(
        self, kind: NeedleKind, depth: float, words: NeedleWords, rng: np.random.Generator
    ) -> tuple[list[Needle], int]:
        """The needles of a trial, and the number of them, counted from the first, that are asked for."""
        count = 1 if kind == "single" else self.num_needles
        num_keys = 1 if kind == "multi_value" else count
        chosen = rng.choice(words.num_keys, size=num_keys, replace=False).tolist()
        keys = [words.key_of(number) for number in chosen]
        values = (1_000_000 + rng.choice(9_000_000, size=count, replace=False)).tolist()
        num_asked = 1 if kind == "multi_key" else count
        depths = [(depth + place / num_asked) % 1 for place in range(num_asked)]
        depths += rng.random(count - num_asked).tolist()
        return [Needle(keys[i % num_keys], str(values[i]), depths[i]) for i in range(count)], num_asked

    def _haystack(self, context: EvalContext, num_tokens: int, rng: np.random.Generator) -> list[int]:
        if self.uses_documents:
            return running_text(context, num_tokens, rng)
        return filler_ids(context.tokenizer, self.language_in(context), num_tokens, rng)

    def _found_in(self, part: int, samples: Sequence[Sample]) -> list[Sample]:
        """Scores of the asked needles in one part of the text: at least the first ones of its stratum."""
        found = []
        for sample in samples:
            asked = zip(sample["references"], sample["depths"], strict=True)
            if there := [reference for reference, depth in asked if int(depth * self.num_depths) == part]:
                found.append({"score": string_match_all(sample["output"], there)})
        return found


def _question(
    kind: NeedleKind, asked: Sequence[Needle], language: Language, rng: np.random.Generator
) -> tuple[str, str]:
    """The question about the asked needles, and the only right continuation, or "" if there are several."""
    words = language.needles
    if kind == "multi_value":
        return words.question_values.format(key=asked[0].key, count=len(asked)), ""
    if kind == "multi_query":
        # In another order than in the text.
        keys = language.listed([asked[place].key for place in rng.permutation(len(asked))])
        return words.question_keys.format(keys=keys), ""
    return words.question.format(key=asked[0].key), language.answer(asked[0].value)

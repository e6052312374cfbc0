"""Passkey prompts of an exact length: a five-digit key somewhere in filler, asked for at the end.

Protocol: landmark attention (arXiv 2305.16300): instruction, filler, the key stated twice, filler, question. The
wording is our own, so figures cannot be compared with published ones.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from skipwise.errors import ConfigError
from skipwise.evals.haystack import closed, whole_until
from skipwise.evals.languages import ENGLISH, Language
from skipwise.evals.prompts import Prompt, opening_ids, split_answers


class Tokenizer(Protocol):
    """What a prompt needs of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int], /) -> Any:
        """The text of token ids."""
        ...


class PasskeyBuilder:
    """Builds passkey prompts for one tokenizer; tokenizes the fixed parts once.

    Args:
        tokenizer: the tokenizer.
        filler_ids: token ids to hide the key in, truncated or repeated to length; the default is a few plain sentences.
        language: of everything else.
    """

    def __init__(
        self, tokenizer: Tokenizer, filler_ids: Sequence[int] | None = None, language: Language = ENGLISH
    ) -> None:
        self._tokenizer, self._language = tokenizer, language
        self._encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))
        self._instruction = opening_ids(tokenizer, language.passkey.instruction)
        self._filler = list(filler_ids) if filler_ids is not None else self._encode(language.passkey.filler)

    def build(self, length_tokens: int, depth: float, rng: np.random.Generator, key: str | None = None) -> Prompt:
        """Builds a prompt that has exactly `length_tokens` tokens together with its answer.

        Args:
            length_tokens: tokens of prompt and answer together.
            depth: position of the key, 0 (first) to 1 (last, right before the question).
            rng: source of the key, if none is given, and of the filler's start.
            key: digits to hide; by default five are drawn.

        Raises:
            ConfigError: instruction, key and question alone are longer than `length_tokens`.
        """
        if key is None:
            key = _drawn_key(rng)
        parts = self._parts(key)
        needle, question, answer = parts
        room = length_tokens - len(self._instruction) - sum(map(len, parts))
        if room < 0:
            raise ConfigError(
                f"passkey length is {length_tokens} tokens; instruction, key and question alone take "
                f"{length_tokens - room} with this tokenizer: ask for at least that",
                page="length-does-not-fit",
            )
        start = int(rng.integers(0, len(self._filler)))
        if self._language is not ENGLISH:
            start = whole_until(self._tokenizer, self._filler, start)
        filler = np.resize(np.roll(np.asarray(self._filler), -start), room).tolist()
        cut = round(depth * room)
        if self._language is not ENGLISH:
            # English prompts stay as those of earlier versions.
            filler = closed(self._tokenizer, filler)
            cut = whole_until(self._tokenizer, filler, cut)
        prompt = self._instruction + filler[:cut] + needle + filler[cut:] + question
        return Prompt(
            prompt_ids=prompt, references=[key], max_new_tokens=len(answer), answer_ids=answer, details={"depth": depth}
        )

    def shortest_tokens(self, rng: np.random.Generator) -> int:
        """Tokens of the shortest prompt and answer that `build` can make of these draws."""
        return len(self._instruction) + sum(map(len, self._parts(_drawn_key(rng))))

    def _parts(self, key: str) -> tuple[list[int], list[int], list[int]]:
        """The token ids of the needle, of the question and of the answer."""
        words = self._language.passkey
        question, (answer,) = split_answers(self._tokenizer, words.question, [self._language.answer(key)])
        return self._encode(words.needle.format(key=key)), question, answer


def _drawn_key(rng: np.random.Generator) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, size=5))

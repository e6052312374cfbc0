"""What all RULER tasks share: the search for the size that fills the length, and the task itself.

A family of tasks makes drafts of any size from a seed. The search changes the size until the prompt fills the length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft, EncodedDraft, PromptEncoder
from skipwise.evals.languages import ENGLISH
from skipwise.evals.prompts import Prompt, Score, answer_prompts, score_results, string_match_all
from skipwise.evals.settings import NO_KEY, Count, check_settings, check_thinking
from skipwise.evals.thinking import AfterThought
from skipwise.records.results import Measurement

TOLERANCE = 0.02
"""Share of the length that a prompt and its answer may fall short by."""

# Upper bound of a guessed size relative to the largest measured one: tokens per unit change with size.
_MAX_GROWTH = 16
# Number of guesses by slope before the search bisects; only a very uneven tokenizer needs that.
_MAX_GUESSES = 8


Drafter = Callable[[int, int], Draft]
"""Makes the prompt from the number of units of haystack and the number of filler words, on which alone it depends."""


_FILLER_WORDS = ENGLISH.passkey.filler.split()


def filler_words(num_words: int) -> str:
    """The first words of sentences that say nothing, repeated; prompts are topped up with them."""
    return " ".join(_FILLER_WORDS[index % len(_FILLER_WORDS)] for index in range(num_words))


def topped_up(text: str, num_words: int, gap: str = "\n") -> str:
    """The text, followed by filler words, if any, after a gap."""
    return text + gap + filler_words(num_words) if num_words else text


def filler_lines(num_words: int) -> list[str]:
    """The same words in lines of one round of the sentences each; the last line may break off."""
    rounds, rest = divmod(num_words, len(_FILLER_WORDS))
    return [filler_words(len(_FILLER_WORDS))] * rounds + ([filler_words(rest)] if rest else [])


def insert_at_random(lines: Sequence[str], inserted: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Lines with others inserted in their order, each before another random line; at the end if lines are too few."""
    places = np.sort(rng.permutation(max(len(lines), len(inserted)))[: len(inserted)])
    mixed = list(lines)
    for shift, (place, line) in enumerate(zip(places, inserted, strict=True)):
        mixed.insert(int(place) + shift, line)
    return mixed


def fit_length(
    draft: Drafter, encoder: PromptEncoder, length_tokens: int, *, max_new_tokens: int, task: str
) -> EncodedDraft:
    """The prompt that fills `length_tokens` together with the tokens to be generated: never more, at most 2% less.

    The search stops at the first prompt within the 2%, as tokenizing a long one takes time. If one more unit of
    haystack is more than the 2%, or there is none, the largest prompt that fits is topped up with filler words, whose
    number the draft's details tell. Tokens need not grow strictly with the size: the returned prompt was measured, so
    it never exceeds the length. Only a single filler word of more than 2% can leave it shorter.

    Args:
        draft: makes the prompt of a size.
        encoder: tokenizes it.
        length_tokens: maximum tokens of prompt and answer.
        max_new_tokens: maximum tokens of the answer.
        task: name for error messages.

    Raises:
        ConfigError: the prompt without haystack is too long.
    """
    room = length_tokens - max_new_tokens
    smallest = smallest_prompt(draft, encoder, length_tokens, max_new_tokens=max_new_tokens, task=task)
    near = int(length_tokens * TOLERANCE)
    size, best = _largest(lambda units: encoder.encode(draft(units, 0)), smallest, room, near)
    if room - len(best.prompt_ids) > near:
        _, best = _largest(lambda words: encoder.encode(draft(size, words)), best, room, near)
    return best


def smallest_prompt(
    draft: Drafter, encoder: PromptEncoder, length_tokens: int, *, max_new_tokens: int, task: str
) -> EncodedDraft:
    """The prompt without haystack; arguments and errors as of `fit_length`."""
    smallest = encoder.encode(draft(0, 0))
    if len(smallest.prompt_ids) > length_tokens - max_new_tokens:
        raise ConfigError(
            f"{task} length is {length_tokens} tokens; its smallest prompt takes {len(smallest.prompt_ids)} and the "
            f"answer {max_new_tokens} with this tokenizer: ask for at least "
            f"{len(smallest.prompt_ids) + max_new_tokens}, better twice that",
            page="length-does-not-fit",
        )
    return smallest


def _largest(
    make: Callable[[int], EncodedDraft], smallest: EncodedDraft, room: int, near: int
) -> tuple[int, EncodedDraft]:
    """A size whose prompt has at most `room` tokens: the largest, or one within `near` tokens of `room`.

    Sizes are guessed from the tokens per unit between the last two measured. Each step narrows the bracket, so the
    search always ends.
    """
    low, fitting = 0, smallest
    high = high_tokens = None
    tokens_per_unit = 1.0
    guesses = 0
    while room - len(fitting.prompt_ids) > near and (high is None or high - low > 1):
        if high is not None and guesses > _MAX_GUESSES:
            guess = (low + high) // 2
        else:
            aim = room - near / 2 - len(fitting.prompt_ids)
            guess = min(low + int(aim / tokens_per_unit), _MAX_GROWTH * (low + 1))
            guess = max(guess, low + 1) if high is None else min(max(guess, low + 1), high - 1)
        guesses += 1
        made = make(guess)
        tokens = len(made.prompt_ids)
        if tokens > room:
            high, high_tokens = guess, tokens
        else:
            # There is no more haystack.
            if tokens == len(fitting.prompt_ids) and made.draft.request == fitting.draft.request:
                break
            tokens_per_unit = max((tokens - len(fitting.prompt_ids)) / (guess - low), 0.05)
            low, fitting = guess, made
        if high is not None and high_tokens is not None:
            tokens_per_unit = max((high_tokens - len(fitting.prompt_ids)) / (high - low), 0.05)
    return low, fitting


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerTask:
    """A RULER task: prompts that fill the length, answers of a fixed number of tokens, scored by containment.

    Attributes:
        trials: number of prompts per length.
        chat: whether the request goes into the tokenizer's chat template; base models read plain text.
        thinking_tokens: number of tokens that a reasoning model may think before it answers, counted in the length. The
            thought is not scored. With 0 it answers at once, by the template's own switch or after an empty thought.

    Source: RULER (arXiv 2404.06654) and its published settings. The wording and the words are our own, so figures
        cannot be compared with published ones.
    """

    name: ClassVar[str]
    max_new_tokens: ClassVar[int]
    score: ClassVar[Score] = staticmethod(string_match_all)
    trials: Count = field(default=50, metadata=NO_KEY)
    chat: bool = False
    thinking_tokens: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        check_settings(self)
        check_thinking(self)

    @property
    def uses_documents(self) -> bool:
        """Whether the haystack is text of the documents."""
        return False

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by size of the haystack."""
        raise NotImplementedError

    def scope(self) -> dict[str, Any]:
        """JSON values that the samples depend on besides the settings; they also join the results' details."""
        return {}

    def seed(self, context: EvalContext, length_tokens: int, index: int) -> int:
        """The seed of one trial's draft."""
        return int(context.rng(self.name, length_tokens, index).integers(2**63))

    def prompt(self, context: EvalContext, length_tokens: int, index: int) -> Prompt:
        """One trial, which depends only on seed, length and number.

        Raises:
            ConfigError: the smallest prompt is too long.
        """
        draft, prompt_ids = self._fitted(fit_length, context, length_tokens, index)
        settled = len(draft.references) == 1 and not self.thinking_tokens
        return Prompt(
            prompt_ids=prompt_ids,
            references=draft.references,
            max_new_tokens=self._budget,
            answer_ids=self._encoder(context).answer_ids(draft, self.max_new_tokens) if settled else [],
            details=draft.details,
        )

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that the first trial's smallest prompt and its answer fit every length."""
        for length in lengths:
            self._fitted(smallest_prompt, context, length, 0)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on prompts of its own."""
        self.check_lengths(context, lengths)
        scope = self.scope()
        score: Score = self.score
        if self.thinking_tokens:
            score = AfterThought(score, self._encoder(context).opens_thought)
        for length in lengths:
            build = partial(self.prompt, context, length)
            samples = answer_prompts(context, self, length, self.trials, build, score, **scope)
            yield Measurement(score_results(context, self, length, samples, **scope), samples)

    def _fitted(self, fit: Callable[..., EncodedDraft], context: EvalContext, length: int, index: int) -> EncodedDraft:
        drafter, encoder = self.drafter(context, length, index), self._encoder(context)
        return fit(drafter, encoder, length, max_new_tokens=self._budget, task=self.name)

    def _encoder(self, context: EvalContext) -> PromptEncoder:
        thinks = self.thinking_tokens > 0
        return PromptEncoder(context.tokenizer, bos_ids=context.bos("tokenizer"), chat=self.chat, thinks=thinks)

    @property
    def _budget(self) -> int:
        """Maximum tokens of the thought and the answer."""
        return self.max_new_tokens + self.thinking_tokens

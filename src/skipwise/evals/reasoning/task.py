"""What all reasoning tasks share: prompts of an exact length, the first answer that counts, and results with chance."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft, PromptEncoder
from skipwise.evals.languages import Language
from skipwise.evals.languages.wording import AskedWords, ReasoningWords
from skipwise.evals.prompts import (
    Prompt,
    Score,
    answer_prompts,
    in_half_width,
    score_results,
    shared_length,
    split_answers,
)
from skipwise.evals.settings import NO_KEY, Count, Spoken, check_thinking
from skipwise.evals.thinking import AfterThought
from skipwise.records.results import EvalResult, Measurement, Sample

NUMBER = r"\d+"
"""Pattern of answers that are numbers."""

# Letters and digits that would make another word of an answer in a script with spaces.
_LATIN = "0-9A-Za-z\u00c0-\u024f"


def any_of(answers: Iterable[str]) -> str:
    """Pattern of answers, the longest first."""
    ordered = sorted(answers, key=len, reverse=True)
    return rf"(?<![{_LATIN}])(?:{'|'.join(map(re.escape, ordered))})(?![{_LATIN}])"


@dataclass(frozen=True, slots=True)
class FirstNamed:
    """1 if the first possible answer that an output names is the reference, ignoring case and full width, else 0.

    So who lists all possible answers scores no more than who guesses one.

    Attributes:
        possible: pattern of all possible answers.
    """

    possible: str

    def __call__(self, output: str, references: Sequence[str]) -> float:
        """The score of an output."""
        named = re.search(self.possible, in_half_width(output), re.IGNORECASE)
        return float(named is not None and named[0].casefold() == references[0].casefold())


class Text(NamedTuple):
    """The text of a prompt.

    Attributes:
        ids: its token ids.
        chance: score of a guesser who knows which answers the text has to offer, and nothing else.
        details: JSON values that join the sample.
    """

    ids: list[int]
    chance: float
    details: dict[str, Any]


class Body(NamedTuple):
    """A text of any size.

    Attributes:
        least_tokens: the smallest size.
        text: makes the text of exactly so many tokens.
    """

    least_tokens: int
    text: Callable[[int], Text]


class Case(NamedTuple):
    """One question and its text.

    Attributes:
        slots: what the templates of question and prefix are filled with.
        answer: what continues the prefix.
        reference: the part of the answer that tells.
        body: the text.
    """

    slots: dict[str, str]
    answer: str
    reference: str
    body: Body


class _Frame(NamedTuple):
    """A case with the tokens around its text: instruction, question and prefix, in a chat template if there is one."""

    case: Case
    head: list[int]
    tail: list[int]
    answer_ids: list[int]
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningTask(Spoken):
    """Base of the reasoning tasks. Prompt and answer together have exactly the asked length.

    The prompt of a base model ends with the words that the answer continues; in a chat they begin the model's turn.
    The answer is decoded greedily, and the first possible answer that it names counts. `chance` in the details of a
    result is the score of a guesser who takes one of the answers that the text offers. Intervals are Wilson's.

    Attributes:
        trials: number of prompts per length.
        chat: whether the request goes into the tokenizer's chat template; base models read plain text.
        thinking_tokens: number of tokens that a reasoning model may think before it answers, counted in the length. The
            thought is not scored. With 0 it answers at once, by the template's own switch or after an empty thought.
        language: code of the language of everything that is not the documents', such as `ja`. By default that of the
            haystack; English where there is none.
    """

    name: ClassVar[str]
    max_new_tokens: ClassVar[int] = 24
    trials: Count = field(default=25, metadata=NO_KEY)
    chat: bool = False
    thinking_tokens: Annotated[int, Field(ge=0)] = 0
    language: str | None = field(default=None, metadata=NO_KEY)

    def __post_init__(self) -> None:
        Spoken.__post_init__(self)
        check_thinking(self)

    @abstractmethod
    def words(self, words: ReasoningWords) -> AskedWords:
        """The templates of this task."""

    @abstractmethod
    def possible(self, words: ReasoningWords) -> str:
        """Pattern of all possible answers."""

    @abstractmethod
    def case(
        self, context: EvalContext, language: Language, length_tokens: int, trial: int, rng: np.random.Generator
    ) -> Case:
        """The question of a trial, which depends only on these arguments."""

    def parts(self) -> list[dict[str, float]]:
        """Where each part of the text begins and ends, if there are depths; of the trials they take turns."""
        return []

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that every trial's text, question and answer fit."""
        for length in lengths:
            for trial in range(self.trials):
                self._framed(context, length, trial)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length: the score over all trials, then at each depth if the task has any."""
        self.check_lengths(context, lengths)
        spoken = self.spoken(context)
        score: Score = FirstNamed(self.possible(self.language_in(context).reasoning))
        if self.thinking_tokens:
            score = AfterThought(score, self._encoder(context).opens_thought)
        for length in lengths:
            build = partial(self.prompt, context, length)
            samples = answer_prompts(context, self, length, self.trials, build, score, **spoken)
            results = self._results(context, length, samples, **spoken)
            parts = self.parts()
            for part, depths in enumerate(parts):
                about = {"metric": "score_at_depth", **spoken, **depths}
                results += self._results(context, length, samples[part :: len(parts)], **about)
            yield Measurement(results, samples)

    def _results(self, context: EvalContext, length: int, samples: Sequence[Sample], **about: Any) -> list[EvalResult]:
        chance = math.fsum(sample["chance"] for sample in samples) / len(samples)
        return score_results(context, self, length, samples, chance=chance, **about)

    def prompt(self, context: EvalContext, length_tokens: int, trial: int) -> Prompt:
        """One trial, which depends only on seed, length and number.

        Raises:
            ConfigError: all but the haystack is longer than the length.
        """
        case, head, tail, answer_ids, room = self._framed(context, length_tokens, trial)
        text = case.body.text(room)
        return Prompt(
            prompt_ids=head + text.ids + tail,
            references=[case.reference],
            max_new_tokens=self._budget,
            answer_ids=answer_ids,
            details={"chance": text.chance, **text.details},
        )

    def _framed(self, context: EvalContext, length_tokens: int, trial: int) -> _Frame:
        language, tokenizer = self.language_in(context), context.tokenizer
        case = self.case(context, language, length_tokens, trial, context.rng(self.name, length_tokens, trial))
        words = self.words(language.reasoning)
        question, prefix = (template.format(**case.slots) for template in (words.question, words.prefix))
        head, tail = self._around(context, words.instruction, question, prefix)
        answer_ids: list[int] = []
        if not self.thinking_tokens:
            # A token that the tokenizer makes of the prefix's end and the answer's beginning is the answer's.
            kept, (answer_ids,) = split_answers(tokenizer, prefix, [language.answer(case.answer)])
            tail = tail[: len(tail) + len(kept) - len(tokenizer.encode(prefix, add_special_tokens=False))]
        room = length_tokens - self._budget - len(head) - len(tail)
        if room < case.body.least_tokens:
            least = length_tokens - room + case.body.least_tokens
            raise ConfigError(
                f"{self.name} length is {length_tokens} tokens; its smallest prompt takes {least - self._budget} and "
                f"the answer {self._budget} with this tokenizer: ask for at least {least}, better twice that",
                page="length-does-not-fit",
            )
        return _Frame(case, head, tail, answer_ids if len(answer_ids) <= self._budget else [], room)

    def _around(
        self, context: EvalContext, instruction: str, question: str, prefix: str
    ) -> tuple[list[int], list[int]]:
        """The token ids before and after the text: what prompts around two different texts have in common."""
        encoder = self._encoder(context)
        one, other = (
            encoder.encode(Draft(request=f"{instruction}{text}{question}", answer_prefix=prefix, references=[]))
            for text in ("A", "Z")
        )
        begin = shared_length(one.prompt_ids, other.prompt_ids)
        end = shared_length(one.prompt_ids[begin:][::-1], other.prompt_ids[begin:][::-1])
        return one.prompt_ids[:begin], one.prompt_ids[len(one.prompt_ids) - end :]

    def _encoder(self, context: EvalContext) -> PromptEncoder:
        thinks = self.thinking_tokens > 0
        bos = context.bos("tokenizer")
        return PromptEncoder(context.tokenizer, bos_ids=bos, chat=self.chat, thinks=thinks, gap="\n")

    @property
    def _budget(self) -> int:
        """Maximum tokens of the thought and the answer."""
        return self.max_new_tokens + self.thinking_tokens

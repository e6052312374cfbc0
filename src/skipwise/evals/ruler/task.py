"""What all RULER tasks share: trials, the length of their prompts, and how they run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext
from skipwise.evals.prompts import Prompt, Score, answer_prompts, score_results
from skipwise.evals.ruler.draft import Drafter, PromptEncoder
from skipwise.evals.ruler.fitting import fit_length, smallest_prompt
from skipwise.evals.settings import NO_KEY, Count, check_settings
from skipwise.evals.thinking import AfterThought
from skipwise.records.results import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerTask:
    """One RULER task: prompts that fill the asked length, answers of a fixed number of tokens, scored by containment.

    Attributes:
        trials: prompts of one length.
        chat: whether the request goes into the tokenizer's chat template; base models read plain text.
        thinking_tokens: that a reasoning model may think in before it answers, counted in the length; what it thinks is
            not scored. 0 has it answer at once, by the template's own switch or behind an empty thought.

    Source: RULER (arXiv 2404.06654) and its published settings; the wording and the words are our own, so the figures
        compare between models measured here and not with figures printed elsewhere.
    """

    name: ClassVar[str]
    max_new_tokens: ClassVar[int]
    score: ClassVar[Score]
    trials: Count = field(default=50, metadata=NO_KEY)
    chat: bool = False
    thinking_tokens: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.thinking_tokens and not self.chat:
            raise ConfigError(
                f"{self.name}.thinking_tokens is {self.thinking_tokens}, and plain text is not thought about: set "
                f"{self.name}.chat to true, or leave it out"
            )

    @property
    def uses_documents(self) -> bool:
        """Whether the haystack is the documents' text."""
        return False

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """Prompts of one trial by size of the haystack."""
        raise NotImplementedError

    def scope(self) -> dict[str, Any]:
        """JSON values that the samples depend on beside the settings; they also join the results' details."""
        return {}

    def prompt(self, context: EvalContext, length_tokens: int, index: int) -> Prompt:
        """One trial, from its own seed: neither batches nor other lengths change it.

        Raises:
            ConfigError: when even the smallest prompt is too long.
        """
        encoder = self._encoder(context)
        draft, prompt_ids = fit_length(
            self.drafter(context, length_tokens, index),
            encoder,
            length_tokens,
            max_new_tokens=self._budget,
            task=self.name,
        )
        settled = len(draft.references) == 1 and not self.thinking_tokens
        return Prompt(
            prompt_ids=prompt_ids,
            references=draft.references,
            max_new_tokens=self._budget,
            answer_ids=encoder.answer_ids(draft, self.max_new_tokens) if settled else None,
            details=draft.details,
        )

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses lengths that hold no prompt of this task, before any of them is measured.

        Raises:
            ConfigError: when the first trial's smallest prompt and its answer are longer than a length.
        """
        for length in lengths:
            smallest_prompt(
                self.drafter(context, length, 0),
                self._encoder(context),
                length,
                max_new_tokens=self._budget,
                task=self.name,
            )

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on prompts of its own."""
        self.check_lengths(context, lengths)
        scope = self.scope()
        score: Score = self.score
        if self.thinking_tokens:
            score = AfterThought(score, self._encoder(context).opens_thought)
        for length in lengths:
            samples = answer_prompts(
                context,
                self,
                length,
                self.trials,
                lambda index, length=length: self.prompt(context, length, index),
                score,
                **scope,
            )
            yield Measurement(score_results(context, self, length, samples, **scope), samples)

    def _encoder(self, context: EvalContext) -> PromptEncoder:
        thinks = self.thinking_tokens > 0
        return PromptEncoder(context.tokenizer, bos_ids=context.bos("tokenizer"), chat=self.chat, thinks=thinks)

    @property
    def _budget(self) -> int:
        """Tokens that may be generated: those of the answer, and of the thought before it."""
        return self.max_new_tokens + self.thinking_tokens

"""Passkey retrieval by length and depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.haystack import closed, running_text
from skipwise.evals.languages import ENGLISH
from skipwise.evals.prompts import Prompt, prompt_samples
from skipwise.evals.settings import NO_KEY, AtDepths, Count, Haystack
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokens
from skipwise.records.stats import wilson
from skipwise.runtime.forward import Where, logit_pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey(AtDepths):
    """Share of five-digit keys that the model repeats, by length and by the key's depth in the text.

    A trial is correct if greedy decoding would write the key: the argmax at every answer token is that token, in one
    pass over prompt and answer. Depths are stratified: each of `num_depths` equal parts of the text gets the same
    number of trials, each at a random place in its part. Intervals are Wilson's.

    Attributes:
        trials: number of trials per length, a multiple of `num_depths`.
        num_depths: number of parts of the text.
        haystack: the text around the key: plain sentences, or text of the documents.
        language: code of the language of the instruction, the hidden lines and the question, such as `ja`. By default
            that of the haystack.

    Source: landmark attention (arXiv 2305.16300); 50 trials a length as in PoSE (arXiv 2309.10400).
    """

    name: ClassVar[str] = "passkey"
    trials: Count = 50
    num_depths: Count = 10
    haystack: Haystack = "filler"
    language: str | None = field(default=None, metadata=NO_KEY)

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that every trial's instruction, key and question fit, and that the haystack has text."""
        for length in lengths:
            for trial in range(self.trials):
                self.prompt(context, length, trial)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length: the accuracy over all depths, then at each depth."""
        for length in lengths:

            def answer(trials: Sequence[int], prompts: Sequence[Prompt], length: int = length) -> list[Sample]:
                where = [f"passkey, length {length}, trial {trial}" for trial in trials]
                outputs = greedy_answers(context.model, prompts, where)
                return [
                    {
                        **prompt.details,
                        "prompt_sha256": hash_tokens(prompt.prompt_ids),
                        "answer": prompt.references[0],
                        "answer_ids": prompt.answer_ids,
                        "output": context.tokenizer.decode(output_ids),
                        "output_ids": output_ids,
                        "correct": output_ids == prompt.answer_ids,
                    }
                    for prompt, output_ids in zip(prompts, outputs, strict=True)
                ]

            build = partial(self.prompt, context, length)
            spoken = self.spoken(context)
            samples = prompt_samples(context, self, length, self.trials, build, answer, judged="correct", **spoken)
            yield Measurement(self._results(context, length, samples, **spoken), samples)

    def prompt(self, context: EvalContext, length: int, trial: int) -> Prompt:
        """One trial, which depends only on seed, length and number."""
        rng = context.rng(self.name, length, trial)
        filler_ids, language = None, self.language_in(context)
        if self.uses_documents:
            filler_ids = running_text(context, length, rng)
            filler_ids = filler_ids if language is ENGLISH else closed(context.tokenizer, filler_ids)
        builder = PasskeyBuilder(context.tokenizer, filler_ids, language)
        return builder.build(length, self.depth(trial, rng), rng)

    def _results(
        self, context: EvalContext, length: int, samples: Sequence[Sample], **details: Any
    ) -> list[EvalResult]:
        def result(metric: str, chosen: Sequence[Sample], **depths: Any) -> EvalResult:
            share = wilson(sum(sample["correct"] for sample in chosen), len(chosen))
            about = {"num_samples": len(chosen), "interval": "Wilson", **details, **depths}
            return context.result(self, length, metric, share, **about)

        size = self.trials // self.num_depths
        cells = [
            result("accuracy_at_depth", samples[part * size : (part + 1) * size], **depths)
            for part, depths in enumerate(self.parts())
        ]
        return [result("accuracy", samples), *cells]


def greedy_answers(model: Any, prompts: Sequence[Prompt], where: Where) -> list[list[int]]:
    """The argmax at every answer token of each prompt, given the prompt and the right answer so far.

    It equals the answer exactly if greedy decoding writes the answer.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        prompts: prompts that have the same length together with their answers.
        where: name of each prompt, for error messages.
    """
    input_ids = torch.cat([as_input(prompt.prompt_ids, prompt.answer_ids) for prompt in prompts])
    first = min(len(prompt.prompt_ids) for prompt in prompts) - 1
    # The last answer token is predicted and not read.
    pieces = logit_pieces(model, input_ids[:, :-1], first, where=where)
    likeliest = torch.cat([piece.logits.argmax(-1).cpu() for piece in pieces], dim=1)
    return [row[len(prompt.prompt_ids) - 1 - first :].tolist() for row, prompt in zip(likeliest, prompts, strict=True)]

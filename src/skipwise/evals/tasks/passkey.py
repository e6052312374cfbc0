"""Passkey retrieval by length and depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.prompts import running_text, warn_of_zeros
from skipwise.evals.settings import AtDepths, Count, Haystack
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder, PasskeyPrompt
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokens
from skipwise.records.stats import wilson
from skipwise.runtime.forward import Where, logit_pieces

# Prompts of one length run together while their tokens stay below this.
_BATCH_TOKENS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey(AtDepths):
    """Share of five-digit keys that the model would repeat, by length and by where in the text the key was.

    A trial counts when the argmax at every answer token, in one pass over prompt and answer, is the answer's token:
    exactly when greedy decoding would write the key. Depths are stratified: each of `num_depths` equal parts of the
    text gets the same number of trials, each at a random place inside its part. Intervals are Wilson's.

    Attributes:
        trials: trials of one length, a multiple of `num_depths`.
        num_depths: parts of the text.
        haystack: what hides the key: plain sentences, or the documents' text.

    Source: landmark attention (arXiv 2305.16300); 50 trials a length as in PoSE (arXiv 2309.10400).
    """

    name: ClassVar[str] = "passkey"
    trials: Count = 50
    num_depths: Count = 10
    haystack: Haystack = "filler"

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses lengths that a trial's instruction, key and question alone exceed, and a haystack without text."""
        for length in lengths:
            for trial in range(self.trials):
                self._prompt(context, length, trial)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length: the share over all depths, then the share of each depth."""
        for length in lengths:

            def compute(trials: Sequence[int], length: int = length) -> list[Sample]:
                prompts = [self._prompt(context, length, trial) for trial in trials]
                where = [f"passkey, length {length}, trial {trial}" for trial in trials]
                outputs = greedy_answers(context.model, prompts, where)
                return [self._sample(context, length, *pair) for pair in zip(prompts, outputs, strict=True)]

            size = max(1, _BATCH_TOKENS // length)
            samples = context.samples(self, length, self.trials, compute, batch_items=size)
            warn_of_zeros(
                context,
                self,
                length,
                [float(sample["correct"]) for sample in samples],
                lambda length=length: self._prompt(context, length, 0).prompt_ids,
                samples[0]["output"],
            )
            yield Measurement(self._results(context, length, samples), samples)

    def _prompt(self, context: EvalContext, length: int, trial: int) -> PasskeyPrompt:
        """One trial, from its own seed: neither batches nor other lengths change it."""
        rng = context.rng(self.name, length, trial)
        filler_ids = running_text(context, length, rng) if self.uses_documents else None
        return PasskeyBuilder(context.tokenizer, filler_ids).build(length, self.depth(trial, rng), rng)

    def _sample(self, context: EvalContext, length: int, prompt: PasskeyPrompt, output_ids: list[int]) -> Sample:
        return {
            "task": self.name,
            "length_tokens": length,
            "depth": prompt.depth,
            "prompt_sha256": hash_tokens(prompt.prompt_ids),
            "answer": prompt.key,
            "answer_ids": prompt.answer_ids,
            "output": context.tokenizer.decode(output_ids),
            "output_ids": output_ids,
            "correct": output_ids == prompt.answer_ids,
        }

    def _results(self, context: EvalContext, length: int, samples: Sequence[Sample]) -> list[EvalResult]:
        def result(metric: str, chosen: Sequence[Sample], **depths: Any) -> EvalResult:
            share = wilson(sum(sample["correct"] for sample in chosen), len(chosen))
            return context.result(self, length, metric, share, num_samples=len(chosen), interval="Wilson", **depths)

        per_depth = self.trials // self.num_depths
        cells = [
            result(
                "accuracy_at_depth",
                samples[part * per_depth : (part + 1) * per_depth],
                depth_from=part / self.num_depths,
                depth_to=(part + 1) / self.num_depths,
            )
            for part in range(self.num_depths)
        ]
        return [result("accuracy", samples), *cells]


def greedy_answers(model: Any, prompts: Sequence[PasskeyPrompt], where: Where) -> list[list[int]]:
    """The argmax at every answer token of each prompt, given the prompt and the right answer so far.

    It equals the answer exactly when greedy decoding from the prompt writes it.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        prompts: prompts that are equally long with their answers; how the length divides may differ.
        where: what each prompt is, for an error's text.
    """
    input_ids = torch.cat([as_input(prompt.prompt_ids, prompt.answer_ids) for prompt in prompts])
    first = min(len(prompt.prompt_ids) for prompt in prompts) - 1
    # The last answer token is predicted, not read.
    pieces = logit_pieces(model, input_ids[:, :-1], first, where=where)
    likeliest = torch.cat([piece.logits.argmax(-1).cpu() for piece in pieces], dim=1)
    return [row[len(prompt.prompt_ids) - 1 - first :].tolist() for row, prompt in zip(likeliest, prompts, strict=True)]

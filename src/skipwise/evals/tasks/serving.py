"""What a request of each length costs: seconds of prefill and per token, bytes of the cache, peak memory."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from skipwise.distributed import process_state
from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import Count, Settings
from skipwise.evals.tasks.regression import paired_mean
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokens
from skipwise.records.stats import Estimate
from skipwise.runtime.caches import cache_bytes
from skipwise.runtime.chunks import pass_columns
from skipwise.runtime.forward import plain_model
from skipwise.runtime.peak import Peak
from skipwise.runtime.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(Settings):
    """Time and memory of a single request: a prompt of random tokens is read, then a few tokens are decoded greedily.

    Results of each length, which counts prompt and `new_tokens`:

    - `prefill_seconds`: time to the first token, including the logits of the last position;
    - `token_seconds`: time per further token, the mean of `new_tokens` steps through the cache;
    - `cache_bytes`: size of all tensors in the KV cache, which then holds as many tokens as the length;
    - `peak_bytes`: on an accelerator, the allocator's peak, including the weights; on a CPU, the peak resident memory
      of the whole process, including the interpreter. The detail `peak_of` says which. Linux counts the latter from the
      start of each repeat; elsewhere it is read after the prefill and at the end, and misses memory freed in between.

    Seconds are means over repeats with Student's interval; memory is the maximum over repeats, without interval. This
    measures the model as transformers runs it, not a serving engine. Results are never cached, as times depend on the
    machine and its load. Run it on an idle machine, and in one process on a CPU.

    Attributes:
        new_tokens: number of tokens decoded after the prompt.
        repeats: number of measurements per length.
        warm_ups: runs before the first repeat that are not counted: they load kernels and grow the allocator's memory.
    """

    name: ClassVar[str] = "serving"
    new_tokens: Count = 8
    repeats: Count = 3
    warm_ups: Annotated[int, Field(ge=0)] = 1

    @property
    def uses_documents(self) -> bool:
        """Always false: the cost of a token does not depend on the text."""
        return False

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that every length leaves room for a prompt."""
        if min(lengths) <= self.new_tokens:
            raise ConfigError(
                f"serving length is {min(lengths)} tokens, of which {self.new_tokens} are written; ask for more, "
                "or for fewer new_tokens",
                page="length-does-not-fit",
            )

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on a prompt of its own."""
        measuring = dataclasses.replace(context, cache=None)
        for length in lengths:
            vocabulary = context.model.config.get_text_config().vocab_size
            prompt = context.rng(self.name, length).integers(0, vocabulary, length - self.new_tokens)

            def compute(repeats: Sequence[int], prompt: Any = prompt) -> list[Sample]:
                # The first repeat of each process is the one with its own rank's number.
                warm_ups = self.warm_ups if repeats[0] == process_state().process_index else 0
                requests = [serve(context.model, as_input(prompt), self.new_tokens) for _ in range(1 + warm_ups)]
                return [{"prompt_sha256": hash_tokens(prompt), **requests[-1]._asdict()}]

            samples = measuring.samples(self, length, self.repeats, compute)
            yield Measurement(self._results(context, length, samples), samples)

    def _results(self, context: EvalContext, length: int, samples: Sequence[Sample]) -> list[EvalResult]:
        def result(metric: str, estimate: Estimate, **details: Any) -> EvalResult:
            return context.result(self, length, metric, estimate, num_samples=len(samples), **details)

        def mean(metric: str) -> EvalResult:
            value, low, high = paired_mean([sample[metric] for sample in samples])[0]
            # Times are not negative, but Student's interval may reach below 0.
            estimate = Estimate(value, None if low is None else max(0.0, low), high)
            return result(metric, estimate, interval="Student's t over repeats")

        def largest(metric: str, **details: Any) -> EvalResult:
            return result(metric, Estimate(max(sample[metric] for sample in samples), None, None), **details)

        return [
            mean("prefill_seconds"),
            mean("token_seconds"),
            largest("cache_bytes"),
            largest("peak_bytes", peak_of=samples[0]["peak_of"]),
        ]


class Request(NamedTuple):
    """Cost of one request; see `Serving`."""

    prefill_seconds: float
    token_seconds: float
    cache_bytes: int
    peak_bytes: int
    peak_of: str


@torch.no_grad()
def serve(model: Any, prompt: Tensor, new_tokens: int) -> Request:
    """Reads a prompt and decodes tokens after it greedily, ignoring end tokens.

    Args:
        model: a causal language model of the transformers library, in evaluation mode, with or without adapters.
        prompt: token ids (1, n).
        new_tokens: number of tokens to decode; each is read, too, so that the cache holds `n + new_tokens` tokens.
    """
    model, prompt = plain_model(model), prompt.to(model.device)
    num_tokens, cache = prompt.shape[1], DynamicCache(config=model.config)
    # As the library runs it, with its cache and its own attention.
    session = Session(model, cache, length=num_tokens + new_tokens, in_parts=False)
    peak = Peak(model.device)
    began = _now(model.device)
    (logits,) = session.prefill(prompt, chunk_tokens=pass_columns(model, 1, num_tokens))
    token = logits.argmax(-1)
    prefilled = _now(model.device)
    peak.look()
    for _ in range(new_tokens):
        token = session.step(token).argmax(-1)
    done = _now(model.device)
    return Request(
        prefill_seconds=prefilled - began,
        token_seconds=(done - prefilled) / new_tokens,
        cache_bytes=cache_bytes(cache),
        peak_bytes=peak.look(),
        peak_of=peak.of,
    )


def _now(device: torch.device) -> float:
    """The time in seconds, once the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()

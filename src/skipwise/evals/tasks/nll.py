"""What the tasks that score documents share: which documents, one sample of each, and means over them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from skipwise.evals.context import ChosenDocuments, EvalContext, as_input
from skipwise.evals.settings import BosPolicy, Settings
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokens
from skipwise.records.stats import Estimate, bootstrap_ratio
from skipwise.runtime.length_rope import rope_follows_length

INTERVAL = "bootstrap over documents"

Measure = Callable[[int, np.ndarray, str], dict[str, Any]]
"""Scores one document at a length, given the length, the document's token ids, and a name for error messages."""


class DocumentTask(Settings):
    """Base of tasks that score documents; a subclass is a dataclass with the settings `num_documents` and `bos`.

    By default all lengths are measured on the same documents, which have at least the largest length, and the result is
    the perplexity.
    """

    __slots__ = ()
    name: ClassVar[str]
    num_documents: int
    bos: BosPolicy

    @property
    def uses_documents(self) -> bool:
        """Always true."""
        return True

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that some document is long enough."""
        self.documents(context, lengths)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures all lengths on the same documents."""
        chosen, about, measure = self.documents(context, lengths), self.about(lengths), self.measure(context, lengths)
        for length in lengths:
            samples = self.samples(context, length, chosen, measure, **about)
            yield Measurement(self.results(context, length, samples, num_skipped=chosen.num_skipped, **about), samples)

    def about(self, lengths: Sequence[int]) -> dict[str, Any]:
        """JSON values that the choice of documents and tokens depends on: part of the samples' key and of details."""
        return {"longest_tokens": max(lengths)}

    def measure(self, context: EvalContext, lengths: Sequence[int]) -> Measure:
        """The function that scores one document."""
        raise NotImplementedError

    def results(self, context: EvalContext, length: int, samples: Sequence[Sample], **about: Any) -> list[EvalResult]:
        """Results from the samples of one length; `about` goes to `EvalContext.result`."""
        return [self.perplexity(context, length, samples, **about)]

    def documents(self, context: EvalContext, lengths: Sequence[int]) -> ChosenDocuments:
        """Draws the documents that these lengths are measured on.

        Raises:
            ConfigError: the task wants a beginning-of-sequence token and the tokenizer has none.
            DataError: no document is long enough.
        """
        return long_documents(context, self, max(lengths))

    def samples(
        self, context: EvalContext, length: int, chosen: ChosenDocuments, measure: Measure, **scope: Any
    ) -> list[Sample]:
        """One sample per document, in order; `scope` as in `EvalContext.samples`."""

        def compute(places: Sequence[int]) -> list[dict[str, Any]]:
            documents = ((chosen.indices[place], chosen.bodies[place]) for place in places)
            where = f"{self.name}, length {length}, document"
            return [{"document": index} | measure(length, body, f"{where} {index}") for index, body in documents]

        return context.samples(self, length, len(chosen.bodies), compute, **scope)

    def perplexity(self, context: EvalContext, length: int, samples: Sequence[Sample], **about: Any) -> EvalResult:
        """`exp(sum of NLL / sum of tokens)` over documents."""
        mean = mean_nll(context, [s["nll_sum"] for s in samples], [s["scored_tokens"] for s in samples])
        return context.result(
            self, length, "perplexity", mean.exp(), num_samples=len(samples), interval=INTERVAL, **about
        )


def long_documents(context: EvalContext, task: Any, longest: int) -> ChosenDocuments:
    """The task's documents that fill `longest` tokens, with the beginning-of-sequence token that it asks for.

    Raises:
        ConfigError: the task wants that token and the tokenizer has none.
        DataError: no document is long enough.
    """
    return context.choose_documents(longest - len(context.bos(task.bos)), task.num_documents)


def first_nlls(
    context: EvalContext, bos: Sequence[int], body: np.ndarray, length: int, longest: int, where: str
) -> tuple[Tensor, Tensor]:
    """The first `length` token ids of a document after `bos`, (1, n), and the NLL of each after the first, float64.

    A token's NLL depends only on what precedes it, so the pass over the `longest` length serves every shorter one,
    except with RoPE that follows the input's length (dynamic NTK, LongRoPE).
    """
    ids = as_input(bos, body[: (length if rope_follows_length(context.model) else longest) - len(bos)])
    (nlls,) = context.token_nlls(ids, where=where)
    return ids[:, :length], nlls[: length - 1]


def nll_record(token_ids: Tensor, nlls: Tensor) -> dict[str, Any]:
    """What a sample tells of a scored document.

    Args:
        token_ids: (1, n), everything the model read of it.
        nlls: float64, one entry per scored token.
    """
    return {
        "prompt_sha256": hash_tokens(token_ids[0].numpy()),
        "nll_sum": nlls.sum().item(),
        "scored_tokens": nlls.numel(),
    }


def mean_nll(context: EvalContext, sums: ArrayLike, counts: ArrayLike) -> Estimate:
    """Token-weighted mean NLL with its bootstrap interval, from each document's NLL sum and number of tokens."""
    return bootstrap_ratio(sums, counts, context.rng("bootstrap"))

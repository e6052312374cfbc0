"""From token NLLs to records: what the tasks that score documents share."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from skipwise.evals.context import ChosenDocuments, EvalContext
from skipwise.evals.settings import Settings
from skipwise.records.results import EvalResult, Measurement, Sample, hash_tokens
from skipwise.records.stats import Estimate, bootstrap_ratio

INTERVAL = "bootstrap over documents"


class ScoresDocuments(Settings):
    """What a task inherits that scores documents; it has settings `num_documents` and `bos`."""

    __slots__ = ()

    @property
    def uses_documents(self) -> bool:
        """Whether it reads documents: always."""
        return True

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses documents that are all shorter than the largest length."""
        long_documents(context, self, max(lengths))


def long_documents(context: EvalContext, task: Any, longest: int) -> ChosenDocuments:
    """The task's documents of at least the longest length, with the beginning-of-sequence token that it asks for.

    Raises:
        ConfigError: when that token is wanted and the tokenizer has none.
        DataError: when no document is long enough.
    """
    return context.choose_documents(longest - len(context.bos(task.bos)), task.num_documents)


def document_samples(
    context: EvalContext,
    task: Any,
    lengths: Sequence[int],
    chosen: ChosenDocuments,
    measure: Callable[[int, int, np.ndarray, str], Sample],
    **scope: Any,
) -> Iterator[tuple[int, list[Sample]]]:
    """Each length with one sample a document, in order.

    Args:
        context: where they are measured, or found again.
        task: what is measured.
        lengths: input lengths in tokens.
        chosen: the documents.
        measure: the sample of one document, from a length, its index, its token ids, and a name for an error's text.
        **scope: JSON values of whatever else decides the choice or the samples.
    """
    for length in lengths:

        def compute(places: Sequence[int], length: int = length) -> list[Sample]:
            documents = ((chosen.indices[place], chosen.bodies[place]) for place in places)
            where = f"{task.name}, length {length}, document"
            return [measure(length, index, ids, f"{where} {index}") for index, ids in documents]

        yield length, context.samples(task, length, len(chosen.bodies), compute, **scope)


def nll_sample(task: Any, length: int, document: int, token_ids: Tensor, nlls: Tensor) -> Sample:
    """The record of one document.

    Args:
        task: what was measured.
        length: input length in tokens.
        document: index of the document.
        token_ids: (1, n), everything the model was given of it.
        nlls: float64, one entry per scored token.
    """
    return {
        "task": task.name,
        "length_tokens": length,
        "document": document,
        "prompt_sha256": hash_tokens(token_ids[0].numpy()),
        "nll_sum": nlls.sum().item(),
        "scored_tokens": nlls.numel(),
    }


def perplexities(
    context: EvalContext,
    task: Any,
    lengths: Sequence[int],
    chosen: ChosenDocuments,
    score: Callable[[int, np.ndarray, str], tuple[Tensor, Tensor]],
    **scope: Any,
) -> Iterator[Measurement]:
    """The perplexity at each length over the same documents.

    Args:
        context: what is measured.
        task: whose perplexity.
        lengths: input lengths in tokens.
        chosen: the documents.
        score: from a length, a document's token ids and a name for errors, token ids (1, n) of what the model is given
            of it, and the NLLs of the tokens that it is scored on.
        **scope: JSON values that the documents and their tokens depend on; they join the results' details.
    """

    def measure(length: int, index: int, ids: np.ndarray, where: str) -> Sample:
        return nll_sample(task, length, index, *score(length, ids, where))

    for length, samples in document_samples(context, task, lengths, chosen, measure, **scope):
        yield Measurement([perplexity_result(task, context, length, samples, chosen.num_skipped, **scope)], samples)


def perplexity_result(
    task: Any, context: EvalContext, length: int, samples: Sequence[Sample], num_skipped: int, **details: Any
) -> EvalResult:
    """`exp(sum of NLL / sum of tokens)` over documents, with a bootstrap interval over documents.

    Args:
        task: what was measured.
        context: what it was measured with.
        length: input length in tokens.
        samples: one a document.
        num_skipped: documents that were too short.
        **details: what the choice of documents and of their tokens depends on besides.
    """
    mean = mean_nll(context, [s["nll_sum"] for s in samples], [s["scored_tokens"] for s in samples])
    return context.result(
        task,
        length,
        "perplexity",
        mean.exp(),
        num_samples=len(samples),
        num_skipped=num_skipped,
        interval=INTERVAL,
        **details,
    )


def mean_nll(context: EvalContext, sums: ArrayLike, counts: ArrayLike) -> Estimate:
    """Token-weighted mean NLL with its bootstrap interval; one entry per document of its NLL sum and scored tokens."""
    return bootstrap_ratio(sums, counts, context.rng("bootstrap"))

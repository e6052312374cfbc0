"""From token NLLs to records: what the perplexity tasks share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from skipwise.evals.context import ChosenDocuments, EvalContext, Task
from skipwise.records.results import EvalResult, Sample, hash_tokens
from skipwise.records.stats import Estimate, bootstrap_ratio

INTERVAL = "bootstrap over documents"


def long_documents(context: EvalContext, task: Any, longest: int) -> ChosenDocuments:
    """The task's documents of at least the longest length, with the beginning-of-sequence token that it asks for.

    Raises:
        ConfigError: when that token is wanted and the tokenizer has none.
        DataError: when no document is long enough.
    """
    return context.choose_documents(longest - len(context.bos(task.bos)), task.num_documents)


def document_samples(
    context: EvalContext,
    task: Task,
    length: int,
    chosen: ChosenDocuments,
    measure: Callable[[int, np.ndarray], Sample],
    **scope: Any,
) -> list[Sample]:
    """One sample a document, in order.

    Args:
        context: where they are measured, or found again.
        task: what is measured.
        length: input length in tokens.
        chosen: the documents.
        measure: the sample of one document, from its index and token ids.
        **scope: JSON values of whatever else decides the choice or the samples.
    """

    def compute(places: Sequence[int]) -> list[Sample]:
        return [measure(chosen.indices[place], chosen.bodies[place]) for place in places]

    return context.samples(task, length, len(chosen.bodies), compute, **scope)


def nll_sample(task: Task, length: int, document: int, token_ids: Tensor, nlls: Tensor) -> Sample:
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


def perplexity_result(
    task: Task, context: EvalContext, length: int, samples: Sequence[Sample], num_skipped: int, **details: Any
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

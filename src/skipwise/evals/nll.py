"""From token NLLs to records: what the perplexity tasks share."""

from collections.abc import Sequence

from numpy.typing import ArrayLike
from torch import Tensor

from skipwise.evals.context import EvalContext, Task
from skipwise.evals.records import EvalResult, Sample, hash_tokens
from skipwise.evals.stats import Estimate, bootstrap_ratio

INTERVAL = "bootstrap over documents"


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
    task: Task, context: EvalContext, length: int, samples: Sequence[Sample], num_skipped: int
) -> EvalResult:
    """`exp(sum of NLL / sum of tokens)` over documents, with a bootstrap interval over documents."""
    mean = mean_nll(context, [s["nll_sum"] for s in samples], [s["scored_tokens"] for s in samples])
    return context.result(
        task, length, "perplexity", mean.exp(), num_samples=len(samples), num_skipped=num_skipped, interval=INTERVAL
    )


def mean_nll(context: EvalContext, sums: ArrayLike, counts: ArrayLike) -> Estimate:
    """Token-weighted mean NLL with its bootstrap interval; one entry per document of its NLL sum and scored tokens."""
    return bootstrap_ratio(sums, counts, context.rng("bootstrap"))

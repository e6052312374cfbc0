"""From token NLLs to records: what the perplexity tasks share."""

import math
from collections.abc import Sequence

from torch import Tensor

from skipwise.evals.context import EvalContext, Task
from skipwise.evals.records import EvalResult, Sample, hash_tokens
from skipwise.evals.stats import bootstrap_ratio


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
    sums, counts = ([sample[key] for sample in samples] for key in ("nll_sum", "scored_tokens"))
    mean = bootstrap_ratio(sums, counts, context.rng(2))
    return EvalResult(
        task=task.name,
        length_tokens=length,
        metric="perplexity",
        value=math.exp(mean.value),
        ci_low=None if mean.low is None else math.exp(mean.low),
        ci_high=None if mean.high is None else math.exp(mean.high),
        num_samples=len(samples),
        num_skipped=num_skipped,
        seed=context.seed,
        details=context.details(task, interval="bootstrap over documents"),
    )

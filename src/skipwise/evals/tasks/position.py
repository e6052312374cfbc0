"""Mean NLL by position: where in a long input predictions fail."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import INTERVAL, DocumentTask, Measure, mean_nll, nll_record
from skipwise.records.results import EvalResult, Sample
from skipwise.runtime.forward import token_nlls


def bucket_edges(length_tokens: int, num_buckets: int) -> list[int]:
    """Edges of buckets that double towards the end: 1, ..., L/4, L/2, L. Position 0 has no NLL."""
    return sorted({1, length_tokens, *(length_tokens >> halvings for halvings in range(1, num_buckets))} - {0})


def bucket_sums(scores: np.ndarray, num_buckets: int) -> list[float]:
    """Sums of an input's scores in each bucket; the first score belongs to position 1."""
    edges = bucket_edges(len(scores) + 1, num_buckets)
    return np.add.reduceat(scores, [edge - 1 for edge in edges[:-1]]).tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class NLLByPosition(DocumentTask):
    """Mean negative log-likelihood by position in the input, in one pass over the first L tokens of each document.

    Buckets double in size: the last is the second half of the input, the one before it the second quarter, and so on.
    Means are weighted by tokens; intervals are bootstraps over documents.

    Attributes:
        num_buckets: maximum number of buckets.
        num_documents: maximum number of documents; each has at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.
            `tokenizer` means: if the tokenizer adds one.
    """

    name: ClassVar[str] = "nll_by_position"
    num_buckets: Count = 8
    num_documents: Count = field(default=20, metadata=NO_KEY)
    bos: BosPolicy = "tokenizer"

    def measure(self, context: EvalContext, lengths: Sequence[int]) -> Measure:
        """Scores every token, and sums the NLLs of each bucket."""
        bos = context.bos(self.bos)

        def measure(length: int, body: np.ndarray, where: str) -> dict[str, Any]:
            ids = as_input(bos, body[: length - len(bos)])
            (nlls,) = token_nlls(context.model, ids, where=where)
            return nll_record(ids, nlls) | {"bucket_sums": bucket_sums(nlls.numpy(), self.num_buckets)}

        return measure

    def results(self, context: EvalContext, length: int, samples: Sequence[Sample], **about: Any) -> list[EvalResult]:
        """One result per bucket, in order of position."""
        sums = np.array([sample["bucket_sums"] for sample in samples])
        return [
            context.result(
                self,
                length,
                "nll",
                mean_nll(context, sums[:, bucket], [end - begin] * len(sums)),
                num_samples=len(sums),
                interval=INTERVAL,
                **about,
                position_from=begin,
                position_to=end,
            )
            for bucket, (begin, end) in enumerate(pairwise(bucket_edges(length, self.num_buckets)))
        ]

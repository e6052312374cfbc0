"""Mean NLL by position: where in a long input the model loses its footing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import INTERVAL, ScoresDocuments, document_samples, long_documents, mean_nll, nll_sample
from skipwise.records.results import Measurement, Sample
from skipwise.runtime.forward import token_nlls


def bucket_edges(length_tokens: int, num_buckets: int) -> list[int]:
    """Edges of buckets that double towards the end: 1, ..., L/4, L/2, L. Position 0 has nothing before it."""
    return sorted({1, length_tokens, *(length_tokens >> halvings for halvings in range(1, num_buckets))} - {0})


@dataclass(frozen=True, slots=True, kw_only=True)
class NLLByPosition(ScoresDocuments):
    """Mean negative log-likelihood by position in the input, in one pass over the first L tokens of each document.

    Buckets double in size: the last is the second half of the input, the one before it the second quarter, and so on.
    Means are weighted by tokens; intervals are bootstraps over documents.

    Attributes:
        num_buckets: buckets at most.
        num_documents: documents at most, each of at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.
    """

    name: ClassVar[str] = "nll_by_position"
    num_buckets: Count = 8
    num_documents: Count = field(default=20, metadata=NO_KEY)
    bos: BosPolicy = "tokenizer"

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same documents: one result a bucket, in order of position."""
        bos = context.bos(self.bos)
        chosen = long_documents(context, self, max(lengths))
        longest = {"longest_tokens": max(lengths)}

        def measure(length: int, index: int, body: np.ndarray, where: str) -> Sample:
            ids = as_input(bos, body[: length - len(bos)])
            (nlls,) = token_nlls(context.model, ids, where=where)
            # The first score belongs to position 1.
            sums = np.add.reduceat(nlls.numpy(), [edge - 1 for edge in bucket_edges(length, self.num_buckets)[:-1]])
            return nll_sample(self, length, index, ids, nlls) | {"bucket_sums": sums.tolist()}

        for length, samples in document_samples(context, self, lengths, chosen, measure, **longest):
            sums = np.array([sample["bucket_sums"] for sample in samples])
            results = [
                context.result(
                    self,
                    length,
                    "nll",
                    mean_nll(context, sums[:, bucket], [end - begin] * len(sums)),
                    num_samples=len(sums),
                    num_skipped=chosen.num_skipped,
                    interval=INTERVAL,
                    **longest,
                    position_from=begin,
                    position_to=end,
                )
                for bucket, (begin, end) in enumerate(pairwise(bucket_edges(length, self.num_buckets)))
            ]
            yield Measurement(results, samples)

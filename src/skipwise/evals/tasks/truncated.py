"""Perplexity of documents cut at each length: every length from one pass over the longest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import (
    ScoresDocuments,
    document_samples,
    long_documents,
    nll_sample,
    perplexity_result,
)
from skipwise.records.results import Measurement, Sample
from skipwise.runtime.forward import token_nlls
from skipwise.runtime.length_rope import rope_follows_length


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedPerplexity(ScoresDocuments):
    """Perplexity of the first L tokens of each document.

        exp(sum of NLL / number of tokens) over the first L tokens of all documents

    A token's NLL depends on what comes before it alone, so one pass over the longest length has those of every shorter
    one. Only RoPE that follows the input's length (dynamic NTK, LongRoPE) takes a pass for each. Every length sees the
    same documents. Sums are float64 and weighted by tokens; the interval is a bootstrap over documents.

    Attributes:
        num_documents: documents at most, each of at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.

    Source: PoSE (arXiv 2309.10400, figure 4).
    """

    name: ClassVar[str] = "truncated"
    num_documents: Count = field(default=20, metadata=NO_KEY)
    bos: BosPolicy = "tokenizer"

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures all lengths on the same documents."""
        bos = context.bos(self.bos)
        chosen = long_documents(context, self, max(lengths))
        longest = {"longest_tokens": max(lengths)}
        for cuts in [[length] for length in lengths] if rope_follows_length(context.model) else [list(lengths)]:

            def measure(length: int, index: int, body: np.ndarray, where: str, cuts: list[int] = cuts) -> Sample:
                ids = as_input(bos, body[: length - len(bos)])
                (nlls,) = token_nlls(context.model, ids, where=where)
                return {"cuts": [nll_sample(self, cut, index, ids[:, :cut], nlls[: cut - 1]) for cut in cuts]}

            each = document_samples(context, self, [max(cuts)], chosen, measure, cuts=cuts, **longest)
            _, documents = next(each)
            for place, cut in enumerate(cuts):
                samples = [document["cuts"][place] for document in documents]
                result = perplexity_result(self, context, cut, samples, chosen.num_skipped, **longest)
                yield Measurement([result], samples)

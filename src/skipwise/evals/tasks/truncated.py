"""Perplexity of documents truncated at each length: every length from one pass over the longest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import DocumentTask, nll_record
from skipwise.records.results import Measurement
from skipwise.runtime.length_rope import rope_follows_length


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedPerplexity(DocumentTask):
    """Perplexity of the first L tokens of each document.

        exp(sum of NLL / number of tokens) over the first L tokens of all documents

    A token's NLL depends only on what precedes it, so one pass over the longest length serves every shorter one. Only
    RoPE that follows the input's length (dynamic NTK, LongRoPE) needs a pass per length. Every length sees the same
    documents. Sums are float64 and weighted by tokens; the interval is a bootstrap over documents.

    Attributes:
        num_documents: maximum number of documents; each has at least the largest length.
        bos: whether inputs begin with the beginning-of-sequence token, which then counts towards the length.
            `tokenizer` means: if the tokenizer adds one.

    Source: PoSE (arXiv 2309.10400, figure 4).
    """

    name: ClassVar[str] = "truncated"
    num_documents: Count = field(default=20, metadata=NO_KEY)
    bos: BosPolicy = "tokenizer"

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures all lengths on the same documents, in one pass where it can."""
        bos, chosen, about = context.bos(self.bos), self.documents(context, lengths), self.about(lengths)
        for cuts in [[length] for length in lengths] if rope_follows_length(context.model) else [list(lengths)]:

            def measure(length: int, body: np.ndarray, where: str, cuts: list[int] = cuts) -> dict[str, Any]:
                ids = as_input(bos, body[: length - len(bos)])
                (nlls,) = context.token_nlls(ids, where=where)
                return {"cuts": [nll_record(ids[:, :cut], nlls[: cut - 1]) for cut in cuts]}

            documents = self.samples(context, max(cuts), chosen, measure, cuts=cuts, **about)
            for place, cut in enumerate(cuts):
                samples = [
                    {"task": self.name, "length_tokens": cut, "document": one["document"], **one["cuts"][place]}
                    for one in documents
                ]
                yield Measurement(self.results(context, cut, samples, num_skipped=chosen.num_skipped, **about), samples)

"""Perplexity of the same last tokens of each document, scored with ever longer left context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from skipwise.errors import ConfigError
from skipwise.evals.context import NO_KEY, BosPolicy, EvalContext, ReadsDocuments, as_input, check_at_least, check_bos
from skipwise.evals.tasks.nll import document_samples, long_documents, nll_sample, perplexity_result
from skipwise.records.results import Measurement, Sample
from skipwise.runtime.forward import token_nlls


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTokensPerplexity(ReadsDocuments):
    """Last-N perplexity: does a longer context help to predict the very same tokens?

        exp(sum of NLL / number of tokens) over the last N tokens of each document's first C tokens,

    each given the `L - N` tokens before them. `C` is the same for every length `L`, so the tokens scored are the same
    and the lengths are paired by document. Sums are float64 and weighted by tokens; the interval is a bootstrap over
    documents.

    Attributes:
        scored_tokens: `N`.
        num_documents: documents at most.
        cut_tokens: `C`, a beginning-of-sequence token included; by default the largest length asked. Set it to compare
            runs that asked for different lengths.
        bos: whether each input begins with the beginning-of-sequence token, which then counts towards its length.
    """

    name: ClassVar[str] = "perplexity"
    scored_tokens: int = 128
    num_documents: int = field(default=50, metadata=NO_KEY)
    cut_tokens: int | None = None
    bos: BosPolicy = "tokenizer"

    def __post_init__(self) -> None:
        check_at_least(self, scored_tokens=1, num_documents=1)
        if self.cut_tokens is not None:
            check_at_least(self, cut_tokens=1)
        check_bos(self)

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses lengths that leave scored tokens no context or are beyond the cut, and documents below the cut."""
        cut = self.cut_tokens or max(lengths)
        if min(lengths) <= self.scored_tokens or cut < max(lengths):
            raise ConfigError(
                f"perplexity lengths are {', '.join(map(str, lengths))} with {self.scored_tokens} scored tokens and "
                f"documents cut at {cut}; each length must be above the first and at most the second"
            )
        long_documents(context, self, cut)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same documents."""
        cut = self.cut_tokens or max(lengths)
        bos = context.bos(self.bos)
        chosen = long_documents(context, self, cut)
        for length in lengths:

            def measure(index: int, body: np.ndarray, length: int = length) -> Sample:
                ids = as_input(bos, body[cut - length : cut - len(bos)])
                where = f"perplexity, length {length}, document {index}"
                nlls = token_nlls(context.model, ids, length - self.scored_tokens, where=where)
                return nll_sample(self, length, index, ids, nlls)

            samples = document_samples(context, self, length, chosen, measure, cut_tokens=cut)
            result = perplexity_result(self, context, length, samples, chosen.num_skipped, cut_tokens=cut)
            yield Measurement([result], samples)

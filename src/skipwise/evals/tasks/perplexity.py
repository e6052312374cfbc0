"""Perplexity of the same last tokens of each document, scored with ever longer left context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import ScoresDocuments, long_documents, perplexities
from skipwise.records.results import Measurement
from skipwise.runtime.forward import token_nlls


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTokensPerplexity(ScoresDocuments):
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
    scored_tokens: Count = 128
    num_documents: Count = field(default=50, metadata=NO_KEY)
    cut_tokens: Count | None = None
    bos: BosPolicy = "tokenizer"

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
        cut, bos = self.cut_tokens or max(lengths), context.bos(self.bos)

        def score(length: int, body: np.ndarray, where: str) -> tuple[Tensor, Tensor]:
            ids = as_input(bos, body[cut - length : cut - len(bos)])
            return ids, token_nlls(context.model, ids, length - self.scored_tokens, where=where)

        return perplexities(context, self, lengths, long_documents(context, self, cut), score, cut_tokens=cut)

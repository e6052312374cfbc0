"""Perplexity of the same last tokens of each document, with longer and longer left context."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from skipwise.errors import ConfigError
from skipwise.evals.context import ChosenDocuments, EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import DocumentTask, Measure, long_documents, nll_record
from skipwise.runtime.forward import token_nlls


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTokensPerplexity(DocumentTask):
    """Last-N perplexity: does a longer context help to predict the same tokens?

        exp(sum of NLL / number of tokens) over the last N tokens of each document's first C tokens,

    each given the `L - N` tokens before them. `C` is the same for every length `L`, so every length scores the same
    tokens, and lengths are paired by document. Sums are float64 and weighted by tokens; the interval is a bootstrap
    over documents.

    Attributes:
        scored_tokens: `N`, the number of scored tokens per document.
        num_documents: maximum number of documents.
        cut_tokens: `C`, the number of tokens after which a document is cut, including a beginning-of-sequence token;
            the default is the largest length. Set it to compare runs with different lengths.
        bos: whether each input begins with the beginning-of-sequence token, which then counts towards its length.
            `tokenizer` means: if the tokenizer adds one.
    """

    name: ClassVar[str] = "perplexity"
    scored_tokens: Count = 128
    num_documents: Count = field(default=50, metadata=NO_KEY)
    cut_tokens: Count | None = None
    bos: BosPolicy = "tokenizer"

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that scored tokens have context, that no length exceeds the cut, and that a document reaches it."""
        cut = self._cut(lengths)
        if min(lengths) <= self.scored_tokens or cut < max(lengths):
            raise ConfigError(
                f"perplexity lengths are {', '.join(map(str, lengths))} with {self.scored_tokens} scored tokens and "
                f"documents cut at {cut}; each length must be above the first and at most the second",
                page="length-does-not-fit",
            )
        self.documents(context, lengths)

    def about(self, lengths: Sequence[int]) -> dict[str, Any]:
        """The cut."""
        return {"cut_tokens": self._cut(lengths)}

    def documents(self, context: EvalContext, lengths: Sequence[int]) -> ChosenDocuments:
        """Documents that reach the cut."""
        return long_documents(context, self, self._cut(lengths))

    def measure(self, context: EvalContext, lengths: Sequence[int]) -> Measure:
        """Scores the last tokens before the cut."""
        cut, bos = self._cut(lengths), context.bos(self.bos)

        def measure(length: int, body: np.ndarray, where: str) -> dict[str, Any]:
            ids = as_input(bos, body[cut - length : cut - len(bos)])
            return nll_record(ids, token_nlls(context.model, ids, length - self.scored_tokens, where=where))

        return measure

    def _cut(self, lengths: Sequence[int]) -> int:
        return self.cut_tokens or max(lengths)

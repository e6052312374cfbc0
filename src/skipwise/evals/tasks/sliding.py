"""Sliding-window perplexity of whole documents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import DocumentTask, Measure, nll_record
from skipwise.runtime.forward import token_nlls

# Maximum number of tokens in a batch of windows.
_BATCH_TOKENS = 2048


class WindowSpan(NamedTuple):
    """One position of the window on a document, in token indices; the end is exclusive.

    Attributes:
        begin: first token that the model reads.
        scored_from: first token that is scored; earlier windows scored those before it.
        end: end of both.
    """

    begin: int
    scored_from: int
    end: int


def window_spans(num_tokens: int, window_tokens: int, stride_tokens: int) -> Iterator[WindowSpan]:
    """Positions of a window that starts every `stride_tokens`, up to the end; each token is scored once."""
    begin = scored = 0
    while scored < num_tokens:
        end = min(begin + window_tokens, num_tokens)
        yield WindowSpan(begin, scored, end)
        begin, scored = begin + stride_tokens, end


def windowed_nlls(
    score: Callable[..., Tensor], bos: Sequence[int], body: np.ndarray, spans: Iterable[WindowSpan], *, where: str
) -> Tensor:
    """NLLs of the tokens that the windows score, in order. Short neighbouring windows of the same shape are batched.

    Args:
        score: NLLs of token ids (batch, n) from an index on, with `where` by keyword, as `token_nlls` has them.
        bos: token ids that precede every window.
        body: token ids of the document, 1-D.
        spans: positions of the window. A token without predecessor (the first one, if `bos` is empty) is not scored.
        where: what is being measured, for error messages.

    Returns:
        Natural-logarithm NLLs, 1-D float64 on the CPU.
    """
    nlls = []
    for (num_tokens, first), alike in groupby(
        spans, lambda span: (span.end - span.begin, span.scored_from - span.begin)
    ):
        waiting = list(alike)
        at_once = max(1, _BATCH_TOKENS // (len(bos) + num_tokens))
        for start in range(0, len(waiting), at_once):
            windows = waiting[start : start + at_once]
            ids = torch.cat([as_input(bos, body[span.begin : span.end]) for span in windows])
            places = [f"{where}, window at {span.begin}" for span in windows]
            nlls.append(score(ids, max(1, len(bos) + first), where=places).flatten())
    return torch.cat(nlls)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindowPerplexity(DocumentTask):
    """Sliding-window perplexity: every token of a document, with the context that a window of length L gives it.

        exp(sum of NLL / number of tokens) over all tokens of all documents

    A window starts every `S` tokens and scores the tokens that no earlier window has scored; after the first window,
    each token has at least `L - S` tokens before it. Every length scores the same tokens: those of documents of at
    least the largest length, cut at `cut_tokens`. A document's first token is scored only if a beginning-of-sequence
    token precedes it. Sums are float64 and weighted by tokens; the interval is a bootstrap over documents.

    Attributes:
        stride_tokens: `S`, tokens from the start of one window to the next, below the length; the default is half of
            the length.
        num_documents: maximum number of documents.
        cut_tokens: number of tokens scored per document; the default is twice the largest length, so that the window
            slides at that length, too.
        bos: whether each window begins with the beginning-of-sequence token, which then counts towards its length.
            `tokenizer` means: if the tokenizer adds one.

    Source: the protocol of PoSE (arXiv 2309.10400, section 4.2), which follows Press et al. (arXiv 2108.12409).
    """

    name: ClassVar[str] = "sliding"
    stride_tokens: Count | None = None
    num_documents: Count = field(default=20, metadata=NO_KEY)
    cut_tokens: Count | None = None
    bos: BosPolicy = "tokenizer"

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Checks that the stride is below every length, and that some document is long enough."""
        if self.stride_tokens is not None and self.stride_tokens >= min(lengths):
            raise ConfigError(
                f"sliding.stride_tokens is {self.stride_tokens} and the shortest length is {min(lengths)}; give a "
                "stride below every length",
                page="length-does-not-fit",
            )
        self.documents(context, lengths)

    def about(self, lengths: Sequence[int]) -> dict[str, Any]:
        """The largest length, and the cut."""
        return {"longest_tokens": max(lengths), "cut_tokens": self.cut_tokens or 2 * max(lengths)}

    def measure(self, context: EvalContext, lengths: Sequence[int]) -> Measure:
        """Scores every token before the cut."""
        bos, cut = context.bos(self.bos), self.about(lengths)["cut_tokens"]

        def measure(length: int, body: np.ndarray, where: str) -> dict[str, Any]:
            body = body[:cut]
            spans = window_spans(len(body), length - len(bos), self.stride_tokens or length // 2)
            score = partial(token_nlls, context.model)
            return nll_record(as_input(bos, body), windowed_nlls(score, bos, body, spans, where=where))

        return measure

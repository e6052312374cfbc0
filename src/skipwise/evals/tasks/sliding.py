"""Perplexity of whole documents by a window that slides over them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skipwise.errors import ConfigError
from skipwise.evals.context import EvalContext, as_input
from skipwise.evals.settings import NO_KEY, BosPolicy, Count
from skipwise.evals.tasks.nll import ScoresDocuments, long_documents, perplexities
from skipwise.records.results import Measurement
from skipwise.runtime.forward import token_nlls

# Windows run together while their tokens stay below this.
_BATCH_TOKENS = 2048


class WindowSpan(NamedTuple):
    """One place of the window over a document; token indices, ends exclusive.

    Attributes:
        begin: first token the model sees.
        scored_from: first token it is scored on; those before it were scored earlier.
        end: end of both.
    """

    begin: int
    scored_from: int
    end: int


def window_spans(num_tokens: int, window_tokens: int, stride_tokens: int) -> Iterator[WindowSpan]:
    """Places of a window that starts every `stride_tokens`, until it reaches the end; each token is scored once."""
    begin = scored = 0
    while scored < num_tokens:
        end = min(begin + window_tokens, num_tokens)
        yield WindowSpan(begin, scored, end)
        begin, scored = begin + stride_tokens, end


def _shape(span: WindowSpan) -> tuple[int, int]:
    """Tokens that the model sees, and how many of them were scored before."""
    return span.end - span.begin, span.scored_from - span.begin


def windowed_nlls(
    model: Any, bos: Sequence[int], body: np.ndarray, spans: Iterable[WindowSpan], *, where: str
) -> Tensor:
    """NLLs of the tokens that the windows score, one window after the other.

    Neighbouring windows of one shape run together while they are short.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        bos: token ids that go before every window.
        body: token ids of the document, 1-D.
        spans: places of the window. What nothing precedes (the first token, where `bos` is empty) is not scored.
        where: what is being measured, for an error's text.

    Returns:
        Natural-logarithm NLLs, 1-D float64 on the CPU.
    """
    nlls = []
    for (num_tokens, first), alike in groupby(spans, _shape):
        waiting = list(alike)
        at_once = max(1, _BATCH_TOKENS // (len(bos) + num_tokens))
        for start in range(0, len(waiting), at_once):
            windows = waiting[start : start + at_once]
            ids = torch.cat([as_input(bos, body[span.begin : span.end]) for span in windows])
            places = [f"{where}, window at {span.begin}" for span in windows]
            nlls.append(token_nlls(model, ids, max(1, len(bos) + first), where=places).flatten())
    return torch.cat(nlls)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindowPerplexity(ScoresDocuments):
    """Sliding-window perplexity: every token of a document, with the context that a window of length L gives it.

        exp(sum of NLL / number of tokens) over all tokens of all documents

    A window starts every `stride` tokens and scores what no earlier one has; after the first window each token has at
    least `L - stride` tokens before it. Every length sees the same tokens: documents of at least the largest length,
    cut at `cut_tokens`. Only a document's first token is not scored, where no beginning-of-sequence token precedes it.
    Sums are float64 and weighted by tokens; the interval is a bootstrap over documents.

    Attributes:
        stride_tokens: `S`, below the length; by default half of it.
        num_documents: documents at most.
        cut_tokens: what is scored of each document at most; by default twice the largest length, so that it slides too.
        bos: whether each window begins with the beginning-of-sequence token, which then counts towards its length.

    Source: the protocol of PoSE (arXiv 2309.10400, section 4.2), which follows Press et al. (arXiv 2108.12409).
    """

    name: ClassVar[str] = "sliding"
    stride_tokens: Count | None = None
    num_documents: Count = field(default=20, metadata=NO_KEY)
    cut_tokens: Count | None = None
    bos: BosPolicy = "tokenizer"

    def check_lengths(self, context: EvalContext, lengths: Sequence[int]) -> None:
        """Refuses a stride that is no shorter than a length, and documents that are all shorter than the largest."""
        if self.stride_tokens is not None and self.stride_tokens >= min(lengths):
            raise ConfigError(
                f"sliding.stride_tokens is {self.stride_tokens} and the shortest length is {min(lengths)}; give a "
                "stride below every length"
            )
        long_documents(context, self, max(lengths))

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same tokens."""
        bos, longest = context.bos(self.bos), max(lengths)
        cut = self.cut_tokens or 2 * longest

        def score(length: int, body: np.ndarray, where: str) -> tuple[Tensor, Tensor]:
            body = body[:cut]
            spans = window_spans(len(body), length - len(bos), self.stride_tokens or length // 2)
            return as_input(bos, body), windowed_nlls(context.model, bos, body, spans, where=where)

        scope = {"longest_tokens": longest, "cut_tokens": cut}
        return perplexities(context, self, lengths, long_documents(context, self, longest), score, **scope)

"""Perplexity of whole documents by a window that slides over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from skipwise.errors import ConfigError
from skipwise.evals.context import BosPolicy, EvalContext, ReadsDocuments, as_input, check_at_least, check_bos
from skipwise.evals.forward import token_nlls
from skipwise.evals.nll import nll_sample, perplexity_result
from skipwise.evals.records import Measurement, Sample


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindowPerplexity(ReadsDocuments):
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
    stride_tokens: int | None = None
    num_documents: int = 20
    cut_tokens: int | None = None
    bos: BosPolicy = "tokenizer"

    def __post_init__(self) -> None:
        check_at_least(self, num_documents=1)
        for name in ("stride_tokens", "cut_tokens"):
            if getattr(self, name) is not None:
                check_at_least(self, **{name: 1})
        check_bos(self)

    def run(self, context: EvalContext, lengths: Sequence[int]) -> Iterator[Measurement]:
        """Measures each length on the same tokens."""
        if self.stride_tokens is not None and self.stride_tokens >= min(lengths):
            raise ConfigError(
                f"sliding.stride_tokens is {self.stride_tokens} and the shortest length is {min(lengths)}; give a "
                "stride below every length"
            )
        bos = context.bos(self.bos)
        chosen = context.choose_documents(max(lengths) - len(bos), self.num_documents)
        bodies = [body[: self.cut_tokens or 2 * max(lengths)] for body in chosen.bodies]
        for length in lengths:
            samples: list[Sample] = []
            with context.bar(f"sliding perplexity at {length}", len(bodies)) as bar:
                for index, body in zip(chosen.indices, bodies, strict=True):
                    nlls = []
                    for span in window_spans(len(body), length - len(bos), self.stride_tokens or length // 2):
                        ids = as_input(bos, body[span.begin : span.end])
                        first = max(1, len(bos) + span.scored_from - span.begin)
                        where = f"sliding, length {length}, document {index}, window at {span.begin}"
                        nlls.append(token_nlls(context.model, ids, first, where=where)[0])
                    samples.append(nll_sample(self, length, index, as_input(bos, body), torch.cat(nlls)))
                    bar.update()
            yield Measurement([perplexity_result(self, context, length, samples, chosen.num_skipped)], samples)

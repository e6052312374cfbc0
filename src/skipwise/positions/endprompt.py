"""EndPrompt."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skipwise.errors import PositionError
from skipwise.positions.draws import in_chunks
from skipwise.positions.sample import PositionSample, check_choice, check_count, check_document
from skipwise.window import Window

END_TEXTS = ("contiguous", "aligned")
ENDS = ("target", "anywhere")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPrompt:
    """The window as it is, but for its last few tokens, which stand at the end of the target.

    Positions are `0..Lc-e-1`, then `u + [Lc-e, Lc)` for the last `e = tokens` tokens, with `u = Lt - Lc`. So the short
    window stays whole, and the few last tokens are trained at distances of nearly `Lt` from all others. Distances
    between are not trained at all; the paper argues that interpolated attention is smooth enough to do without. Text
    begins at a uniformly drawn token.

    Attributes:
        tokens: number of tokens at the end, `e`, from 1 to one less than the training window.
        text: which text the last tokens have. contiguous: what follows in the document. aligned: text as far ahead as
            the positions are, as far as the document reaches.
        end: where they stand. target: their last position is `Lt - 1`, as in the paper. anywhere: `u ~ U{0..Lt-Lc}`, as
            in a variant of the authors' code.

    Source: EndPrompt, arXiv 2605.14589, as in the authors' code. Deviation: they append a prompt of 18 to 20 tokens,
    always the same, to each text; here the last tokens are text of the document. In retrieval exercises they are the
    question and its answer.
    """

    uses_sentence_ends: ClassVar[bool] = False

    tokens: int = 20
    text: str = "contiguous"
    end: str = "target"

    def __post_init__(self) -> None:
        check_count("sampler.tokens", self.tokens)
        check_choice("sampler.text", self.text, END_TEXTS)
        check_choice("sampler.end", self.end, ENDS)

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """See `PositionSampler.sample`."""
        check_document(num_tokens, window)
        if self.tokens >= window.train:
            raise PositionError(
                f"sampler.tokens is {self.tokens} and window.train {window.train} tokens; a token must stand before "
                f"those at the end: set at most {window.train - 1}"
            )
        skip = window.target - window.train
        if self.end == "anywhere":
            skip = int(rng.integers(0, skip + 1))
        room = num_tokens - window.train
        ahead = min(skip, room) if self.text == "aligned" else 0
        start = int(rng.integers(0, room - ahead + 1))
        lengths = [window.train - self.tokens, self.tokens]
        return PositionSample.unchecked(in_chunks(lengths, [start, start + ahead]), in_chunks(lengths, [0, skip]))

"""The end of a document, held out where too few whole documents are."""

from typing import NamedTuple

import numpy as np

from skipwise.data.store.files import Lengths


class HeldOutEnd(NamedTuple):
    """A document whose end is held out; the tokens before it are trained on.

    Attributes:
        store: folder name of the token files that hold the document. Views of other token files ignore this end.
        number: number of the document in these files.
        begin: index of its first held-out token.
    """

    store: str
    number: int
    begin: int

    def length_of(self, length: int, *, held_out: bool) -> int:
        """Number of the document's tokens in the held-out or the training split."""
        return length - self.begin if held_out else self.begin

    def part_of(self, ids: np.ndarray, *, held_out: bool) -> np.ndarray:
        """The document's token ids in the held-out or the training split."""
        return ids[self.begin :] if held_out else ids[: self.begin]


def choose_held_out_end(files: Lengths, *, share: float, at_least: int, enough: int, keep: int) -> HeldOutEnd | None:
    """Chooses the end of the longest training document, if the held-out documents have too few tokens.

    The result depends only on the files and these numbers, so all processes and a resumed run choose alike. The end has
    `max(at_least, enough, share * all tokens)` tokens, but at most half of the document, and it leaves `keep` tokens to
    training. A larger `keep` gives a shorter end, so the ends for different values are nested.

    Args:
        files: all documents.
        share: share of documents that is held out.
        at_least: minimum number of held-out tokens.
        enough: desired number of held-out tokens.
        keep: minimum number of the document's tokens left to training.

    Returns:
        The end. None if whole documents suffice for both splits, or if no document is long enough to divide.
    """
    total = held_out = 0
    longest_trained, longest = (0, 0), (0, 0)
    for begin, end in files.blocks():
        lengths = np.diff(files.read("offsets", begin, end + 1))
        is_held_out = files.read("splits", begin, end) / 2.0**64 < share
        total += int(lengths.sum())
        held_out += int(lengths[is_held_out].sum())
        longest = max(longest, _longest(lengths, begin))
        longest_trained = max(longest_trained, _longest(np.where(is_held_out, 0, lengths), begin))
    if held_out >= at_least and longest_trained[0]:
        return None
    # If every document is held out, part of one must be trained on.
    length, place = longest_trained if longest_trained[0] else longest
    tokens = min(max(at_least, enough, round(share * total)), length // 2, length - keep)
    return HeldOutEnd(files.folder.name, -place, length - tokens) if tokens >= at_least else None


def _longest(lengths: np.ndarray, begin: int) -> tuple[int, int]:
    """Length of the longest document, and its negated number, so that `max` takes the first of equal lengths."""
    return int(lengths.max()), -(begin + int(lengths.argmax()))

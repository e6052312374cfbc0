"""The end of a document, held out where whole documents do not make up a held-out part."""

from typing import NamedTuple

import numpy as np

from skipwise.data.store.files import TokenFiles


class HeldOutEnd(NamedTuple):
    """Tokens at the end of a document that are held out; those before them are trained on.

    Attributes:
        store: name of the folder of the token files that this is about; of any others nothing is meant.
        number: of the document in the files.
        begin: its first token that is held out.
    """

    store: str
    number: int
    begin: int

    def length_of(self, length: int, *, held_out: bool) -> int:
        """How many of the document's tokens are in a part."""
        return length - self.begin if held_out else self.begin

    def part_of(self, ids: np.ndarray, *, held_out: bool) -> np.ndarray:
        """Those of the document's tokens that are in a part."""
        return ids[self.begin :] if held_out else ids[: self.begin]


def choose_held_out_end(files: TokenFiles, *, share: float, at_least: int, enough: int, keep: int) -> HeldOutEnd | None:
    """Chooses the end of the longest document that is trained on, where too little is held out by whole documents.

    It depends on the files and these numbers alone, so all processes and a resumed run choose alike. As many tokens are
    held out as the share is of all tokens, or as are enough where that is more, and never more than half of the
    document. The more is to be kept, the shorter the end, so that one is a part of the other.

    Args:
        files: all documents.
        share: share of documents that is held out.
        at_least: tokens that must be held out.
        enough: tokens that are wanted, as far as the document has them.
        keep: tokens of the document that training must be left.

    Returns:
        The end; None where whole documents suffice for both parts, or no document is long enough to be shared.
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
    # Where every document is held out, a part of one must be trained on.
    length, place = longest_trained if longest_trained[0] else longest
    tokens = min(max(at_least, enough, round(share * total)), length // 2, length - keep)
    return HeldOutEnd(files.folder.name, -place, length - tokens) if tokens >= at_least else None


def _longest(lengths: np.ndarray, begin: int) -> tuple[int, int]:
    """Tokens of the longest document, and its number below 0, so that of several as long the first is the largest."""
    return int(lengths.max()), -(begin + int(lengths.argmax()))

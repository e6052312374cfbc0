"""What training windows take of a corpus, and what is left out and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skipwise.data.corpus import StoredCorpus, StreamedCorpus, joins, view_of
from skipwise.data.store import Counts, Lengths, TokenFiles, View, count_documents
from skipwise.data.turns import LABEL
from skipwise.errors import DataError

_BLOCK_DOCUMENTS, _BLOCK_TOKENS = 1 << 18, 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedLengths:
    """Lengths of documents that are not tokenized, for the counts of `count_documents`.

    Attributes:
        tokens: 1-D int64, of each document.
        splits: 1-D uint64, `documents.split_point` of each document.
        has_turns: whether the documents are conversations, which are joined without a separator.
    """

    tokens: np.ndarray
    splits: np.ndarray
    has_turns: bool = False

    @property
    def folder(self) -> Path:
        """A name for `HeldOutEnd`; there is no such folder."""
        return Path("estimated")

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.tokens)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of documents."""
        for begin in range(0, len(self.tokens), _BLOCK_DOCUMENTS):
            yield begin, min(begin + _BLOCK_DOCUMENTS, len(self.tokens))

    def read(self, name: str, begin: int, end: int) -> np.ndarray:
        """Entries `begin` to `end - 1` of `splits`, or of `offsets`, counted from the first of them."""
        if name == "splits":
            return self.splits[begin:end]
        return np.concatenate([[0], np.cumsum(self.tokens[begin : end - 1])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What windows of one length take of a corpus.

    Attributes:
        window: tokens of a window.
        min_tokens: shorter documents are dropped, or joined.
        join: whether they are joined.
        counts: of documents; `counts.tokens` are those that are trained on.
        held_out_tokens: tokens that are held out.
        short_tokens: tokens in documents that are too short, or left over from joining.
        problem: why nothing can be trained on; None if something can.
        source: the entry of a mixture that they are taken of; empty without one.
    """

    window: int
    min_tokens: int
    join: bool
    counts: Counts
    held_out_tokens: int
    short_tokens: int
    problem: str | None = None
    source: str = ""


def taken_in(corpus: StoredCorpus | StreamedCorpus, window: int, estimates: EstimatedLengths | None = None) -> Taken:
    """What training windows take of an open corpus.

    Args:
        corpus: the documents.
        window: tokens of a window.
        estimates: of the lengths of documents that are streamed.
    """
    end = corpus.held_out_end if isinstance(corpus, StoredCorpus) else None
    problem, lengths, source = None, estimates, ""
    if isinstance(corpus, StoredCorpus):
        lengths, source = corpus.files, corpus.name
        try:
            corpus.documents("train", min_tokens=window)
        except DataError as error:
            problem = str(error)
    assert lengths is not None
    join = joins(corpus.data, corpus.sources)
    view = view_of(corpus.data, "train", min_tokens=window, join=join, held_out_end=end)
    passed_over = corpus.sources.kinds_passed_over.total()
    return taken_by(window, lengths, view, problem=problem, files_passed_over=passed_over, source=source)


def taken_by(
    window: int,
    files: Lengths,
    view: View,
    *,
    problem: str | None = None,
    files_passed_over: int = 0,
    source: str = "",
) -> Taken:
    """Counts what windows take, by the counts of the corpus itself.

    Args:
        window: tokens of a window.
        files: lengths of the documents.
        view: of the training split, as training opens it.
        problem: why it cannot be opened.
        files_passed_over: number of files of unsupported kinds.
        source: the entry of a mixture.
    """
    counts = count_documents(files, view, files_passed_over=files_passed_over)
    own, others = (
        count_documents(files, replace(view, min_tokens=1, join=False, part=part)).tokens
        for part in ("train", "held_out")
    )
    # Joining adds separators.
    separators = 0 if files.has_turns else counts.kept - counts.documents
    return Taken(
        window=window,
        min_tokens=view.min_tokens,
        join=view.join,
        counts=counts,
        held_out_tokens=others,
        short_tokens=own - counts.tokens + separators,
        problem=problem,
        source=source,
    )


def share_of_labels(files: Sequence[TokenFiles]) -> float | None:
    """The share of the tokens of conversations that are learned; None without conversations."""
    own = [one for one in files if one.has_turns and len(one.tokens)]
    if not own:
        return None
    begins = ((one, begin) for one in own for begin in range(0, len(one.tokens), _BLOCK_TOKENS))
    read = (one.read("tokens", begin, min(begin + _BLOCK_TOKENS, len(one.tokens))) for one, begin in begins)
    return sum(int(np.count_nonzero(block & LABEL)) for block in read) / sum(len(one.tokens) for one in own)

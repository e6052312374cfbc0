"""Views of token files: which of their documents a run trains on, or is measured on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from skipwise.errors import DataError
from skipwise.token_store.files import FORMAT, Names, TokenFiles

Part = Literal["all", "train", "held_out"]

# Documents whose hashes are in memory at once.
_AT_A_TIME = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which documents, and how short ones are treated.

    Attributes:
        min_tokens: documents with fewer tokens are dropped, or joined.
        join: joins short documents in reading order, a separator token between, until they have `min_tokens`.
        part: all documents, those for training, or those held out from it.
        held_out_share: share of documents that is held out.
    """

    min_tokens: int = 1
    join: bool = False
    part: Part = "all"
    held_out_share: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the documents read; `seen == kept + dropped_short + dropped_empty + other_part`.

    Attributes:
        seen: documents read.
        kept: documents whose text is in the store.
        documents: documents in the store; fewer than `kept` where short ones were joined.
        dropped_short: shorter than the minimum, or left over from joining.
        dropped_empty: without any text.
        other_part: held out when training documents were asked for, or the other way round.
        tokens: tokens in the store.
        files_passed_over: files of kinds that skipwise does not read.
    """

    seen: int
    kept: int
    documents: int
    dropped_short: int
    dropped_empty: int
    other_part: int
    tokens: int
    files_passed_over: int


class TokenStore:
    """Tokenized documents on disk, those of one view.

    Opening maps the files and computes the view from the documents' lengths: for ten million of them a fraction of a
    second, a few seconds where short ones are joined, and 8 bytes of memory for each that is shown. A store sent to
    another process is opened there again rather than copied.

    Args:
        folder: folder of complete token files.
        view: which documents.
        files_passed_over: files beside them of kinds that skipwise does not read, for the counts.

    Attributes:
        folder: where it lies; views of the same source and tokenizer share it.
        view: which documents.
        counts: what became of the documents read.
        min_tokens: length that every document was required to have.
        shortest_tokens: length of the shortest document.
        longest_tokens: length of the longest document.
        separator_id: token between joined documents, None when short documents were not joined.
        sentence_ends: 1-D bool, one entry per token id: whether its text ends a sentence.

    Raises:
        DataError: when the folder holds no complete token files, or the view is of no document.
    """

    def __init__(self, folder: str | Path, view: View | None = None, *, files_passed_over: int = 0) -> None:
        self.folder, self.view = Path(folder), view or View()
        self._files = files = TokenFiles(folder)
        self.min_tokens, self.sentence_ends = self.view.min_tokens, files.sentence_ends
        self.separator_id = files.separator_id if self.view.join else None

        lengths = np.diff(files.offsets)
        wanted = np.ones(files.num_documents, bool)
        if self.view.part != "all":
            wanted = (files.splits / 2.0**64 < self.view.held_out_share) == (self.view.part == "held_out")
        has_text = wanted & (lengths > 0)
        is_long = has_text & (lengths >= self.min_tokens)
        # Document i is members[bounds[i] : bounds[i + 1]], or members[i] alone where none are joined.
        self._members, self._bounds = np.flatnonzero(is_long), None
        sizes = lengths[self._members]
        if self.view.join:
            short = np.flatnonzero(has_text & ~is_long)
            self._members, self._bounds = _joined(self._members, short, lengths, self.min_tokens)
            if len(self._members):
                num_separators = np.diff(self._bounds) - 1
                sizes = np.add.reduceat(lengths[self._members], self._bounds[:-1]) + num_separators
        self.counts = Counts(
            seen=files.num_documents,
            kept=len(self._members),
            documents=len(sizes),
            dropped_short=int(has_text.sum()) - len(self._members),
            dropped_empty=int(wanted.sum() - has_text.sum()),
            other_part=files.num_documents - int(wanted.sum()),
            tokens=int(sizes.sum()),
            files_passed_over=files_passed_over,
        )
        if not len(sizes):
            raise DataError(self._none_kept(np.where(wanted, lengths, 0)))
        self.shortest_tokens, self.longest_tokens = int(sizes.min()), int(sizes.max())

    @property
    def num_documents(self) -> int:
        """Documents in the store."""
        return self.counts.documents

    @property
    def names(self) -> Sequence[str]:
        """The documents' names, read from disk one by one as they are asked for; of joined ones the first's."""
        firsts = self._members if self._bounds is None else self._members[self._bounds[:-1]]
        return Names(self._files, firsts)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer and of every token and document boundary; the same wherever it was built."""
        content = [FORMAT, self._files.tokenizer_fingerprint, str(self._files.dtype), self.separator_id]
        digest = hashlib.sha256(json.dumps(content).encode())
        for begin in range(0, len(self._members), _AT_A_TIME):
            digest.update(self._files.digests[self._members[begin : begin + _AT_A_TIME]].data)
        if self._bounds is not None:
            digest.update(self._bounds.data)
        return digest.hexdigest()

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document.

        Args:
            index: which document, 0 to `num_documents - 1`.

        Returns:
            1-D, uint16 or uint32, read-only; a view of the file, unless it is several joined.
        """
        if not 0 <= index < self.counts.documents:
            raise IndexError(f"document {index} of a store with {self.counts.documents}")
        if self._bounds is None:
            return self._files.document(self._members[index])
        members = self._members[self._bounds[index] : self._bounds[index + 1]]
        stretches = [self._files.document(members[0])]
        for member in members[1:]:
            stretches += [np.array([self.separator_id], self._files.dtype), self._files.document(member)]
        if len(stretches) == 1:
            return stretches[0]
        joined = np.concatenate(stretches)
        joined.flags.writeable = False
        return joined

    def _none_kept(self, lengths: np.ndarray) -> str:
        """Says why there is no document, and what to do; `lengths` are 0 where a document is of the other part."""
        counts, view = self.counts, self.view
        if counts.seen == counts.other_part:
            return (
                f"none of {counts.seen} documents is in the {view.part} part (held_out_share={view.held_out_share}); "
                "give more documents or another share (in an evaluation --held-out-share, or --all-documents)"
            )
        if not counts.dropped_short:
            last = self._files.name(counts.seen - 1)
            return f"all {counts.dropped_empty} documents up to {last} are empty; give documents with text"
        cure = "give more documents" if view.join else "join short documents (data.join: true)"
        longest = int(lengths.argmax())
        return (
            f"no document has {view.min_tokens} tokens{', nor do all joined' if view.join else ''}; the longest of "
            f"{counts.dropped_short}, {self._files.name(longest)}, has {lengths[longest]}: lower min_tokens or {cure}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.folder, self.view, self.counts.files_passed_over)


def _opened(folder: Path, view: View, files_passed_over: int) -> TokenStore:
    return TokenStore(folder, view, files_passed_over=files_passed_over)


def _joined(long: np.ndarray, short: np.ndarray, lengths: np.ndarray, min_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Joins short documents in reading order, each with as few as make it long enough; what is left over is in none.

    Args:
        long: 1-D, numbers of the documents that stand by themselves.
        short: 1-D, numbers of those to be joined.
        lengths: 1-D, tokens of every document.
        min_tokens: tokens of a joined document, separators counted.

    Returns:
        The members of all documents, and (documents + 1,) where each begins among them; a joined document stands where
        its last member stood.
    """
    # reach[i]: tokens of the first i short documents, each with a separator.
    reach = np.concatenate([[0], np.cumsum(lengths[short] + 1)])
    # One that begins with the i-th is complete before the first e with reach[e] - reach[i] - 1 >= min_tokens.
    complete = np.searchsorted(reach, reach[:-1] + min_tokens + 1)
    ends = [0]
    while ends[-1] < len(short) and complete[ends[-1]] <= len(short):
        ends.append(int(complete[ends[-1]]))
    last_members = np.repeat(short[np.array(ends[1:], dtype=np.int64) - 1], np.diff(ends))
    places = np.concatenate([long, last_members])
    order = np.argsort(places, kind="stable")
    members = np.concatenate([long, short[: ends[-1]]])[order]
    begins = np.flatnonzero(np.diff(places[order], prepend=-1))
    return members, np.append(begins, len(members))

"""Views of token files: the documents of one split that are long enough, or joined."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from skipwise.data.store.files import DIGEST_BYTES, FORMAT, Lengths, Names, TokenFiles
from skipwise.data.store.held_out import HeldOutEnd
from skipwise.data.store.numbers import NumberSet
from skipwise.data.turns import plain_ids
from skipwise.errors import DataError

Part = Literal["all", "train", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Selects documents, and says what happens to short ones.

    Attributes:
        min_tokens: documents with fewer tokens are dropped, or joined.
        join: joins short documents in reading order, up to `min_tokens`; texts with a separator token between them.
        part: the split: all documents, those for training, or those held out.
        held_out_share: share of documents that is held out.
        held_out_end: the document of which only the end is held out; None if no document is divided.
    """

    min_tokens: int = 1
    join: bool = False
    part: Part = "all"
    held_out_share: float = 0.1
    held_out_end: HeldOutEnd | None = None

    def shared_in(self, files: Lengths) -> HeldOutEnd | None:
        """The `held_out_end`, if it belongs to these files and this view is of one split; else None."""
        end = self.held_out_end
        return end if end is not None and self.part != "all" and end.store == files.folder.name else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counts of documents in a view; `seen == kept + dropped_short + dropped_empty + other_part`.

    Attributes:
        seen: documents in the token files.
        kept: of these, documents whose text is in the view.
        documents: documents of the view; fewer than `kept` where short ones are joined.
        dropped_short: shorter than the minimum, or left over from joining.
        dropped_empty: without any text.
        other_part: of the other split.
        tokens: tokens in the view, separators included.
        files_passed_over: files of unsupported kinds.
    """

    seen: int
    kept: int
    documents: int
    dropped_short: int
    dropped_empty: int
    other_part: int
    tokens: int
    files_passed_over: int

    @property
    def text(self) -> str:
        """What the view has: `28 documents`, or `7 texts joined from 28 documents`."""
        if self.documents == self.kept:
            return f"{self.kept:,} document{'' if self.kept == 1 else 's'}"
        return f"{self.documents:,} text{'' if self.documents == 1 else 's'} joined from {self.kept:,} documents"


class TokenStore:
    """The tokenized documents of one view, on disk.

    Opening maps the files and computes the view from the documents' lengths. For a hundred million documents this takes
    seconds, and memory of one bit for each, or three where short ones are joined. Pickling a store copies no tokens:
    the other process opens the files again.

    Args:
        folder: folder of complete token files.
        view: selects the documents; all of them by default.
        files_passed_over: number of source files of unsupported kinds, for the counts.

    Attributes:
        folder: folder of the token files; views of the same source and tokenizer share it.
        view: selects the documents.
        counts: counts of documents and tokens.
        passed_over: what was unreadable and skipped, as `PassedOver.to_json`.
        min_tokens: minimum length of a document.
        shortest_tokens: length of the shortest document.
        separator_id: token between joined documents; None if short documents are not joined, or are conversations.
        has_turns: whether the documents are conversations.
        sentence_ends: 1-D uint8, one entry per token id: `tokens.sentence_end_code`.

    Raises:
        DataError: the folder holds no complete token files, or the view is empty.
    """

    def __init__(self, folder: str | Path, view: View | None = None, *, files_passed_over: int = 0) -> None:
        self.folder, self.view = Path(folder), view or View()
        self._files = files = TokenFiles(folder)
        self._shared = self.view.shared_in(files)
        self.passed_over = files.passed_over
        self.min_tokens, self.sentence_ends = self.view.min_tokens, files.sentence_ends
        self.separator_id = files.separator_id if self.view.join else None
        self.has_turns = files.has_turns

        # Document i is the i-th member of `shown`: a document of the files, or the last one of a joined document.
        found = _survey(files, self.view)
        self._shown, self._joined = found.shown, found.joined
        self.counts = found.counts(files.num_documents, files_passed_over)
        if not len(found.shown):
            raise DataError(self._none_kept(found.longest), page="no-long-documents")
        self.shortest_tokens = found.fewest_tokens

    @property
    def num_documents(self) -> int:
        """Number of documents in the view."""
        return self.counts.documents

    @property
    def names(self) -> Sequence[str]:
        """Names of the documents, read from disk on access; a joined document has the name of its first one."""
        return Names(self._files, self.counts.documents, lambda index: self._numbers(index)[0])

    @property
    def label_share(self) -> float:
        """Share of the tokens that are labels, over both splits, about; 1 for texts."""
        return self._files.label_share

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer and of every token and document boundary; the same wherever the store was built."""
        content = [FORMAT, self._files.tokenizer_fingerprint, str(self._files.dtype), self.separator_id]
        digest = hashlib.sha256(json.dumps(content).encode())
        for end, numbers, _ in self._members():
            if len(numbers):
                first = int(numbers.min())
                digests = self._files.read("digests", first, end)[numbers - first]
                if self._shared is not None and self._shared.number in numbers:
                    own = hashlib.blake2b(self._document(self._shared.number).data, digest_size=DIGEST_BYTES).digest()
                    digests[numbers == self._shared.number] = np.frombuffer(own, np.uint8)
                digest.update(digests.data)
        if self._joined:
            # Where each document of the view begins in the sequence of the file documents that it is made of.
            begin = 0
            for _, numbers, sizes in self._members():
                if len(sizes):
                    digest.update((begin + np.cumsum(sizes) - sizes).data)
                begin += len(numbers)
            digest.update(np.array([begin]).data)
        return digest.hexdigest()

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document.

        Args:
            index: 0 to `num_documents - 1`.

        Returns:
            1-D, uint16 or uint32, read-only; a view of the file, unless the document is a conversation or joined.
        """
        entries = self.entries(index)
        return plain_ids(entries) if self.has_turns else entries

    def entries(self, index: int) -> np.ndarray:
        """`document` with the flags of conversations (see `data.turns`)."""
        if not 0 <= index < self.counts.documents:
            raise IndexError(f"document {index} of a store with {self.counts.documents}")
        first, *others = self._numbers(index)
        if not others:
            return self._document(first)
        stretches = [self._document(first)]
        for number in others:
            if self.separator_id is not None:
                stretches.append(np.array([self.separator_id], self._files.dtype))
            stretches.append(self._document(number))
        joined = np.concatenate(stretches)
        joined.flags.writeable = False
        return joined

    def _document(self, number: int) -> np.ndarray:
        """Entries of a document of the files, as far as they are in this split."""
        ids = self._files.document(number)
        if self._shared is None or number != self._shared.number:
            return ids
        return self._shared.part_of(ids, held_out=self.view.part == "held_out")

    def _numbers(self, index: int) -> list[int]:
        """The file documents that make up document `index` of the view."""
        number = self._shown[index]
        if self._joined is None or number not in self._joined.last:
            return [number]
        short, last = self._joined
        before = last.below(number)
        begin = short.below(last[before - 1] + 1) if before else 0
        return short.members(begin, short.below(number + 1)).tolist()

    def _members(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For the documents of the view that end in each block of the files: the block's end, numbers of the file
        documents that they are made of, and how many make up each."""
        used = 0
        for begin, end in self._files.blocks():
            shown = begin + np.flatnonzero(self._shown.mask(begin, end))
            if self._joined is None:
                yield end, shown, np.ones(len(shown), np.int64)
                continue
            short, last = self._joined
            is_joined = last.mask(begin, end)[shown - begin]
            up_to = short.below(begin) + np.cumsum(short.mask(begin, end))[shown[is_joined] - begin]
            sizes = np.ones(len(shown), np.int64)
            sizes[is_joined] = np.diff(up_to, prepend=used)
            is_long = np.repeat(~is_joined, sizes)
            numbers = np.empty(len(is_long), np.int64)
            numbers[is_long] = shown[~is_joined]
            if len(up_to):
                numbers[~is_long] = short.members(used, int(up_to[-1]))
                used = int(up_to[-1])
            yield end, numbers, sizes

    def _none_kept(self, longest: tuple[int, int]) -> str:
        """Message for an empty view: the reason, and what to do.

        Args:
            longest: number and tokens of the longest document that is not of the other split.
        """
        counts, view = self.counts, self.view
        if not counts.seen:
            return "nothing in the documents can be read; fix some, or give others"
        if counts.seen == counts.other_part:
            return (
                f"none of {counts.seen} documents is in the {view.part} part (held_out_share={view.held_out_share}); "
                "give more documents or another share (in an evaluation --held-out-share, or --all-documents)"
            )
        if not counts.dropped_short:
            last = self._files.name(counts.seen - 1)
            return f"all {counts.dropped_empty} documents up to {last} are empty; give documents with text"
        cure = "give more documents" if view.join else "join short documents (data.join: true)"
        number, tokens = longest
        return (
            f"no document has {view.min_tokens} tokens{', nor do all joined' if view.join else ''}; the longest of "
            f"{counts.dropped_short}, {self._files.name(number)}, has {tokens}: lower min_tokens or {cure}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.folder, self.view, self.counts.files_passed_over)


def _opened(folder: Path, view: View, files_passed_over: int) -> TokenStore:
    return TokenStore(folder, view, files_passed_over=files_passed_over)


class _Joined(NamedTuple):
    """The file documents that are joined.

    Attributes:
        short: all documents below the minimum length; the last ones may be left over.
        last: the last file document of each joined document.
    """

    short: NumberSet
    last: NumberSet


class _Survey(NamedTuple):
    """The file documents of a view, and counts of them.

    Attributes:
        shown: long documents, and the last file document of each joined document.
        joined: the joined documents; None if joining is off.
        wanted: number of documents of the split.
        with_text: number of these that have tokens.
        kept: number of these that are in the view.
        tokens: tokens in the view, separators included.
        fewest_tokens: length of the shortest document in the view.
        longest: number and tokens of the longest document of the split.
    """

    shown: NumberSet
    joined: _Joined | None
    wanted: int
    with_text: int
    kept: int
    tokens: int
    fewest_tokens: int
    longest: tuple[int, int]

    def counts(self, seen: int, files_passed_over: int) -> Counts:
        """The same as `Counts`."""
        return Counts(
            seen=seen,
            kept=self.kept,
            documents=len(self.shown),
            dropped_short=self.with_text - self.kept,
            dropped_empty=self.wanted - self.with_text,
            other_part=seen - self.wanted,
            tokens=self.tokens,
            files_passed_over=files_passed_over,
        )


def count_documents(files: Lengths, view: View, *, files_passed_over: int = 0) -> Counts:
    """Counts what a view of these documents has, without opening it; also where it is empty."""
    return _survey(files, view).counts(files.num_documents, files_passed_over)


def _survey(files: Lengths, view: View) -> _Survey:
    """Goes through the length and the split of every document, block by block."""
    shown, short, last = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    joining = _Joining(view.min_tokens, separators=0 if files.has_turns else 1)
    wanted = with_text = kept = tokens = 0
    fewest, longest = sys.maxsize, (0, 0)
    shared = view.shared_in(files)
    for begin, end in files.blocks():
        lengths = np.diff(files.read("offsets", begin, end + 1))
        if view.part != "all":
            is_held_out = files.read("splits", begin, end) / 2.0**64 < view.held_out_share
            is_other = is_held_out != (view.part == "held_out")
            if shared is not None and begin <= shared.number < end:
                own = shared.number - begin
                is_other[own] = False
                lengths[own] = shared.length_of(int(lengths[own]), held_out=view.part == "held_out")
            lengths[is_other] = 0
            wanted -= int(is_other.sum())
        wanted += end - begin
        has_text = lengths > 0
        with_text += int(has_text.sum())
        is_shown = has_text & (lengths >= view.min_tokens)
        kept += int(is_shown.sum())
        sizes = lengths[is_shown]
        if view.join:
            is_short = has_text & ~is_shown
            numbers = np.flatnonzero(is_short)
            ends, joined_sizes = joining.ends(lengths[numbers])
            is_last = np.zeros(end - begin, bool)
            is_last[numbers[ends]] = True
            is_shown |= is_last
            sizes = np.concatenate([sizes, joined_sizes])
            short.append(NumberSet.bits(is_short))
            last.append(NumberSet.bits(is_last))
        shown.append(NumberSet.bits(is_shown))
        if len(sizes):
            tokens += int(sizes.sum())
            fewest = min(fewest, int(sizes.min()))
        if (top := int(lengths.max())) > longest[1]:
            longest = (begin + int(lengths.argmax()), top)
    joined = _Joined(NumberSet(short), NumberSet(last)) if view.join else None
    if joined and len(joined.last):
        kept += joined.short.below(joined.last[len(joined.last) - 1] + 1)
    return _Survey(NumberSet(shown), joined, wanted, with_text, kept, tokens, fewest, longest)


class _Joining:
    """Joins consecutive short documents, as few as reach the minimum length; those left over at the end are dropped.

    Args:
        min_tokens: minimum length of a joined document, separators included.
        separators: number of tokens between two documents.
    """

    def __init__(self, min_tokens: int, separators: int) -> None:
        self._min_tokens, self._separators = min_tokens, separators
        # Tokens of the documents not yet joined, with a separator after each.
        self._waiting = 0

    def ends(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joins the next short documents.

        Args:
            lengths: 1-D int64, tokens of each.

        Returns:
            Indices of those that complete a joined document, 1-D int64, and the tokens of each joined document.
        """
        between = self._separators
        # reach[i]: tokens of the first i documents, each with a separator.
        reach = np.concatenate([[0], np.cumsum(lengths + between)])
        # A joined document that begins at i ends before the smallest e with
        # reach[e] - reach[i] - between >= min_tokens.
        complete = np.searchsorted(reach, reach + self._min_tokens + between).tolist()
        end = int(np.searchsorted(reach, self._min_tokens + between - self._waiting))
        ends = list[int]()
        while end <= len(lengths):
            ends.append(end)
            end = complete[end]
        behind = np.array(ends, np.int64)
        reached = np.concatenate([[-self._waiting], reach[behind]])
        self._waiting = int(reach[-1] - reached[-1])
        return behind - 1, np.diff(reached) - between

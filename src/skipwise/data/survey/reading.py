"""One pass over the documents of a corpus: the length of each, and what else is measured on a sample of them.

The sample is chosen by content: a document is in it if a hash of one entry of its sketch is small enough. So equal
texts are in it together or not at all, near-duplicates nearly always, and the shares of duplicates in the sample are
those of the corpus.
"""

import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from skipwise.bars import Bar
from skipwise.data.documents import Document, PassedOver, Source, Sources, in_threads, split_point
from skipwise.data.formats import UnreadableError
from skipwise.data.language import language_of
from skipwise.data.survey.sketches import below, draw

MOST_SAMPLED = 1 << 17
"""Documents whose content is compared; of larger corpora, a sample."""

_MOST_LANGUAGES = 1 << 12  # telling a language takes milliseconds
MIN_COMPRESSED_BYTES = 4096
"""Of shorter texts, no ratio of compression is taken: even prose hardly compresses there."""

BYTES_PER_TOKEN = 4
"""The estimate of tokens without a tokenizer, on texts in UTF-8."""

MOST_HASHES = 1 << 21
"""Hashes of sequences of ten words that are kept of all documents together."""

_GZIP_LEVEL = 6
_EXCERPT, _NUM_EXCERPTS = 2000, 4
_QUIET_SECONDS = 3
_NAMED = 3

Member = TypeVar("Member")


class Measured(NamedTuple):
    """What is measured on one document of the sample.

    Attributes:
        number: of the document, in reading order.
        name: of the document.
        key: hash of its text.
        sketch: from `sketches.sketch`; None for a text without words.
        gzip_ratio: compressed by uncompressed bytes; None for short texts.
    """

    number: int
    name: str
    key: int
    sketch: np.ndarray | None
    gzip_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """What one pass over the documents has found.

    Attributes:
        sizes: 1-D int64, bytes in UTF-8 of each document, without space around it; 0 for empty ones.
        splits: 1-D uint64, `documents.split_point` of each document.
        empty: names of the first empty documents.
        sources: the inspected sources of each entry of a mixture, or of a run without one.
        counts: number of documents of each.
        unreadable: files and records of each that could not be read.
        sample: documents whose content was looked at.
        languages: by number of a document in a smaller sample, its language; None if it could not be told.
        hashes: 1-D uint64, of the word sequences of all documents, or of a sample of these.
        owners: 1-D int64, the number of the document of each hash.
        is_whole: whether everything was read.
    """

    sizes: np.ndarray
    splits: np.ndarray
    empty: list[str]
    sources: Sequence[Sources]
    counts: list[int]
    unreadable: list[PassedOver]
    sample: list[Measured]
    languages: dict[int, str | None]
    hashes: np.ndarray
    owners: np.ndarray
    is_whole: bool


def estimated_tokens(sizes: np.ndarray) -> np.ndarray:
    """An estimate of tokens from bytes in UTF-8, rounded up; 1-D int64."""
    return -(-sizes // BYTES_PER_TOKEN)


def survey(
    sources: Sequence[Sources],
    *,
    why_not: Callable[[int, Document], UnreadableError | None] = lambda entry, document: None,
    most_bytes: int | None = None,
    most_sampled: int = MOST_SAMPLED,
    most_hashes: int = MOST_HASHES,
    workers: int | None = None,
    progress: bool = True,
) -> Surveyed:
    """Reads the documents once, and measures them in threads. The result does not depend on their number.

    Args:
        sources: as in `Surveyed`; everything unreadable in them is counted and left out.
        why_not: what is wrong with a document of an entry, by its number, that can be read; None for nothing.
        most_bytes: reading ends behind so much text; None for no limit.
        most_sampled: documents in the sample.
        most_hashes: hashes of word sequences that are kept.
        workers: number of threads; by default one per processor.
        progress: shows a bar with the time left if reading takes more than a few seconds.
    """
    unreadable, counts = [PassedOver() for _ in sources], [0] * len(sources)
    every = [source for own in sources for source in own.sources]

    sizes, splits, empty = array("q"), array("Q"), list[str]()
    sample = _Sample[Measured](most_sampled)
    languages = _Sample[tuple[int, str | None]](_MOST_LANGUAGES)
    sequences = _Hashes(most_hashes)
    total, read, is_whole = _known_bytes(every), 0, True

    def measure(batch: list[Document]) -> Iterable[_One]:
        # The shares of the samples only fall, so that nothing is missing that is in them at the end.
        return [_measured(document, sample.share, languages.share, sequences.share) for document in batch]

    def show() -> None:
        bar.update((read if total is None else sum(source.read_bytes() for source in every)) - bar.n)

    with _bar(total, progress) as bar:
        for one in in_threads(
            measure, _read(sources, why_not, unreadable, counts), workers or os.cpu_count() or 1, show
        ):
            if not one.size:
                empty += [one.name] if len(empty) < _NAMED else []
            else:
                sample.add(one.place, Measured(len(sizes), one.name, one.key, one.sketch, one.gzip_ratio))
                languages.add(one.place, (len(sizes), one.language))
                sequences.add(len(sizes), one.hashes)
            sizes.append(one.size)
            splits.append(one.split)
            read += one.size
            show()
            if most_bytes is not None and read >= most_bytes:
                is_whole = False
                break
    return Surveyed(
        sizes=np.frombuffer(sizes, np.int64),
        splits=np.frombuffer(splits, np.uint64),
        empty=empty,
        sources=sources,
        counts=counts,
        unreadable=unreadable,
        sample=sample.members(),
        languages=dict(languages.members()),
        hashes=sequences.hashes(),
        owners=sequences.owners(),
        is_whole=is_whole,
    )


def _read(
    sources: Sequence[Sources],
    why_not: Callable[[int, Document], UnreadableError | None],
    unreadable: Sequence[PassedOver],
    counts: list[int],
) -> Iterator[Document]:
    """The documents of all entries; counts them, and notes what is unreadable, by entry."""
    for number, own in enumerate(sources):
        for source in own.sources:
            for document in source.documents(own.field, unreadable[number]):
                if fault := why_not(number, document):
                    unreadable[number].add(fault)
                    continue
                counts[number] += 1
                yield document


def _known_bytes(sources: Sequence[Source]) -> int | None:
    """Bytes of all sources on disk; None if that of one is unknown."""
    sizes = [source.size_bytes() for source in sources]
    return None if None in sizes else sum(filter(None, sizes))


class _Sample(Generic[Member]):
    """Members whose place in [0, 1) is below a share that halves when there are too many."""

    def __init__(self, most: int) -> None:
        self._most, self._members = most, list[tuple[float, Member]]()
        self.share = 1.0

    def add(self, place: float, member: Member) -> None:
        if place < self.share:
            self._members.append((place, member))
        while len(self._members) > self._most:
            self.share /= 2
            self._members = [one for one in self._members if one[0] < self.share]

    def members(self) -> list[Member]:
        """In the order in which they came."""
        return [member for _, member in self._members]


class _Hashes:
    """Hashes of each document below a share of all hashes, which halves when there are too many."""

    def __init__(self, most: int) -> None:
        self._most, self._number = most, 0
        self._kept: list[tuple[int, np.ndarray]] = []
        self.share = 1.0

    def add(self, owner: int, hashes: np.ndarray) -> None:
        self._keep(owner, hashes)
        while self._number > self._most:
            self.share /= 2
            kept, self._kept, self._number = self._kept, [], 0
            for one in kept:
                self._keep(*one)

    def hashes(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint64), *(hashes for _, hashes in self._kept)])

    def owners(self) -> np.ndarray:
        owners, sizes = [owner for owner, _ in self._kept], [len(hashes) for _, hashes in self._kept]
        return np.repeat(np.array(owners, np.int64), np.array(sizes, np.int64))

    def _keep(self, owner: int, hashes: np.ndarray) -> None:
        if len(hashes := below(hashes, self.share)):
            self._kept.append((owner, hashes))
            self._number += len(hashes)


class _One(NamedTuple):
    """Measures of one document; `place` decides whether it is in a sample."""

    name: str
    size: int
    split: int
    key: int = 0
    place: float = 1.0
    sketch: np.ndarray | None = None
    gzip_ratio: float | None = None
    language: str | None = None
    hashes: np.ndarray = np.zeros(0, np.uint64)


def _measured(document: Document, share: float, language_share: float, hash_share: float) -> _One:
    text = document.text.strip()
    data = text.encode("utf-8", "surrogatepass")
    split = split_point(document.identity)
    if not data:
        return _One(document.name, 0, split)
    key = split_point(text) if document.is_canonical else split
    drawn, hashes = draw(text, hash_share)
    place = _place(key if drawn is None else int(drawn[0]))
    ratio = None
    if place < share and len(data) >= MIN_COMPRESSED_BYTES:
        ratio = len(zlib.compress(data, _GZIP_LEVEL)) / len(data)
    language = language_of(_excerpts(text)) if place < language_share else None
    return _One(document.name, len(data), split, key, place, drawn, ratio, language, hashes)


def _place(number: int) -> float:
    return (number * 0x9E3779B97F4A7C15 % 2**64 >> 11) / 2**53


def _excerpts(text: str) -> str:
    """A text, or of a long one some evenly spaced parts of it."""
    if len(text) <= _EXCERPT * _NUM_EXCERPTS:
        return text
    begins = (number * (len(text) - _EXCERPT) // (_NUM_EXCERPTS - 1) for number in range(_NUM_EXCERPTS))
    return "".join(text[begin : begin + _EXCERPT] for begin in begins)


def _bar(total: int | None, shown: bool) -> Bar:
    return Bar(desc="Reading", total=total, unit="B", unit_scale=True, delay=_QUIET_SECONDS, disable=not shown)

"""Facts about a corpus: lengths, languages, duplicates, compressibility, and what the held-out split has in common with
the texts that are trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipwise.data.documents import PassedOver, numbers_of
from skipwise.data.survey.reading import Measured, Surveyed
from skipwise.data.survey.sketches import ALIKE, alike_pairs, groups, likeness

COMPRESSES_WELL, COMPRESSES_BADLY = 0.1, 0.6
"""Ratios of compression below which a text says almost nothing new, and above which it is hardly text."""

CONTAINED = 0.8
"""Held-out documents of whose sequences of ten words this share is in training documents are no test of a model."""

# Fewer word sequences say nothing.
_FEWEST_HASHES = 20
_QUANTILES = {"shortest": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "longest": 1.0}
_NAMED, _NAMED_IN_GROUP = 3, 2
# Held-out texts are compared with so many of the training texts of their group.
_MOST_COMPARED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AsLong:
    """Documents of at least a length.

    Attributes:
        tokens: the length.
        documents: number of documents.
        share_of_documents: of those with text.
        share_of_tokens: share of all tokens that is in them.
    """

    tokens: int
    documents: int
    share_of_documents: float
    share_of_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Some:
    """Some documents of the sample.

    Attributes:
        documents: number of documents.
        share_of_documents: of the sample.
        share_of_tokens: of the sample.
        groups: number of groups of which all but the first document are counted; 0 where there are no groups.
        examples: names; of the largest groups, the first names of each.
    """

    documents: int
    share_of_documents: float
    share_of_tokens: float
    groups: int = 0
    examples: list[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How far texts of at least `reading.MIN_COMPRESSED_BYTES` compress: compressed by uncompressed bytes.

    Attributes:
        documents: number of such texts in the sample.
        well: texts below `COMPRESSES_WELL`.
        badly: texts above `COMPRESSES_BADLY`.
        fifths: ratios below and above which a fifth of the texts each is; None without any.

    Source: Olmo 3 (arXiv 2512.13961) drops these two fifths of its long documents.
    """

    documents: int
    well: Some
    badly: Some
    fifths: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A held-out document, and the training document that is most like it."""

    held_out: str
    trained: str
    likeness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out documents.

    Attributes:
        documents: number of them with text.
        share_of_documents: of those with text.
        share_of_tokens: share of all tokens that is in them.
        sampled: number of them in the sample.
        leaks: those in the sample that are near-duplicates of training documents, the most alike first.
        contained: names of others in the sample of whose sequences of ten words `CONTAINED` are in training documents.
    """

    documents: int
    share_of_documents: float
    share_of_tokens: float
    sampled: int
    leaks: list[Leak]
    contained: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a corpus is made of.

    Attributes:
        documents: number of documents, empty ones included.
        empty: number of documents without text.
        empty_names: the first of them.
        num_bytes: bytes of text in UTF-8.
        tokens: number of tokens.
        is_estimate: whether tokens are estimated (see `reading.BYTES_PER_TOKEN`).
        is_whole: whether everything was read.
        lengths: quantiles of tokens by document, by name.
        as_long: documents as long as the window and the target.
        sampled: number of documents whose content was looked at; all with text if there are not too many.
        languages_sampled: number of documents whose language was looked at.
        languages: share of these documents' tokens by language, the largest first; None for none.
        copies: documents whose text an earlier one has.
        alike: documents that are near-duplicates of an earlier one, not counting copies.
        compression: how far texts compress.
        held_out: the held-out documents.
        conversations: number of documents that are conversations.
        share_of_labels: share of the conversations' tokens that are learned; None if they are not counted.
        unreadable: what could not be read, as `PassedOver.to_json`.
        unsupported: number of files of unsupported kinds, by suffix.
        unpackaged: number of files whose kind needs a package that is not installed, by suffix.
        encodings: number of files that were read as another encoding than UTF-8, by its name.
    """

    documents: int
    empty: int
    empty_names: list[str]
    num_bytes: int
    tokens: int
    is_estimate: bool
    is_whole: bool
    lengths: dict[str, int]
    as_long: list[AsLong]
    sampled: int
    languages_sampled: int
    languages: dict[str | None, float]
    copies: Some
    alike: Some
    compression: Compression
    held_out: HeldOut
    conversations: int
    share_of_labels: float | None
    unreadable: dict[str, Any]
    unsupported: dict[str, int]
    unpackaged: dict[str, int]
    encodings: dict[str, int]


def find_facts(
    found: Surveyed,
    tokens: np.ndarray,
    *,
    is_estimate: bool,
    lengths: Sequence[int],
    held_out_share: float,
    share_of_labels: float | None = None,
) -> Facts:
    """Puts together what is reported.

    Args:
        found: from `survey`.
        tokens: 1-D int64, tokens of each document.
        is_estimate: whether they are estimated.
        lengths: in tokens; for each, documents of at least that length are counted.
        held_out_share: share of documents that is held out.
        share_of_labels: as in `Facts`.
    """
    has_text = found.sizes > 0
    own = np.sort(tokens[has_text])
    sample = _Sampled(found.sample, tokens)
    is_held_out = (found.splits / 2.0**64 < held_out_share) & has_text
    copies, alike, leaks = _duplicates(sample, is_held_out)
    unreadable = PassedOver()
    for passed_over in found.unreadable:
        unreadable.update(passed_over.to_json())
    return Facts(
        documents=len(tokens),
        empty=int((~has_text).sum()),
        empty_names=found.empty,
        num_bytes=int(found.sizes.sum()),
        tokens=int(own.sum()),
        is_estimate=is_estimate,
        is_whole=found.is_whole,
        lengths={name: int(own[round(share * (len(own) - 1))]) for name, share in _QUANTILES.items() if len(own)},
        as_long=[_as_long(own, length) for length in lengths],
        sampled=len(sample.members),
        languages_sampled=len(found.languages),
        languages=_languages(found.languages, tokens),
        copies=copies,
        alike=alike,
        compression=_compression(sample),
        held_out=HeldOut(
            documents=int(is_held_out.sum()),
            share_of_documents=_share(is_held_out.sum(), has_text.sum()),
            share_of_tokens=_share(tokens[is_held_out].sum(), own.sum()),
            sampled=int(is_held_out[sample.numbers].sum()),
            leaks=leaks,
            contained=_contained(found, sample, is_held_out, {leak.held_out for leak in leaks}),
        ),
        conversations=sum(
            number for own, number in zip(found.sources, found.counts, strict=True) if own.are_conversations
        ),
        share_of_labels=share_of_labels,
        unreadable=unreadable.to_json(),
        unsupported=dict(_sum(own.kinds_passed_over - own.unpackaged for own in found.sources)),
        unpackaged=dict(_sum(own.unpackaged for own in found.sources)),
        encodings=dict(_sum(Counter(numbers_of(own.codecs)) for own in found.sources)),
    )


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter[str]())


class _Sampled:
    """The documents of the sample and their tokens."""

    def __init__(self, members: Sequence[Measured], tokens: np.ndarray) -> None:
        self.members = members
        self.numbers = np.array([member.number for member in members], np.int64)
        self.tokens = tokens[self.numbers]

    def some(self, chosen: np.ndarray, examples: list[list[str]], groups: int = 0) -> Some:
        """Members chosen by a 1-D bool mask."""
        return Some(
            documents=int(chosen.sum()),
            share_of_documents=_share(chosen.sum(), len(chosen)),
            share_of_tokens=_share(self.tokens[chosen].sum(), self.tokens.sum()),
            groups=groups,
            examples=examples,
        )

    def names(self, places: Sequence[int] | np.ndarray) -> list[str]:
        """Names of some members."""
        return [self.members[place].name for place in places]


def _duplicates(sample: _Sampled, is_held_out: np.ndarray) -> tuple[Some, Some, list[Leak]]:
    """Copies, near-duplicates that are no copies, and held-out documents that are like training documents."""
    size = len(sample.members)
    keys = np.array([member.key for member in sample.members], np.uint64)
    _, first, text = np.unique(keys, return_index=True, return_inverse=True)
    is_copy = np.ones(size, bool)
    is_copy[first] = False
    same = first[text]
    # One document of each text that has words.
    drawn = np.array([place for place in np.sort(first) if sample.members[place].sketch is not None], np.int64)
    sketches = np.zeros((size, 0), np.uint32)
    if len(drawn):
        sketches = np.stack([sample.members[place].sketch for place in drawn])  # type: ignore[misc]
    group = np.arange(size)
    group[drawn] = drawn[groups(alike_pairs(sketches), len(drawn))] if len(drawn) else drawn
    is_alike = ~is_copy & (group != np.arange(size))
    copies = sample.some(is_copy, _examples(sample, same), int((np.bincount(same, minlength=size) > 1).sum()))
    in_group = np.bincount(group[~is_copy], minlength=size)
    alike = sample.some(is_alike, _examples(sample, np.where(is_copy, -1, group)), int((in_group > 1).sum()))
    return copies, alike, _leaks(sample, group[same], is_held_out[sample.numbers])


def _examples(sample: _Sampled, group: np.ndarray) -> list[list[str]]:
    """The first names of the largest groups of several members; those of group -1 are in none."""
    largest = Counter(group[group >= 0].tolist()).most_common(_NAMED)
    return [sample.names(np.flatnonzero(group == one)[:_NAMED_IN_GROUP]) for one, number in largest if number > 1]


def _leaks(sample: _Sampled, group: np.ndarray, is_held_out: np.ndarray) -> list[Leak]:
    """Held-out members with a near-duplicate among the others."""
    leaks: list[Leak] = []
    order = np.argsort(group, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        trained = places[~is_held_out[places]][:_MOST_COMPARED]
        if not len(trained) or len(trained) == len(places):
            continue
        sketches = [sample.members[place].sketch for place in trained]
        for place in places[is_held_out[places]]:
            own = sample.members[place].sketch
            found = np.ones(1) if own is None else likeness(np.stack(sketches), own)  # type: ignore[arg-type]
            if found.max() >= ALIKE:
                names = sample.members[place].name, sample.members[trained[found.argmax()]].name
                leaks.append(Leak(held_out=names[0], trained=names[1], likeness=float(found.max())))
    return sorted(leaks, key=lambda leak: -leak.likeness)


def _contained(found: Surveyed, sample: _Sampled, is_held_out: np.ndarray, known: set[str]) -> list[str]:
    """Names of held-out members whose word sequences are nearly all in training documents; the known ones left out."""
    held = is_held_out[found.owners]
    owners, number = found.owners[held], len(is_held_out)
    is_trained = np.isin(found.hashes[held], found.hashes[~held])
    all_hashes, trained = np.bincount(owners, minlength=number), np.bincount(owners[is_trained], minlength=number)
    is_contained = (all_hashes >= _FEWEST_HASHES) & (trained >= CONTAINED * all_hashes)
    names = sample.names(np.flatnonzero(is_contained[sample.numbers]))
    return [name for name in names if name not in known]


def _compression(sample: _Sampled) -> Compression:
    ratios = np.array([np.nan if one.gzip_ratio is None else one.gzip_ratio for one in sample.members], float)
    known = np.sort(ratios[~np.isnan(ratios)])

    def some(chosen: np.ndarray, order: np.ndarray) -> Some:
        places = order[chosen[order]]
        return sample.some(chosen, [[name] for name in sample.names(places[:_NAMED])])

    rising = np.argsort(ratios)
    return Compression(
        documents=len(known),
        well=some(ratios < COMPRESSES_WELL, rising),
        badly=some(ratios > COMPRESSES_BADLY, rising[::-1]),
        fifths=(float(np.quantile(known, 0.2)), float(np.quantile(known, 0.8))) if len(known) else None,
    )


def _languages(found: dict[int, str | None], tokens: np.ndarray) -> dict[str | None, float]:
    counts: Counter[str | None] = Counter()
    for number, language in found.items():
        counts[language] += int(tokens[number])
    total = counts.total()
    return {language: number / total for language, number in counts.most_common()} if total else {}


def _as_long(tokens: np.ndarray, length: int) -> AsLong:
    chosen = tokens[tokens >= length]
    return AsLong(
        tokens=length,
        documents=len(chosen),
        share_of_documents=_share(len(chosen), len(tokens)),
        share_of_tokens=_share(chosen.sum(), tokens.sum()),
    )


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0

"""Near-duplicates among texts: MinHash sketches of word shingles, found by banding.

Two texts are as alike as the sets of their shingles: the share of shared ones among all (the Jaccard index). A shingle
is five words in a row; in scripts without spaces, such as Japanese or Thai, each character counts as a word. Case,
spaces and punctuation do not count.

A sketch has the first hash of a shingle behind each of 128 points on the circle of all hashes. Two sketches agree at a
point if the first shingle behind it, of those in either text, is in both: with a probability of the Jaccard index.

Sources: Broder, "On the resemblance and containment of documents" (1997); Shrivastava and Li, "Densifying one
permutation hashing via rotation" (2014), on one hash per shingle for all points; Leskovec, Rajaraman and Ullman,
"Mining of massive datasets", section 3.4, on banding.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

POINTS = 128
"""Entries of a sketch."""

ALIKE = 0.7
"""Near-duplicates share this much of their shingles."""

SHINGLE_WORDS = 5

# 25 bands of 5 entries: texts that share 0.7 of their shingles agree in a whole band with a probability of 0.99.
_BANDS, _ROWS = 25, 5
# Texts are read in pieces, so that memory does not depend on their length.
_PIECE = 1 << 18
# Scripts that put no spaces between words.
_UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Japanese syllables
    (0x3400, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_OTHER, _LETTER, _WORD = range(3)
_BASE = 0x9E3779B97F4A7C15
_EDGES = np.arange(POINTS, dtype=np.uint64) << np.uint64(64 - POINTS.bit_length() + 1)


class Drawn(NamedTuple):
    """What is kept of the word sequences of a text.

    Attributes:
        sketch: 1-D uint32, `POINTS` entries, the MinHash sketch; None if there is no word in the text.
        hashes: 1-D uint64, hashes of ten words in a row that are below a bound, each once. Five characters of Japanese
            or Chinese in a row often stand elsewhere too; ten hardly do.
    """

    sketch: np.ndarray | None
    hashes: np.ndarray


def draw(text: str, share: float = 0.0) -> Drawn:
    """Draws from the word sequences of a text of any length; `hashes` are below this share of all hashes."""
    nearest: np.ndarray | None = None
    kept = [np.zeros(0, np.uint64)]
    for hashes in _shingles(text):
        kept.append(below(_combined(np.stack([hashes[:-SHINGLE_WORDS], hashes[SHINGLE_WORDS:]], axis=1)), share))
        hashes.sort()
        distance = hashes[np.searchsorted(hashes, _EDGES) % len(hashes)] - _EDGES
        nearest = distance if nearest is None else np.minimum(nearest, distance)
    return Drawn(None if nearest is None else (nearest + _EDGES).astype(np.uint32), np.unique(np.concatenate(kept)))


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """The hashes below a share of all hashes."""
    return hashes[hashes <= np.uint64(min(int(share * 2**64), 2**64 - 1))]


def sketch(text: str) -> np.ndarray | None:
    """The MinHash sketch of a text alone."""
    return draw(text).sketch


def likeness(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimates of the Jaccard index: the share of equal entries, over the last axis of sketches."""
    return (one == other).mean(axis=-1)


class Pairs(NamedTuple):
    """Pairs of texts that are alike.

    Attributes:
        first: 1-D int64, number of one text of each pair.
        second: 1-D int64, number of the other, which is larger.
    """

    first: np.ndarray
    second: np.ndarray


def alike_pairs(sketches: np.ndarray, threshold: float = ALIKE) -> Pairs:
    """Finds near-duplicates. Of many texts that are all alike, each is in some pair, and not every pair is found.

    Args:
        sketches: 2-D uint32, one row per text.
        threshold: smallest likeness.
    """
    size = len(sketches)
    codes = [np.zeros(0, np.int64)]
    for band in range(_BANDS):
        keys = _combined(sketches[:, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64))
        order = np.argsort(keys, kind="stable")
        is_same = np.diff(keys[order]) == 0
        member = np.flatnonzero(is_same) + 1
        if not len(member):
            continue
        # The first text of each run of equal keys.
        head = np.maximum.accumulate(np.where(np.concatenate([[True], ~is_same]), np.arange(size), 0))
        later, before, first = order[member], order[member - 1], order[head[member]]
        codes += [np.minimum(later, one) * size + np.maximum(later, one) for one in (before, first)]
    first, second = np.divmod(np.unique(np.concatenate(codes)), size or 1)
    kept = np.zeros(len(first), bool)
    for begin in range(0, len(first), 1 << 14):
        some = slice(begin, begin + (1 << 14))
        kept[some] = likeness(sketches[first[some]], sketches[second[some]]) >= threshold
    return Pairs(first[kept], second[kept])


def groups(pairs: Pairs, size: int) -> np.ndarray:
    """Groups of texts that are connected by pairs.

    Args:
        pairs: numbers below `size`.
        size: number of texts.

    Returns:
        1-D int64: for each text the smallest number in its group.
    """
    parent = list(range(size))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for one, other in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(number) for number in range(size)], np.int64)


def _shingles(text: str) -> Iterator[np.ndarray]:
    """Hashes of the shingles of a text, 1-D uint64 arrays; of a text of fewer words, of all of them together."""
    kinds, powers, inverses = _tables()
    last = np.zeros(0, np.uint64)
    found = False
    for begin in range(0, len(text), _PIECE):
        piece = text[begin : begin + _PIECE].lower()[:_PIECE]
        letters = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
        kind = kinds[letters]
        is_start = kind > _OTHER
        is_start[1:] &= (kind[1:] == _WORD) | (kind[:-1] != _LETTER)
        is_end = kind > _OTHER
        is_end[:-1] &= (kind[1:] != _LETTER) | (kind[:-1] == _WORD)
        starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end) + 1
        if not len(starts):
            continue
        sums = np.zeros(len(letters) + 1, np.uint64)
        np.cumsum(letters * powers[: len(letters)], out=sums[1:])
        words = np.concatenate([last, _mixed((sums[ends] - sums[starts]) * inverses[starts])])
        if len(words) >= SHINGLE_WORDS:
            found = True
            number = len(words) - SHINGLE_WORDS + 1
            yield _combined(np.stack([words[i : i + number] for i in range(SHINGLE_WORDS)], axis=1))
        last = words[1 - SHINGLE_WORDS :]
    if len(last) and not found:
        yield _combined(last[None])


def _combined(parts: np.ndarray) -> np.ndarray:
    """A hash of each row, 1-D uint64, that depends on the order of its entries."""
    total = np.zeros(len(parts), np.uint64)
    for column in parts.T:
        total = total * np.uint64(_BASE) + column
    return _mixed(total)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3: spreads values over all numbers of 64 bits, one to one."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kind of each code point; powers of the base of word hashes modulo 2**64, and their inverses."""
    is_letter = (unicodedata.category(chr(code))[0] in "LMN" for code in range(0x110000))
    kinds = np.fromiter(is_letter, np.uint8, 0x110000)
    for first, last in _UNSPACED:
        kinds[first : last + 1] *= _WORD
    return kinds, _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))


def _powers(base: int) -> np.ndarray:
    factors = np.full(_PIECE, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)

"""Long texts: token ids in pieces, so that memory does not grow with the text.

An engine holds over a hundred bytes for each character of a text while it works on it. So a long text is cut, where the
ids of the two sides together are those of the whole. A cut is tried on some text around it, and holds where
1. what stands before it has the same ids whether or not the text goes on behind it, and
2. the piece before it, which begins much earlier, ends in the same ids.
So the last token before a cut and the first behind it are neighbours in text that goes on to both sides. For byte-pair
encoding that is a proof: merges cross a place only if they would in those two tokens alone. What comes before a model
(normalizer, pre-tokenizer) looks at runs of letters, digits or spaces, so cuts are first tried between a word and a
space, where all of these end. Each piece is read with some text before it, so that it begins as amid a text.
"""

import logging
import re
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

logger = logging.getLogger("skipwise")

PIECE = 1 << 18
"""Characters of a piece."""

_CONTEXT = 1 << 11
_NEAR = 1 << 12
# So many ids before a cut must be the same for all who read them.
_AGREEING = 16
_TRIES = 4
_ANYWHERE_TRIES = 32

_BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")
_BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")
_BEFORE_MARK = re.compile(r"(?<=\w)(?=[^\w\s])")
_ANYWHERE = re.compile(r"(?s)(?=.)")

Encode = Callable[[str], list[int]]


class _Cut(NamedTuple):
    """A place between two pieces.

    Attributes:
        place: characters before it.
        start: where the text begins that the next piece is read with.
        ids: token ids of what is between.
    """

    place: int
    start: int
    ids: list[int]


def encode_in_pieces(
    text: str,
    encode: Encode,
    *,
    anywhere: bool,
    note: Callable[[int], None] = lambda characters: None,
    size: int = PIECE,
    context: int = _CONTEXT,
) -> "array[int]":
    """Token ids of a text, of 32 bits each: those that `encode` gives for the whole.

    Args:
        text: however long.
        encode: token ids of a text, without any around it.
        anywhere: whether cuts may be where there is no white space.
        note: is told how many characters have been done since it was told last.
        size: characters of a piece.
        context: characters to both sides that a cut is tried on.
    """
    done: list[tuple[_Cut, array[int]]] = []
    at, wanted = _Cut(0, 0, []), size
    while True:
        is_last = len(text) - at.place <= wanted + wanted // 2
        found = None if is_last else _piece(text, at, wanted, encode, anywhere, context)
        if found is None and not is_last:
            wanted *= 2
            continue
        after, ids = found or (_Cut(len(text), 0, []), encode(text[at.start :]))
        if ids[: len(at.ids)] != at.ids:
            # Text further on changes what is before the cut, so it was none: back to the one before, and beyond it.
            failed, (at, _) = at, done.pop()
            note(at.place - failed.place)
            wanted = 2 * (failed.place - at.place) + size
            continue
        if after.place - at.place > 4 * size:
            logger.warning(
                f"{after.place - at.place:,} characters of a text are tokenized at once, which takes some 130 bytes of "
                "memory for each, as there is no place among them that could be cut at"
            )
        done.append((at, array("I", ids[len(at.ids) :])))
        note(after.place - at.place)
        if is_last:
            return array("I", b"".join(piece.tobytes() for _, piece in done))
        at, wanted = after, size


def _piece(
    text: str, at: _Cut, wanted: int, encode: Encode, anywhere: bool, context: int
) -> tuple[_Cut, list[int]] | None:
    """The next cut after about so many characters, and the ids of what is before it; None where there is no cut."""
    tries = _TRIES
    for place in _places(text, at.place, at.place + wanted, anywhere):
        start = max(place - context, 0)
        before = encode(text[start:place])
        if not before or encode(text[start : place + context])[: len(before)] != before:
            continue
        ids = encode(text[at.start : place])
        agreeing = min(_AGREEING, max(1, len(before) - 1))
        if ids[-agreeing:] == before[-agreeing:]:
            return _Cut(place, start, before), ids
        tries -= 1
        if not tries:
            break
    return None


def _places(text: str, begin: int, end: int, anywhere: bool) -> Iterator[int]:
    """Places to cut at, the likeliest first."""
    half = end - (end - begin) // 2
    near = max(half, end - _NEAR)
    for first in (near, half):
        yield from _last(_BETWEEN_WORDS, text, first, end)
        yield from _last(_BEFORE_SPACE, text, first, end)
    if anywhere:
        yield from _last(_BEFORE_MARK, text, near, end)
        # Bytes of neighbouring letters may be in one token: few places may be between two of them.
        yield from _last(_ANYWHERE, text, near, end, _ANYWHERE_TRIES)


def _last(pattern: re.Pattern[str], text: str, begin: int, end: int, most: int = _TRIES) -> list[int]:
    """The last few places of a pattern, from the last on."""
    places = [found.start() for found in pattern.finditer(text, begin, end)]
    return places[: -most - 1 : -1]

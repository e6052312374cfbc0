"""Long texts: tokenizing in pieces, so that memory does not grow with the text.

An engine needs over a hundred bytes of memory per character of its input. A long text is therefore cut where the ids of
the two sides, concatenated, are the ids of the whole. A cut is tested on some context around it. It is accepted if
1. the context before it has the same ids whether or not the text continues after the cut, and
2. the piece before it, which begins much earlier, ends in the same ids.
Then the last token before the cut and the first after it are also neighbours when the text continues on both sides. For
byte-pair encoding this is a proof: merges cross a place only if they would within those two tokens alone. Normalizers
and pre-tokenizers work on runs of letters, digits or spaces, so cuts between a word and a space, where all such runs
end, are tried first. Each piece is tokenized with some text before it, so that its beginning is not the beginning of an
input.
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
# Number of ids before a cut that must agree.
_AGREEING = 16
_TRIES = 4
_ANYWHERE_TRIES = 32

_BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")
_BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")
_BEFORE_MARK = re.compile(r"(?<=\w)(?=[^\w\s])")
_ANYWHERE = re.compile(r"(?s)(?=.)")

Encode = Callable[[str], list[int]]


class _Cut(NamedTuple):
    """A cut between two pieces.

    Attributes:
        place: number of characters before it.
        start: where the context before it begins, with which the next piece is tokenized.
        ids: token ids of this context.
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
    """Token ids of a text, 32 bits each; the same as `encode(text)`.

    Args:
        text: of any length.
        encode: returns the token ids of a text, without special tokens around it.
        anywhere: allows cuts where there is no white space.
        note: called with the number of characters done since the last call; negative when a cut is undone.
        size: characters of a piece.
        context: characters on each side on which a cut is tested.
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
            # Later text changes the ids before the cut. Undo it: return to the previous cut and take a longer piece.
            failed, (at, _) = at, done.pop()
            note(at.place - failed.place)
            wanted = 2 * (failed.place - at.place) + size
            continue
        if after.place - at.place > 4 * size:
            logger.warning(
                f"{after.place - at.place:,} characters of a text are tokenized at once, at about 130 bytes of "
                "memory each, because the text has no place to cut"
            )
        done.append((at, array("I", ids[len(at.ids) :])))
        note(after.place - at.place)
        if is_last:
            return array("I", b"".join(piece.tobytes() for _, piece in done))
        at, wanted = after, size


def _piece(
    text: str, at: _Cut, wanted: int, encode: Encode, anywhere: bool, context: int
) -> tuple[_Cut, list[int]] | None:
    """The next cut after about `wanted` characters, and the ids of the piece before it; None if no cut is found."""
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
    """Candidate cuts, the most promising first."""
    half = end - (end - begin) // 2
    near = max(half, end - _NEAR)
    for first in (near, half):
        yield from _last(_BETWEEN_WORDS, text, first, end)
        yield from _last(_BEFORE_SPACE, text, first, end)
    if anywhere:
        yield from _last(_BEFORE_MARK, text, near, end)
        # A token may hold bytes of neighbouring characters, so that few places are between two tokens: try more.
        yield from _last(_ANYWHERE, text, near, end, _ANYWHERE_TRIES)


def _last(pattern: re.Pattern[str], text: str, begin: int, end: int, most: int = _TRIES) -> list[int]:
    """The last `most` matches of a pattern, the last one first."""
    places = [found.start() for found in pattern.finditer(text, begin, end)]
    return places[: -most - 1 : -1]

"""Which tokens end a sentence, also where a tokenizer writes a sentence's mark in several tokens.

A byte-level tokenizer that has seen little Japanese or Chinese writes `。` as two or three tokens, none of which ends a
sentence by itself. So each token has a code:

    0       it ends no sentence
    1       its text ends with a mark
    2, ...  it ends with the beginning of a mark, or is a later piece of one: a place in `PIECES`, counted from 2
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_MARKS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")  # the last three are full-width
_WIDE_MARKS = [mark.encode() for mark in _MARKS if len(mark.encode()) > 1]
_SPLITS = [
    [mark[begin:end] for begin, end in pairwise((0, *cuts, len(mark)))]
    for mark in _WIDE_MARKS
    for cuts in ((1,), (2,), (1, 2))
]
PIECES = sorted({piece for split in _SPLITS for piece in split}, key=lambda piece: (len(piece), piece))
_BEGINNINGS = sorted({split[0] for split in _SPLITS}, key=len, reverse=True)
_SEQUENCES = [[PIECES.index(piece) + 2 for piece in split] for split in _SPLITS]

# How byte-level tokenizers spell bytes: those that can be printed as themselves, the others as characters from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}


def sentence_end_code(token: str, text: str) -> int:
    """The code of a token.

    Args:
        token: as it stands in the vocabulary.
        text: what it decodes to, with U+FFFD for bytes of a character that is not whole.
    """
    if text.endswith(_MARKS):
        return 1
    if not text.endswith("\ufffd"):
        return 0
    spelled = _bytes_of(token)
    if spelled in PIECES:
        return PIECES.index(spelled) + 2
    begun = next((piece for piece in _BEGINNINGS if spelled.endswith(piece)), None)
    return 0 if begun is None else PIECES.index(begun) + 2


def _bytes_of(token: str) -> bytes:
    """The bytes of a token of a byte-level tokenizer, or of one with tokens such as `<0xE3>`; empty for others."""
    if len(token) == 6 and token.startswith("<0x"):
        return bytes.fromhex(token[3:5])
    return bytes(_BYTES[letter] for letter in token) if all(letter in _BYTES for letter in token) else b""


def ends_of_sentences(codes: np.ndarray) -> np.ndarray:
    """Which tokens of a text end a sentence, bool (n,).

    Args:
        codes: of each token of the text, (n,).
    """
    ends = codes == 1
    if (codes > 1).any():
        for sequence in _SEQUENCES:
            ends[len(sequence) - 1 :] |= _found(codes, sequence)
    return ends


def _found(codes: np.ndarray, sequence: Sequence[int]) -> np.ndarray:
    """Where a sequence of codes begins, (n - len(sequence) + 1,)."""
    places = max(0, len(codes) - len(sequence) + 1)
    return np.logical_and.reduce([codes[i : i + places] == code for i, code in enumerate(sequence)])

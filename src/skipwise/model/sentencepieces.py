"""Fast tokenizers made of SentencePiece's `tokenizer.model`, without that library and without code of the folder.

The file is a protocol buffer (`sentencepiece_model.proto`); what it says is put in terms of the tokenizers library.
SentencePiece's BPE joins the neighbours whose joined piece has the best score, so merges in the order of those scores
give the same ids. Pieces that its maker gave whole, such as `<reserved_106>`, become added tokens, as transformers has
them: a text is cut there first. (So of a model that puts a space before a text, a text that begins with such a piece
has none; and of one that joins spaces, those beside such a piece are lost.)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from skipwise.errors import CheckpointError, UnsupportedModelError

_MARK = "\u2581"  # Stands for a space.
_NORMAL, _UNKNOWN, _CONTROL, _GIVEN = 1, 2, 3, 4
_BPE = 2
_KINDS = {1: "Unigram", 2: "BPE", 3: "words", 4: "characters"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What a `tokenizer.model` says.

    Attributes:
        pieces: text, score and kind of each, in the order of their ids.
        byte_fallback: characters without a piece become bytes, not the unknown piece.
        rules: how texts are rewritten first, as SentencePiece compiles it.
        prefix: a space is put before a text.
        joins_spaces: of several spaces one is left, and none at the ends.
        marks_spaces: spaces become marks.
    """

    pieces: list[tuple[str, float, int]]
    byte_fallback: bool
    rules: bytes
    prefix: bool
    joins_spaces: bool
    marks_spaces: bool


def read_pieces(file: str | Path) -> Pieces:
    """Reads a `tokenizer.model`.

    Args:
        file: of SentencePiece.

    Raises:
        CheckpointError: it is none.
        UnsupportedModelError: its pieces are not those of BPE.
    """
    try:
        model = list(_fields(Path(file).read_bytes()))
        pieces = [_piece(value) for number, value in model if number == 1]
        trainer, normalizer = (
            dict(field for number, part in model if number == wanted for field in _fields(part)) for wanted in (2, 3)
        )
        if not pieces:
            raise ValueError("it has no pieces")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{str(file)!r} is no model of SentencePiece ({error}); get it again, whole") from error
    kind = trainer.get(3, 1)
    if kind != _BPE:
        raise UnsupportedModelError(
            f"{str(file)!r} is of SentencePiece's kind {_KINDS.get(kind, kind)}, and a fast tokenizer is made of BPE "
            "alone here: put a tokenizer.json beside it"
        )
    return Pieces(
        pieces=pieces,
        byte_fallback=bool(trainer.get(35, 0)),
        rules=normalizer.get(2, b""),
        prefix=bool(normalizer.get(3, 1)),
        joins_spaces=bool(normalizer.get(4, 1)),
        marks_spaces=bool(normalizer.get(5, 1)),
    )


def fast_tokenizer(read: Pieces) -> Tokenizer:
    """A tokenizer of the tokenizers library that gives the same ids.

    Args:
        read: of a `tokenizer.model`.
    """
    unknown = next((text for text, _, kind in read.pieces if kind == _UNKNOWN), None)
    engine = Tokenizer(
        models.BPE(
            vocab={text: index for index, (text, _, _) in enumerate(read.pieces)},
            merges=_merges(read.pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=read.byte_fallback,
        )
    )
    spaces: list[Any] = [normalizers.Precompiled(read.rules)] if read.rules else []
    if read.joins_spaces:
        spaces += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        # Where spaces were taken away, the steps below would not know a text's beginning.
        spaces += [normalizers.Prepend(" ")] if read.prefix else []
    if read.marks_spaces:
        spaces.append(normalizers.Replace(" ", _MARK))
    engine.normalizer = normalizers.Sequence(spaces)
    restored = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if read.prefix and not read.joins_spaces:
        # The first puts a space before a text that begins with none, as no text does by now; the second marks it. One
        # step alone would leave out the prefix of a text that begins with a mark.
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="never", split=False),
            ]
        )
    if read.prefix:
        restored.append(decoders.Strip(content=" ", left=1))
    engine.decoder = decoders.Sequence(restored)
    engine.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind == _CONTROL)
            for text, _, kind in read.pieces
            if kind in (_CONTROL, _GIVEN)
        ]
    )
    return engine


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the best first."""
    ids = {text: index for index, (text, _, kind) in enumerate(pieces) if kind == _NORMAL}
    found = []
    for text, index in ids.items():
        score = pieces[index][1]
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    return [(pieces[left][0], pieces[right][0]) for _, left, right in sorted(found)]


def _piece(data: bytes) -> tuple[str, float, int]:
    told = dict(_fields(data))
    return told[1].decode(), struct.unpack("<f", told.get(2, bytes(4)))[0], told.get(3, _NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: a whole number, or the bytes of anything else."""
    place = 0
    while place < len(data):
        key, place = _whole(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _whole(data, place)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, place = _whole(data, place)
        if size is None or place + size > len(data):
            raise ValueError(f"byte {place} is no part of such a file")
        yield number, data[place : place + size]
        place += size


def _whole(data: bytes, place: int) -> tuple[int, int]:
    """A whole number in seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place

"""Fast tokenizers built from SentencePiece's `tokenizer.model`, without that library and without code from the folder.

The file is a protocol buffer (`sentencepiece_model.proto`). Its content is translated for the tokenizers library.
SentencePiece's BPE merges the neighbours whose merged piece has the best score, so merges sorted by score give the same
ids. User-defined pieces, such as `<reserved_106>`, become added tokens, as in transformers: the text is split at them
first. This has two effects. If the model adds a prefix space, a text that begins with such a piece does not get one. If
the model collapses spaces, spaces next to such a piece are lost.
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
    """The content of a `tokenizer.model`.

    Attributes:
        pieces: text, score and kind of each piece, in the order of ids.
        byte_fallback: whether characters without a piece become bytes instead of the unknown piece.
        rules: normalisation rules, in SentencePiece's compiled form.
        prefix: whether a space is added before the text.
        joins_spaces: whether runs of spaces collapse to one, and leading and trailing spaces are removed.
        marks_spaces: whether spaces are replaced by the mark U+2581.
    """

    pieces: list[tuple[str, float, int]]
    byte_fallback: bool
    rules: bytes
    prefix: bool
    joins_spaces: bool
    marks_spaces: bool


def read_pieces(file: str | Path) -> Pieces:
    """Reads a `tokenizer.model`.

    Raises:
        CheckpointError: the file cannot be read, or is not a SentencePiece model.
        UnsupportedModelError: the model is not a BPE model.
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
        raise CheckpointError(f"{str(file)!r} is not a SentencePiece model ({error}); download it again") from error
    kind = trainer.get(3, 1)
    if kind != _BPE:
        raise UnsupportedModelError(
            f"{str(file)!r} is a SentencePiece model of kind {_KINDS.get(kind, kind)}; only BPE can be converted to a "
            "fast tokenizer: put a tokenizer.json beside it",
            page="unsuitable-tokenizer",
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
    """Builds a tokenizer of the tokenizers library that gives the same ids.

    Args:
        read: content of a `tokenizer.model`.
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
        # Once leading spaces are removed, the pre-tokenizer below cannot recognise the beginning of the text.
        spaces += [normalizers.Prepend(" ")] if read.prefix else []
    if read.marks_spaces:
        spaces.append(normalizers.Replace(" ", _MARK))
    engine.normalizer = normalizers.Sequence(spaces)
    restored = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if read.prefix and not read.joins_spaces:
        # Spaces are marks by now, so no text begins with a space. The first step therefore always adds the prefix
        # space, and the second replaces it by a mark. A single step would skip the prefix if the text begins with a
        # mark.
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
    """Pairs of pieces that merge into another piece, sorted by score, best first."""
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
    fields = dict(_fields(data))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, _NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value of each protocol buffer field: an integer for a varint, else raw bytes."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, offset = _varint(data, offset)
        if size is None or offset + size > len(data):
            raise ValueError(f"unexpected data at byte {offset}")
        yield number, data[offset : offset + size]
        offset += size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Decodes a varint (7 bits per byte, lowest first). Returns its value and the offset after it."""
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset

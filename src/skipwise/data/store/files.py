"""Token files: all documents of a source as token ids, memory-mapped, so that all processes share them.

One folder of flat files, so that a hundred million documents need no Python object each:

    meta.json          format, dtype and counts, and the size and checksums of every other file; written last
    tokens.bin         1-D uint16 or uint32, the token ids of all documents, concatenated; of conversations with flags
                       (see `data.turns`)
    offsets.bin        1-D int64, (num_documents + 1,): document i is tokens[offsets[i] : offsets[i + 1]]
    splits.bin         1-D uint64, `documents.split_point` of each document, which decides its split
    digests.bin        2-D uint8, (num_documents, 16): BLAKE2b of each document's token ids
    origins.bin        2-D int64, (num_documents, 2): index into the file names below, and the line (0: the whole file)
    files.bin          UTF-8, the file names, concatenated
    file_offsets.bin   1-D int64, where each file name starts
    sentence_ends.bin  1-D uint8, one entry per token id: `tokens.sentence_end_code`, 1 if the token ends a sentence

All integers are little-endian, as on every machine that trains.
"""

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from skipwise.data.turns import LABEL
from skipwise.errors import DataError

FORMAT = 3

BLOCK_BYTES = 1 << 24
# Blocks verified at every start; takes a few tenths of a second.
_VERIFIED_BLOCKS = 16
DIGEST_BYTES = 16
# Labels are counted in so many blocks of so many tokens.
_COUNTED_BLOCKS, _COUNTED_TOKENS = 64, 1 << 20
# Documents whose lengths are processed together.
_BLOCK_DOCUMENTS = 1 << 18


class TokenFiles:
    """All documents of a source as token ids, opened read-only through the page cache.

    Args:
        folder: folder of complete files.

    Attributes:
        folder: folder of the files.
        num_documents: number of documents, empty ones included.
        tokens: 1-D, the token ids of all documents.
        offsets: 1-D int64, (num_documents + 1,), where each document starts.
        splits: 1-D uint64, `documents.split_point` of each document.
        digests: 2-D uint8, (num_documents, 16), hash of each document's token ids.
        origins: 2-D int64, (num_documents, 2), the file of each document, and the line in it.
        file_names: 1-D uint8, UTF-8 of the file names, concatenated.
        file_offsets: 1-D int64, where each name starts.
        sentence_ends: 1-D uint8, one entry per token id: `tokens.sentence_end_code`.
        separator_id: token to put between joined documents; None if the tokenizer has none.
        has_turns: whether the documents are conversations, whose token ids carry flags; joined without a separator.
        tokenizer_fingerprint: hash of the tokenizer.
        dtype: of the token ids.
        passed_over: what was unreadable and skipped, as `PassedOver.to_json`.

    Raises:
        DataError: the folder holds no complete files of this format. This checks sizes, not content (see `verify`).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in meta["bytes"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.folder} is not a complete token store; build it again", page="changed-files"
            ) from None
        if meta["format"] != FORMAT or sizes != meta["bytes"]:
            raise self._damaged()
        self._checksums: dict[str, list[int]] = meta["checksums"]
        self.num_documents: int = meta["documents"]
        self.separator_id: int | None = meta["separator_id"]
        self.has_turns: bool = meta.get("turns", False)
        self.tokenizer_fingerprint: str = meta["tokenizer"]
        self.dtype = np.dtype(meta["dtype"])
        self.passed_over: dict[str, Any] = meta.get("passed_over", {})
        self.tokens = self._map("tokens", self.dtype)
        self.offsets = self._map("offsets", "int64")
        self.splits = self._map("splits", "uint64")
        self.digests = self._map("digests", "uint8").reshape(-1, DIGEST_BYTES)
        self.origins = self._map("origins", "int64").reshape(-1, 2)
        self.file_names = self._map("files", "uint8")
        self.file_offsets = self._map("file_offsets", "int64")
        self.sentence_ends = self._map("sentence_ends", "uint8")

    def document(self, number: int) -> np.ndarray:
        """Token ids of one document, 1-D; a read-only view of the file."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    @cached_property
    def label_share(self) -> float:
        """Share of the tokens that are labels, in up to 64 evenly spaced blocks; 1 for texts."""
        if not self.has_turns or not len(self.tokens):
            return 1.0
        begins = range(0, len(self.tokens), _COUNTED_TOKENS)
        begins = begins[:: -(-len(begins) // _COUNTED_BLOCKS)]
        blocks = [self.tokens[begin : begin + _COUNTED_TOKENS] for begin in begins]
        return sum(int((block & LABEL > 0).sum()) for block in blocks) / sum(map(len, blocks))

    def name(self, number: int) -> str:
        """Name of one document."""
        file, line = self.origins[number]
        name = self.file_names[self.file_offsets[file] : self.file_offsets[file + 1]].tobytes().decode()
        return f"{name}:{line}" if line else name

    def read(self, name: str, begin: int, end: int) -> np.ndarray:
        """A copy of entries `begin` to `end - 1` of an array; unlike a slice, it leaves no mapped pages resident.

        Args:
            name: attribute name of the array.
            begin: the first entry.
            end: one past the last entry.
        """
        array: np.ndarray = getattr(self, name)
        entry = int(np.prod(array.shape[1:]))
        path, offset = self.folder / f"{name}.bin", begin * entry * array.itemsize
        return np.fromfile(path, array.dtype, (end - begin) * entry, offset=offset).reshape(-1, *array.shape[1:])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of documents, small enough that arrays over them take little memory."""
        for begin in range(0, self.num_documents, _BLOCK_DOCUMENTS):
            yield begin, min(begin + _BLOCK_DOCUMENTS, self.num_documents)

    def verify(self, *, whole: bool = False) -> None:
        """Compares the files with their checksums: all of them up to 256 MiB, else 16 random blocks of 16 MiB.

        Above 256 MiB this detects widespread damage; it detects a single damaged block only by chance.

        Args:
            whole: compares everything, whatever its size.

        Raises:
            DataError: a file has changed since it was written.
        """
        blocks = [(name, number) for name, sums in self._checksums.items() for number in range(len(sums))]
        size = sum((self.folder / name).stat().st_size for name in self._checksums)
        if size > _VERIFIED_BLOCKS * BLOCK_BYTES and not whole:
            blocks = random.sample(blocks, _VERIFIED_BLOCKS)
        for name, number in blocks:
            with (self.folder / name).open("rb") as file:
                file.seek(number * BLOCK_BYTES)
                if zlib.crc32(file.read(BLOCK_BYTES)) != self._checksums[name][number]:
                    raise self._damaged()

    def _map(self, name: str, dtype: Any) -> np.ndarray:
        path = self.folder / f"{name}.bin"
        if not path.stat().st_size:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        # A plain view of the map: slices of np.memmap objects cost microseconds each.
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def _damaged(self) -> DataError:
        return DataError(
            f"{self.folder} is a damaged token store or one of another version; build it again", page="changed-files"
        )


class Lengths(Protocol):
    """Lengths and splits of documents: what a view needs of `TokenFiles`, whose members mean the same."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def num_documents(self) -> int: ...  # noqa: D102
    @property
    def has_turns(self) -> bool: ...  # noqa: D102
    def blocks(self) -> Iterator[tuple[int, int]]: ...  # noqa: D102
    def read(self, name: str, begin: int, end: int) -> np.ndarray: ...  # noqa: D102


class Names(Sequence[str]):
    """Names of some documents, read from disk on access.

    Args:
        files: token files of the documents.
        size: number of names.
        number: maps an index to the document's number in the files.
    """

    def __init__(self, files: TokenFiles, size: int, number: Callable[[int], int]) -> None:
        self._files, self._range, self._number = files, range(size), number

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> Any:
        found = self._range[index]
        if isinstance(found, range):
            return [self._files.name(self._number(one)) for one in found]
        return self._files.name(self._number(found))

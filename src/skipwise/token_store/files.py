"""Token files: all documents of a source as tokens, memory-mapped, so that all processes share them.

They are one folder of flat files, so that a hundred million documents cost no Python object each:

    meta.json          what they are, and the size and checksums of every other file; written last
    tokens.bin         1-D uint16 or uint32, the token ids of all documents one after another
    offsets.bin        1-D int64, (num_documents + 1,): document i is tokens[offsets[i] : offsets[i + 1]]
    splits.bin         1-D uint64, which part a document is in, as `documents.split_point` has it
    digests.bin        2-D uint8, (num_documents, 16): BLAKE2b of each document's token ids
    origins.bin        2-D int64, (num_documents, 2): which file name below, and the line in it (0: the whole file)
    files.bin          UTF-8, the file names one after another
    file_offsets.bin   1-D int64, where each of them starts
    sentence_ends.bin  1-D bool, one entry per token id: whether the token ends a sentence

All integers are little-endian, as on every machine that trains.
"""

import hashlib
import json
import os
import random
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.errors import DataError

FORMAT = 3

_BLOCK_BYTES = 1 << 24
# How much is compared with its checksums at every start: a few tenths of a second.
_VERIFIED_BLOCKS = 16
_DIGEST_BYTES = 16


class TokenFiles:
    """All documents of a source as tokens, opened read-only through the page cache.

    Args:
        folder: folder of complete files.

    Attributes:
        folder: where they lie.
        num_documents: documents, those without any token among them.
        offsets: 1-D int64, (num_documents + 1,), where each document starts.
        splits: 1-D uint64, which part each is in.
        digests: 2-D uint8, (num_documents, 16), hash of the token ids of each.
        sentence_ends: 1-D bool, one entry per token id: whether its text ends a sentence.
        separator_id: token to put between joined documents, None where the tokenizer has none.
        tokenizer_fingerprint: hash of the tokenizer.
        dtype: of the token ids.

    Raises:
        DataError: the folder holds no complete files of this format: their sizes are checked, their content is not
            (see `verify`).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in meta["bytes"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{self.folder} is not a complete token store; build it again") from None
        if meta["format"] != FORMAT or sizes != meta["bytes"]:
            raise self._damaged()
        self._checksums: dict[str, list[int]] = meta["checksums"]
        self.num_documents: int = meta["documents"]
        self.separator_id: int | None = meta["separator_id"]
        self.tokenizer_fingerprint: str = meta["tokenizer"]
        self.dtype = np.dtype(meta["dtype"])
        self._tokens = self._map("tokens", self.dtype)
        self.offsets = self._map("offsets", "int64")
        self.splits = self._map("splits", "uint64")
        self.digests = self._map("digests", "uint8").reshape(-1, _DIGEST_BYTES)
        self._origins = self._map("origins", "int64").reshape(-1, 2)
        self._names = self._map("files", "uint8")
        self._name_offsets = self._map("file_offsets", "int64")
        self.sentence_ends = self._map("sentence_ends", "bool")

    def document(self, number: int) -> np.ndarray:
        """Token ids of one document, 1-D, a read-only view of the file."""
        return self._tokens[self.offsets[number] : self.offsets[number + 1]]

    def name(self, number: int) -> str:
        """Name of one document."""
        file, line = self._origins[number]
        name = self._names[self._name_offsets[file] : self._name_offsets[file + 1]].tobytes().decode()
        return f"{name}:{line}" if line else name

    def verify(self) -> None:
        """Compares what lies on disk with its checksums: all of it up to 256 MiB, else 16 random blocks of 16 MiB.

        Of larger files a start notices a damage that is everywhere, and one in a single place by chance alone.

        Raises:
            DataError: something has changed since it was written.
        """
        blocks = [(name, number) for name, sums in self._checksums.items() for number in range(len(sums))]
        if sum((self.folder / name).stat().st_size for name in self._checksums) > _VERIFIED_BLOCKS * _BLOCK_BYTES:
            blocks = random.sample(blocks, _VERIFIED_BLOCKS)
        for name, number in blocks:
            with (self.folder / name).open("rb") as file:
                file.seek(number * _BLOCK_BYTES)
                if zlib.crc32(file.read(_BLOCK_BYTES)) != self._checksums[name][number]:
                    raise self._damaged()

    def _map(self, name: str, dtype: Any) -> np.ndarray:
        path = self.folder / f"{name}.bin"
        if not path.stat().st_size:  # nothing cannot be mapped
            return np.zeros(0, dtype)
        # A plain view of the map: slices of np.memmap objects cost microseconds each.
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def _damaged(self) -> DataError:
        return DataError(f"{self.folder} is a damaged token store or one of another version; build it again")


class StoreWriter:
    """Writes token files document by document, holding nothing back but the last few.

    Args:
        folder: an empty folder.
        dtype: of the token ids.

    Use as a context manager; the files are complete only after `finish`.
    """

    _FLUSHED_DOCUMENTS = 4096

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.documents = self.tokens = 0
        self._folder, self._dtype = folder, dtype
        self._waiting = {
            "offsets": array("q", [0]),
            "splits": array("Q"),
            "origins": array("q"),
            "file_offsets": array("q", [0]),
        }
        self._num_files, self._last_file = 0, ""

    def __enter__(self) -> "StoreWriter":
        with ExitStack() as stack:
            names = ("tokens", "digests", "files", "sentence_ends", *self._waiting)
            self._out = {name: stack.enter_context(_Output(self._folder / f"{name}.bin")) for name in names}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, name: str, ids: np.ndarray, split_point: int) -> None:
        """Appends one document.

        Args:
            name: `file` or `file:line`.
            ids: 1-D, its token ids, of the store's dtype; none for a document without text.
            split_point: which part it is in, as `documents.split_point` has it.
        """
        file, line = _split_name(name)
        if file != self._last_file or not self._num_files:
            self._last_file = file
            self._out["files"].write(file.encode())
            self._waiting["file_offsets"].append(self._out["files"].size)
            self._num_files += 1
        self._out["tokens"].write(ids.data)
        self._out["digests"].write(hashlib.blake2b(ids.data, digest_size=_DIGEST_BYTES).digest())
        self.documents += 1
        self.tokens += len(ids)
        self._waiting["offsets"].append(self.tokens)
        self._waiting["splits"].append(split_point)
        self._waiting["origins"].extend((self._num_files - 1, line))
        if len(self._waiting["offsets"]) >= self._FLUSHED_DOCUMENTS:
            self._flush()

    def finish(self, *, separator_id: int | None, sentence_ends: np.ndarray, tokenizer_fingerprint: str) -> None:
        """Writes all that is left, the record last; when it returns, everything is on the disk."""
        self._flush()
        self._out["sentence_ends"].write(sentence_ends.astype(bool).data)
        for out in self._out.values():
            out.finish()
        meta = {
            "format": FORMAT,
            "tokenizer": tokenizer_fingerprint,
            "dtype": str(self._dtype),
            "separator_id": separator_id,
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": {f"{name}.bin": out.size for name, out in self._out.items()},
            "checksums": {f"{name}.bin": out.checksums for name, out in self._out.items()},
        }
        with _Output(self._folder / "meta.json") as record:
            record.write((json.dumps(meta) + "\n").encode())
            record.finish()
        sync_folder(self._folder)

    def _flush(self) -> None:
        for name, values in self._waiting.items():
            self._out[name].write(values)
            del values[:]


class _Output:
    """A file that is written from begin to end, with a CRC-32 of every block.

    Attributes:
        size: bytes written.
        checksums: one per block of 16 MiB, the last one of what is left; complete after `finish`.
    """

    def __init__(self, path: Path) -> None:
        self.size, self.checksums, self._checksum = 0, list[int](), 0
        self._file = path.open("wb")

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: "bytes | memoryview | array[int]") -> None:
        """Appends the bytes of a buffer."""
        view = memoryview(data)
        if not view.nbytes:  # nothing cannot be cast
            return
        for stretch in self._within_blocks(view.cast("B")):
            self._checksum = zlib.crc32(stretch, self._checksum)
            self.size += self._file.write(stretch)
            if self.size % _BLOCK_BYTES == 0:
                self.checksums.append(self._checksum)
                self._checksum = 0

    def finish(self) -> None:
        """Returns when all is on the disk."""
        if self.size % _BLOCK_BYTES:
            self.checksums.append(self._checksum)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _within_blocks(self, view: memoryview) -> Iterator[memoryview]:
        while view:
            room = _BLOCK_BYTES - self.size % _BLOCK_BYTES
            yield view[:room]
            view = view[room:]


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk; a system without such a call keeps them by itself."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Names(Sequence[str]):
    """Names of some documents, read from disk one by one as they are asked for.

    Args:
        files: where the documents are.
        numbers: 1-D, which of them.
    """

    def __init__(self, files: TokenFiles, numbers: np.ndarray) -> None:
        self._files, self._numbers = files, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._files.name(number) for number in self._numbers[index].tolist()]
        return self._files.name(int(self._numbers[index]))


def _split_name(name: str) -> tuple[str, int]:
    """`file:line` as (file, line), any other name as (name, 0); the two put together again give the name back."""
    file, _, line = name.rpartition(":")
    if line.isascii() and line.isdecimal() and not line.startswith("0") and len(line) < 19:
        return file, int(line)
    return name, 0

"""Token store: tokenized documents in memory-mapped files that all processes share through the page cache.

A store is one folder of flat files, so that a hundred million documents cost no Python object each:

    meta.json          what it is and the size of every other file; written last
    tokens.bin         1-D uint16 or uint32, the token ids of all documents one after another
    offsets.bin        1-D int64, (num_documents + 1,): document i is tokens[offsets[i] : offsets[i + 1]]
    origins.bin        2-D int64, (num_documents, 2): which file name below, and the line in it (0: the whole file)
    files.bin          UTF-8, the file names one after another
    file_offsets.bin   1-D int64, where each of them starts
    sentence_ends.bin  1-D bool, one entry per token id: whether the token ends a sentence

All integers are little-endian, as on every machine that trains. meta.json records the size of each file, so a store
that was cut short anywhere is known for what it is.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.errors import DataError

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the documents read; `seen == kept + dropped_short + dropped_empty + other_part`.

    Attributes:
        seen: documents read.
        kept: documents whose text is in the store.
        documents: documents in the store; fewer than `kept` where short ones were joined.
        dropped_short: shorter than the minimum, or left over from joining.
        dropped_empty: without any text.
        other_part: held out when training documents were asked for, or the other way round.
        tokens: tokens in the store.
        files_passed_over: files of kinds that skipwise does not read.
    """

    seen: int
    kept: int
    documents: int
    dropped_short: int
    dropped_empty: int
    other_part: int
    tokens: int
    files_passed_over: int


class TokenStore:
    """Tokenized documents on disk, opened read-only through the page cache.

    Opening costs the same for any size; a store sent to another process is opened there again rather than copied.

    Args:
        folder: folder of a complete store.

    Attributes:
        folder: where it lies.
        fingerprint: hash of the tokenizer and of every token and document boundary; the same wherever it was built.
        counts: what became of the documents read.
        min_tokens: length that every document was required to have.
        shortest_tokens: length of the shortest document.
        longest_tokens: length of the longest document.
        separator_id: token between joined documents, None when short documents were not joined.
        sentence_ends: 1-D bool, one entry per token id: whether its text ends a sentence.

    Raises:
        DataError: when the folder holds no complete store of this format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in meta["bytes"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{self.folder} is not a complete token store; build it again") from None
        if meta["format"] != FORMAT or sizes != meta["bytes"]:
            raise DataError(f"{self.folder} is a damaged token store or one of another version; build it again")
        self.fingerprint: str = meta["fingerprint"]
        self.counts = Counts(**meta["counts"])
        self.min_tokens: int = meta["min_tokens"]
        self.shortest_tokens: int = meta["shortest_tokens"]
        self.longest_tokens: int = meta["longest_tokens"]
        self.separator_id: int | None = meta["separator_id"]
        self._tokens = self._map("tokens.bin", meta["dtype"])
        self._offsets = self._map("offsets.bin", "int64")
        self._origins = self._map("origins.bin", "int64").reshape(-1, 2)
        self._files = self._map("files.bin", "uint8")
        self._file_offsets = self._map("file_offsets.bin", "int64")
        self.sentence_ends = self._map("sentence_ends.bin", "bool")

    @property
    def num_documents(self) -> int:
        """Documents in the store."""
        return self.counts.documents

    @property
    def names(self) -> Sequence[str]:
        """The documents' names, read from disk one by one as they are asked for."""
        return _Names(self._files, self._file_offsets, self._origins)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document.

        Args:
            index: which document, 0 to `num_documents - 1`.

        Returns:
            1-D, uint16 or uint32, read-only, a view of the file.
        """
        if not 0 <= index < self.counts.documents:
            raise IndexError(f"document {index} of a store with {self.counts.documents}")
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    def _map(self, name: str, dtype: str) -> np.ndarray:
        # A plain view of the map: slices of np.memmap objects cost microseconds each.
        return np.memmap(self.folder / name, dtype=dtype, mode="r").view(np.ndarray)

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.folder,)


class _Names(Sequence[str]):
    """Document names put together from file names and lines."""

    def __init__(self, files: np.ndarray, file_offsets: np.ndarray, origins: np.ndarray) -> None:
        self._files, self._file_offsets, self._origins = files, file_offsets, origins

    def __len__(self) -> int:
        return len(self._origins)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file, line = self._origins[index]
        name = self._files[self._file_offsets[file] : self._file_offsets[file + 1]].tobytes().decode()
        return f"{name}:{line}" if line else name


class StoreWriter:
    """Writes a store document by document, holding nothing back but the last few.

    Args:
        folder: an empty folder.
        dtype: of the token ids.

    Use as a context manager; the store is complete only after `finish`.
    """

    _FLUSHED_DOCUMENTS = 4096

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.documents = self.tokens = self.longest_tokens = 0
        self.shortest_tokens: int | None = None
        self._folder, self._dtype = folder, dtype
        self._sha = hashlib.sha256()
        self._offsets, self._origins, self._file_offsets = array("q", [0]), array("q"), array("q", [0])
        self._num_files, self._file_bytes, self._last_file = 0, 0, ""

    def __enter__(self) -> "StoreWriter":
        with ExitStack() as stack:
            names = ("tokens", "offsets", "origins", "files", "file_offsets")
            self._out = {name: stack.enter_context((self._folder / f"{name}.bin").open("wb")) for name in names}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, name: str, ids: np.ndarray) -> None:
        """Appends one document.

        Args:
            name: `file` or `file:line`.
            ids: 1-D, its token ids, of the store's dtype.
        """
        file, line = _split_name(name)
        if file != self._last_file or not self._num_files:
            self._last_file = file
            self._file_bytes += self._out["files"].write(file.encode())
            self._file_offsets.append(self._file_bytes)
            self._num_files += 1
        self._out["tokens"].write(ids.data)
        self._sha.update(ids.data)
        self.documents += 1
        self.tokens += len(ids)
        self.longest_tokens = max(self.longest_tokens, len(ids))
        self.shortest_tokens = min(self.shortest_tokens or len(ids), len(ids))
        self._offsets.append(self.tokens)
        self._origins.extend((self._num_files - 1, line))
        if len(self._offsets) >= self._FLUSHED_DOCUMENTS:
            self._flush()

    def finish(
        self,
        *,
        counts: Counts,
        min_tokens: int,
        separator_id: int | None,
        sentence_ends: np.ndarray,
        tokenizer_fingerprint: str,
    ) -> None:
        """Writes all that is left, the record last, and makes sure that it is on the disk."""
        self._flush()
        ends = self._stack.enter_context((self._folder / "sentence_ends.bin").open("wb"))
        ends.write(sentence_ends.astype(bool).data)
        sizes = {}
        for file in [*self._out.values(), ends]:
            file.flush()
            os.fsync(file.fileno())
            sizes[Path(file.name).name] = os.fstat(file.fileno()).st_size
        content = [FORMAT, tokenizer_fingerprint, str(self._dtype), separator_id, self._sha.hexdigest()]
        meta = {
            "format": FORMAT,
            "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "tokenizer": tokenizer_fingerprint,
            "dtype": str(self._dtype),
            "min_tokens": min_tokens,
            "shortest_tokens": self.shortest_tokens,
            "longest_tokens": self.longest_tokens,
            "separator_id": separator_id,
            "counts": asdict(counts),
            "bytes": sizes,
        }
        (self._folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        self._sha.update(self._offsets)
        for name, values in (
            ("offsets", self._offsets),
            ("origins", self._origins),
            ("file_offsets", self._file_offsets),
        ):
            values.tofile(self._out[name])
            del values[:]


def _split_name(name: str) -> tuple[str, int]:
    """`file:line` as (file, line), any other name as (name, 0); the two put together again give the name back."""
    file, _, line = name.rpartition(":")
    if line.isascii() and line.isdecimal() and not line.startswith("0") and len(line) < 19:
        return file, int(line)
    return name, 0

"""Writing token files: document by document, or by appending other token files."""

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.data.documents import PassedOver
from skipwise.data.store.files import BLOCK_BYTES, DIGEST_BYTES, FORMAT, TokenFiles
from skipwise.files import replace_file

_BLOCK_DOCUMENTS = 1 << 20


class StoreWriter:
    """Writes token files document by document, with a small buffer.

    Use as a context manager; the files are complete only after `finish`.

    Args:
        folder: an empty folder, or the folder that `state` belongs to.
        dtype: of the token ids.
        state: result of `state()`, to resume from there; later data in the files is truncated.
    """

    _FLUSHED_DOCUMENTS = 4096

    def __init__(self, folder: Path, dtype: np.dtype, state: dict[str, Any] | None = None) -> None:
        state = state or {"documents": 0, "tokens": 0, "num_files": 0, "last_file": "", "outputs": {}}
        self.documents: int = state["documents"]
        self.tokens: int = state["tokens"]
        self._num_files: int = state["num_files"]
        self._last_file: str = state["last_file"]
        self._folder, self._dtype, self._written = folder, dtype, state["outputs"]
        self._passed_over = PassedOver()
        self._passed_over.update(state.get("passed_over", {}))
        begin = [] if self._written else [0]
        self._waiting = {
            "offsets": array("q", begin),
            "splits": array("Q"),
            "origins": array("q"),
            "file_offsets": array("q", begin),
        }

    def __enter__(self) -> "StoreWriter":
        with ExitStack() as stack:
            self._out = {
                name: stack.enter_context(_Output(self._folder / f"{name}.bin", *self._written.get(name, ())))
                for name in ("tokens", "digests", "files", "sentence_ends", *self._waiting)
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, name: str, ids: np.ndarray, split_point: int) -> None:
        """Appends one document.

        Args:
            name: `file` or `file:line`.
            ids: 1-D, its token ids, of the store's dtype; empty for a document without text.
            split_point: `documents.split_point` of the document, which decides its split.
        """
        file, line = _split_name(name)
        if file != self._last_file or not self._num_files:
            self._last_file = file
            self._out["files"].write(file.encode())
            self._waiting["file_offsets"].append(self._out["files"].size)
            self._num_files += 1
        self._out["tokens"].write(ids.data)
        self._out["digests"].write(hashlib.blake2b(ids.data, digest_size=DIGEST_BYTES).digest())
        self.documents += 1
        self.tokens += len(ids)
        self._waiting["offsets"].append(self.tokens)
        self._waiting["splits"].append(split_point)
        self._waiting["origins"].extend((self._num_files - 1, line))
        if len(self._waiting["offsets"]) >= self._FLUSHED_DOCUMENTS:
            self._flush()

    def pass_over(self, left_out: PassedOver | None) -> None:
        """Records what was unreadable and skipped."""
        if left_out is not None:
            self._passed_over.update(left_out.to_json())

    def append(self, part: TokenFiles) -> None:
        """Appends all documents of complete token files. Writes the same bytes as adding each document."""
        self._flush()
        self._passed_over.update(part.passed_over)
        starts = part.file_offsets
        num_files = len(starts) - 1
        names = [part.file_names[starts[i] : starts[i + 1]].tobytes().decode() for i in (0, num_files - 1) if num_files]
        # A file name shared by the last document so far and the first of the part is written once.
        known = int(self._num_files > 0 and names[:1] == [self._last_file])
        self._out["file_offsets"].write((starts[1 + known :] + (self._out["files"].size - starts[known])).data)
        self._out["files"].write(part.file_names[starts[known] :].data)
        for begin in range(0, part.num_documents, _BLOCK_DOCUMENTS):
            block = slice(begin, min(begin + _BLOCK_DOCUMENTS, part.num_documents))
            self._out["offsets"].write((part.offsets[1:][block] + self.tokens).data)
            self._out["origins"].write((part.origins[block] + [self._num_files - known, 0]).data)
        self._out["splits"].write(part.splits.data)
        self._out["digests"].write(part.digests.data)
        self._out["tokens"].write(part.tokens.data)
        self.documents += part.num_documents
        self.tokens += len(part.tokens)
        self._num_files += num_files - known
        self._last_file = names[-1] if names else self._last_file

    def state(self) -> dict[str, Any]:
        """Plain JSON values from which another writer resumes. Everything up to here is on disk afterwards."""
        self._flush()
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "num_files": self._num_files,
            "last_file": self._last_file,
            "passed_over": self._passed_over.to_json(),
            "outputs": {name: out.state() for name, out in self._out.items()},
        }

    @staticmethod
    def can_go_on(folder: Path, state: dict[str, Any]) -> bool:
        """Whether the files in a folder are at least as long as `state` says."""
        files = {folder / f"{name}.bin": size for name, (size, *_) in state["outputs"].items()}
        return all(file.exists() and file.stat().st_size >= size for file, size in files.items())

    def finish(
        self,
        *,
        separator_id: int | None,
        sentence_ends: np.ndarray,
        tokenizer_fingerprint: str,
        has_turns: bool = False,
    ) -> None:
        """Writes the rest of the files, `meta.json` last. Everything is on disk when it returns."""
        self._flush()
        self._out["sentence_ends"].write(sentence_ends.astype(np.uint8).data)
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
        if has_turns:
            meta["turns"] = True
        if self._passed_over:
            meta["passed_over"] = self._passed_over.to_json()
        replace_file(self._folder / "meta.json", json.dumps(meta) + "\n")

    def _flush(self) -> None:
        for name, values in self._waiting.items():
            self._out[name].write(values)
            del values[:]


class _Output:
    """A file that is written sequentially, with a CRC-32 of every block.

    Args:
        path: the file.
        size: bytes to keep; the rest is truncated.
        checksums: of the complete blocks among these bytes.
        checksum: of the incomplete last block.

    Attributes:
        size: bytes written.
        checksums: one per block of 16 MiB; `finish` adds that of an incomplete last block.
    """

    def __init__(self, path: Path, size: int = 0, checksums: Sequence[int] = (), checksum: int = 0) -> None:
        self.size, self.checksums, self._checksum = size, list(checksums), checksum
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: "bytes | memoryview | array[int]") -> None:
        """Appends the bytes of a buffer."""
        view = memoryview(data)
        if not view.nbytes:  # an empty view may not be cast
            return
        for stretch in self._within_blocks(view.cast("B")):
            self._checksum = zlib.crc32(stretch, self._checksum)
            self.size += self._file.write(stretch)
            if self.size % BLOCK_BYTES == 0:
                self.checksums.append(self._checksum)
                self._checksum = 0

    def state(self) -> list[Any]:
        """Size, checksums and checksum for the constructor. Everything up to here is on disk afterwards."""
        self._to_disk()
        return [self.size, [*self.checksums], self._checksum]

    def finish(self) -> None:
        """Completes the checksums, and returns when everything is on disk."""
        if self.size % BLOCK_BYTES:
            self.checksums.append(self._checksum)
        self._to_disk()

    def _to_disk(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _within_blocks(self, view: memoryview) -> Iterator[memoryview]:
        while view:
            room = BLOCK_BYTES - self.size % BLOCK_BYTES
            yield view[:room]
            view = view[room:]


def _split_name(name: str) -> tuple[str, int]:
    """`file:line` as (file, line), any other name as (name, 0). Lossless: the name can be rebuilt from the result."""
    file, _, line = name.rpartition(":")
    if line.isascii() and line.isdecimal() and not line.startswith("0") and len(line) < 19:
        return file, int(line)
    return name, 0

"""Sources of documents: local files, and data sets of the Hugging Face hub."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from skipwise.data.conversations import is_conversation
from skipwise.data.documents.document import Document
from skipwise.data.documents.finding import DocumentFile, printable
from skipwise.data.documents.passed_over import PassedOver
from skipwise.data.formats import (
    ALLOWED,
    Encoding,
    UnreadableError,
    checker_of,
    first_record,
    holds_records,
    is_read_whole,
    reader_of,
    text_of,
    version_of,
)
from skipwise.errors import DataError

# To notice changed documents, sources up to this size are hashed as a whole, larger ones in samples.
_HASHED_BYTES = 256 << 20
_SAMPLED_BYTES = 64 << 10

SOURCES = f"give a file ({ALLOWED}), a folder or glob of such files, a hub data set (owner/name[:split]), or stdlib"


@dataclass(slots=True, kw_only=True)
class LocalFiles:
    """Files on this machine.

    Attributes:
        files: in reading order.
        passed_over: number of files beside them of unsupported kinds, by suffix.
        unpackaged: number of files beside them whose kind needs a package that is not installed, by suffix.
        faults: folders and files beside them that cannot be accessed.
        is_canonical: whether the names are the same on every machine.
        codecs: by name, the codec of each file that is not UTF-8, as far as `look` or `documents` have read.
    """

    files: list[DocumentFile]
    passed_over: Counter[str] = field(default_factory=Counter)
    unpackaged: Counter[str] = field(default_factory=Counter)
    faults: list[UnreadableError] = field(default_factory=list)
    is_canonical: bool = False
    codecs: dict[str, str] = field(default_factory=dict)
    _is_looked_at: bool = False
    _finished_bytes: int = 0
    _open: BinaryIO | None = None
    _is_small: bool | None = None
    _sampled_bytes: int = 0

    def empty_files(self) -> list[str]:
        """Names of the files of zero bytes; none for canonical files, where they are expected."""
        return [] if self.is_canonical else [file.name for file in self.files if not _size(file.path)]

    def size_bytes(self) -> int:
        """Bytes of all files on disk, compressed files as they are."""
        return sum(_size(file.path) for file in self.files)

    def read_bytes(self) -> int:
        """Bytes read so far, compressed files as they are on disk."""
        return self._finished_bytes + (self._open.tell() if self._open and not self._open.closed else 0)

    def identity(self) -> list[Any]:
        """Name, size and hash of every file, so that equal content has equal identity wherever it is stored.

        Above 256 MiB the hash covers only the first and last 64 KiB of each file (less for very many files), and the
        file's path and modification time are added. A change in the middle of a file then shows only in that time.
        Of a file that is not UTF-8 the encoding is added that `look` has found, and of converted documents and tables
        the version of their reader.
        """
        self._choose_samples()
        return [self.is_canonical, *(self._entry(file) for file in self.files)]

    def look(self, field: str, passed_over: PassedOver) -> list[Any]:
        """Returns `identity`, and checks the bytes read for it.

        These are all bytes of a source that is hashed as a whole. Of a larger source they are the beginning of each
        file, the schema of Parquet files, and all of documents such as PDF files, whose beginning tells nothing.
        """
        self._is_looked_at = True
        for fault in self.faults:
            passed_over.add(fault)
        self._choose_samples()
        return [self.is_canonical, *(self._entry(file, field, passed_over) for file in self.files)]

    @staticmethod
    def sizes_of(identity: list[Any]) -> list[int]:
        """Bytes of each file at the time of `identity`."""
        return [size for _, size, *_ in identity[1:]]

    def part(self, begin: int, end: int) -> "LocalFiles":
        """Files `begin` to `end - 1`, with the same entries in their `identity` as in that of all files."""
        self._choose_samples()
        return LocalFiles(
            files=self.files[begin:end],
            is_canonical=self.is_canonical,
            codecs=self.codecs,
            _is_looked_at=self._is_looked_at,
            _is_small=self._is_small,
            _sampled_bytes=self._sampled_bytes,
        )

    def _choose_samples(self) -> None:
        if self._is_small is None:
            self._is_small = self.size_bytes() <= _HASHED_BYTES
            at_most = _HASHED_BYTES // (2 * max(1, len(self.files)))
            self._sampled_bytes = _HASHED_BYTES if self._is_small else min(_SAMPLED_BYTES, at_most)

    def _entry(self, file: DocumentFile, field: str = "", passed_over: PassedOver | None = None) -> list[Any]:
        """The entry of a file in `identity`; with `passed_over`, the bytes read for it are checked."""
        try:
            handle = _opened(file.path)
        except UnreadableError as error:
            if passed_over is not None:
                passed_over.add(error)
            return [file.name, 0, None]
        with handle:
            status = os.fstat(handle.fileno())
            begin = handle.read(self._sampled_bytes)
            digest = hashlib.blake2b(begin, digest_size=16)
            if status.st_size > self._sampled_bytes:
                handle.seek(max(self._sampled_bytes, status.st_size - self._sampled_bytes))
                digest.update(handle.read(self._sampled_bytes))
            if passed_over is not None:
                encoding = Encoding()
                for fault in _faults_in(file, handle, begin, field, encoding, cut=len(begin) < status.st_size):
                    passed_over.add(fault)
                self._note(file, encoding)
        place = [] if self._is_small else [str(file.path.resolve()), status.st_mtime_ns]
        how = [*version_of(file.path), *([f"as {self.codecs[file.name]}"] if file.name in self.codecs else [])]
        return [file.name, status.st_size, digest.hexdigest(), *place, *how]

    def _note(self, file: DocumentFile, encoding: Encoding) -> None:
        if encoding.codec not in (None, "utf-8"):
            self.codecs[file.name] = encoding.codec

    def first_records(self) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        """Yields the name and the first record of each file; None for a file of one text. Leaves out empty files."""
        for file in self.files:
            if not holds_records(file.path):
                yield file.name, None
            elif (record := first_record(file.path)) is not None:
                yield file.name, record

    def documents(self, field: str, passed_over: PassedOver | None = None) -> Iterator[Document]:
        """Yields the documents lazily, file by file, always in the same order.

        Args:
            field: entry that holds the text, in files that have such.
            passed_over: is told what cannot be read, which is left out then; None to raise an error instead.
        """
        self._finished_bytes = 0
        for fault in self.faults:
            _pass_over(fault, passed_over)
        for file in self.files:
            reader = reader_of(file.path)
            assert reader is not None, file  # find_sources returns only files with a reader
            try:
                _check_kind(file, field)
                self._open = _opened(file.path)
            except UnreadableError as error:
                _pass_over(error, passed_over)
                continue
            with self._open as handle:
                # What was looked at is read as it is in the key of the token files.
                decided = self.codecs.get(file.name, "utf-8") if self._is_looked_at else None
                encoding = Encoding(decided)
                for line, text in reader(handle, printable(file.path), field, encoding=encoding):
                    if isinstance(text, UnreadableError):
                        _pass_over(text, passed_over)
                        continue
                    name = f"{file.name}:{line}" if line else file.name
                    yield Document(name=name, text=text, is_canonical=self.is_canonical)
                self._note(file, encoding)
            self._open = None
            self._finished_bytes += _size(file.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A data set of the Hugging Face hub, streamed: only the rows that are read are downloaded.

    Attributes:
        name: `owner/name`, or just `name` for the oldest data sets.
        config: name of the configuration; None for the default.
        split: name of the split.
    """

    name: str
    config: str | None
    split: str

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Always empty."""
        return {}

    @property
    def unpackaged(self) -> Mapping[str, int]:
        """Always empty."""
        return {}

    @property
    def codecs(self) -> Mapping[str, str]:
        """Always empty."""
        return {}

    @property
    def faults(self) -> Sequence[UnreadableError]:
        """Always empty: nothing is known before reading."""
        return ()

    def size_bytes(self) -> None:
        """None: unknown before reading."""

    def read_bytes(self) -> int:
        """0: unknown."""
        return 0

    def identity(self) -> list[Any]:
        """Name, configuration, split, and the current commit of the main revision."""
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.name).sha
        except Exception as error:
            raise DataError(_unreachable(self.name, error), page="not-found") from None
        return [self.name, self.config, self.split, commit]

    def look(self, field: str, passed_over: PassedOver) -> list[Any]:
        """Returns `identity`, and checks the first row, which is quick to download."""
        identity = self.identity()
        try:
            next(self.documents(field), None)
        except UnreadableError as error:
            passed_over.add(error)
        return identity

    @property
    def _label(self) -> str:
        return ":".join(part for part in (self.name, self.config, self.split) if part)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        import datasets

        return iter(datasets.load_dataset(self.name, self.config, split=self.split, streaming=True))

    def first_records(self) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        """Yields the name and the first row; nothing if it cannot be read, which `look` reports."""
        try:
            yield self._label, next(self._rows())
        except Exception:
            return

    def documents(self, field: str, passed_over: PassedOver | None = None) -> Iterator[Document]:
        """Yields the rows of the split; arguments as for `LocalFiles`."""
        label, number = self._label, 0
        try:
            for number, row in enumerate(self._rows(), start=1):
                try:
                    text = text_of(row, field, f"{label}:{number}")
                except UnreadableError as error:
                    _pass_over(error, passed_over)
                    continue
                yield Document(name=f"{label}:{number}", text=text)
        except DataError:
            raise
        except Exception as error:
            # The network may break at any row.
            if not number:
                raise DataError(_unreachable(label, error), page="not-found") from None
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"hub data set {label!r} breaks off after row {number} ({reason}); start again, or download it first"
            ) from None


Source = LocalFiles | HubDataset
"""What documents are read from. Both tell what was passed over, an `identity`, and what a `look` finds."""


def _pass_over(fault: UnreadableError, passed_over: PassedOver | None) -> None:
    if passed_over is None:
        raise fault
    passed_over.add(fault)


def _faults_in(
    file: DocumentFile, handle: BinaryIO, begin: bytes, field: str, encoding: Encoding, *, cut: bool
) -> Iterator[UnreadableError]:
    """What is unreadable in a file.

    Args:
        file: its path and name.
        handle: the open file.
        begin: its first bytes.
        field: name of the text field.
        encoding: is told what it is read as.
        cut: whether the file goes on after `begin`.
    """
    checker = checker_of(file.path)
    assert checker is not None, file
    try:
        _check_kind(file, field)
    except UnreadableError as error:
        yield error
        return
    handle.seek(0)
    content = handle if cut and is_read_whole(file.path) else io.BytesIO(begin)
    if not begin and not holds_records(file.path):
        return  # an empty text, which is reported separately
    for _, found in checker(content, printable(file.path), field, cut, encoding):
        if isinstance(found, UnreadableError):
            yield found


def _check_kind(file: DocumentFile, field: str) -> None:
    """Refuses a file that is one text where conversations are read."""
    if is_conversation(field) and not holds_records(file.path):
        cure = "leave it out, or read texts (data.format=text)"
        raise UnreadableError("conversation", printable(file.path), "is a text and holds no conversations", cure)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableError(
            "closed",
            printable(path),
            f"cannot be opened ({error.strerror})",
            "fix its permissions or leave it out",
        ) from None


def _size(path: Path) -> int:
    """Bytes on disk; 0 if the file is gone, since opening it will raise the error."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _unreachable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"no documents at {name!r}: no such file, and as a hub data set it cannot be read ({reason}); {SOURCES}"

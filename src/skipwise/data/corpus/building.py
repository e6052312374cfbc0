"""Building: one or more processes, on any machines that share the cache folder, build one token store.

    <key>/                 the complete store
    <key>.lock             held while building a store of one part, or while joining the parts of a store
    <key>.partial/         a store that is being written
    <key>.parts/           for a source of several parts, until the store is complete:
        <part>/            a tokenized part, itself a complete token store
        <part>.lock        held while tokenizing the part
        <part>.partial/    the part while it is being tokenized
        joined.json        the parts already in <key>.partial/; a part is deleted only after it is listed here

The operating system releases the lock of a process that dies, and another process takes over its work. Lock files are
deleted only with their folder, when the store is complete. Folders named `.parts` or `.partial` may be deleted when no
build uses them or will resume them.
"""

import contextlib
import errno
import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from skipwise.bars import Bar
from skipwise.data.documents import Document, LocalFiles, PassedOver, Source
from skipwise.data.store import FORMAT, StoreWriter, TokenFiles
from skipwise.data.tokens import Encoder, Piece, tokenized
from skipwise.errors import DataError
from skipwise.files import replace_file, to_disk

# Large enough that the overhead of a part is negligible, small enough that a dead process loses only minutes of work.
_PART_BYTES = 256 << 20
_MOST_PARTS = 1024
_PAUSE_SECONDS = 0.2
_GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusPart:
    """Consecutive documents that one process tokenizes.

    Attributes:
        name: hash of everything that their token ids depend on, so that builds of other sources can reuse the part.
        sources: the sources to read.
        identity: identities of these sources when the build began.
        size_bytes: size on disk; None if unknown.
    """

    name: str
    sources: list[Source]
    identity: list[Any]
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """How documents become token files.

    Attributes:
        encoder: the tokenizer.
        field: name of the text field, in formats that have fields.
        skip_unreadable: whether unreadable files and records are skipped, and counted.
        workers: number of threads.
    """

    encoder: Encoder
    field: str
    skip_unreadable: bool
    workers: int

    @cached_property
    def closing(self) -> dict[str, Any]:
        """Arguments of `StoreWriter.finish`."""
        return {
            "separator_id": self.encoder.separator_id,
            "sentence_ends": self.encoder.sentence_ends(),
            "tokenizer_fingerprint": self.encoder.fingerprint,
            "has_turns": self.encoder.has_turns,
        }


def divided(
    sources: Sequence[Source], identities: Sequence[list[Any]], encoder: Encoder, field: str
) -> list[CorpusPart]:
    """Cuts sources between files into parts of at least 256 MiB, at most about a thousand.

    Args:
        sources: in reading order; a hub data set is a part by itself.
        identities: of each source. They alone decide, so all processes cut alike.
        encoder: the tokenizer.
        field: as in `Tokenization`.
    """
    sizes = [
        LocalFiles.sizes_of(identity) if isinstance(found, LocalFiles) else None
        for found, identity in zip(sources, identities, strict=True)
    ]
    total = sum(sum(known) for known in sizes if known)
    enough = max(_PART_BYTES, -(-total // _MOST_PARTS))
    parts: list[CorpusPart] = []
    group: list[Source] = []
    identity: list[Any] = []
    group_bytes = 0

    def close(size_bytes: int | None) -> None:
        nonlocal group, identity, group_bytes
        if group:
            depends_on = json.dumps([FORMAT, field, encoder.fingerprint, identity])
            name = hashlib.sha256(depends_on.encode()).hexdigest()[:32]
            parts.append(CorpusPart(name=name, sources=group, identity=identity, size_bytes=size_bytes))
        group, identity, group_bytes = [], [], 0

    for found, known, whole in zip(sources, sizes, identities, strict=True):
        if not isinstance(found, LocalFiles) or known is None:
            close(group_bytes)
            group, identity = [found], [whole]
            close(None)
            continue
        begin = 0
        for end, size in enumerate(known, start=1):
            group_bytes += size
            if group_bytes >= enough or end == len(known):
                group.append(found.part(begin, end))
                identity.append([whole[0], *whole[1 + begin : 1 + end]])
                begin = end
            if group_bytes >= enough:
                close(group_bytes)
    close(group_bytes)
    return parts


def build(folder: Path, parts: Sequence[CorpusPart], how: Tokenization, *, progress: bool) -> None:
    """Builds a store, together with any other processes that do; returns when it is complete.

    Args:
        folder: folder of the store; its parent must exist.
        parts: all parts of the store.
        how: how they are tokenized.
        progress: shows a progress bar.

    Raises:
        DataError: a document cannot be read, or documents change meanwhile. Finished parts are kept.
        OSError: a file cannot be written.
    """
    with _Progress(parts, progress) as bar:
        if len(parts) > 1:
            _SharedBuild(folder, parts, how, bar).run()
            return
        with FileLock(_lock_of(folder)):
            if not is_sound(folder):  # another process may have built it while this one waited
                _tokenize(folder, parts[0], how, bar)


def is_sound(folder: Path, *, whole: bool = False) -> bool:
    """Whether a folder holds complete token files that match their checksums (see `TokenFiles.verify`)."""
    try:
        TokenFiles(folder).verify(whole=whole)
    except (DataError, OSError):  # another process that found damage may be removing them
        return False
    return True


class _Progress:
    """A progress bar over all processes: finished parts of all, and the unfinished part of this one.

    It counts bytes on disk if they are known, else documents.
    """

    def __init__(self, parts: Sequence[CorpusPart], shown: bool) -> None:
        self._parts = parts
        sizes = [part.size_bytes for part in parts]
        known = [size for size in sizes if size is not None]
        self._total = sum(known) if len(known) == len(sizes) else None
        self._shown = shown
        self._bar: Bar | None = None
        self._finished_bytes = self._finished = self._documents = self._tokens = 0
        # Characters read of the current part, and of the parts before it.
        self._characters = self._before = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def missing(self, parts: Collection[CorpusPart]) -> None:
        """Updates the bar with the parts that no process has finished yet."""
        self._finished = len(self._parts) - len(parts)
        self._finished_bytes = (self._total or 0) - sum(part.size_bytes or 0 for part in parts)
        self._show(self._finished_bytes if self._total else self._documents)

    def read(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Passes documents through, and counts their characters."""
        for document in documents:
            if not document.text.isspace():
                self._characters += len(document.text)
            yield document

    def reading(self, part: CorpusPart, written: StoreWriter, encoder: Encoder) -> None:
        """Updates the bar with this process's current part: the tokenized share of the bytes read."""
        tokenized = encoder.num_characters - self._before
        read = sum(found.read_bytes() for found in part.sources)
        read = read * tokenized // self._characters if self._characters else read
        self._show(
            self._finished_bytes + read if self._total else self._documents + written.documents,
            documents=self._documents + written.documents,
            tokens=f"{(self._tokens + written.tokens) / 1e6:.1f}M",
        )

    def made(self, written: StoreWriter) -> None:
        """Adds a part that this process has finished."""
        self._documents += written.documents
        self._tokens += written.tokens
        self._before += self._characters
        self._characters = 0

    def joined(self, parts: int) -> None:
        """Updates the bar with the number of joined parts."""
        if self._bar is not None and parts:
            self._bar.set_postfix(joined=f"{parts}/{len(self._parts)}")

    def _show(self, done: int, **counts: Any) -> None:
        if self._bar is None:
            self._bar = self._begun(done)
        self._bar.update(done - self._bar.n)
        if len(self._parts) > 1:
            counts["parts"] = f"{self._finished}/{len(self._parts)}"
        self._bar.set_postfix(counts, refresh=False)

    def _begun(self, done: int) -> Bar:
        if self._total is None:
            return Bar(desc="Tokenizing", unit=" documents", disable=not self._shown)
        # Parts finished earlier must not count towards the displayed speed.
        initial = done if len(self._parts) > 1 else 0
        return Bar(
            desc="Tokenizing", total=self._total, initial=initial, unit="B", unit_scale=True, disable=not self._shown
        )


def _tokenize(folder: Path, part: CorpusPart, how: Tokenization, bar: _Progress) -> None:
    """Tokenizes a part into a folder that gets its name when complete; the caller holds the part's lock."""
    # Under the lock, existing files are damaged or left over from an interrupted build.
    partial = _partial_of(folder)
    for remains in (partial, folder):
        shutil.rmtree(remains, ignore_errors=True)
    partial.mkdir()
    try:
        left_out = PassedOver() if how.skip_unreadable else None
        documents = bar.read(document for found in part.sources for document in found.documents(how.field, left_out))
        with StoreWriter(partial, how.encoder.dtype) as writer:

            def show() -> None:
                bar.reading(part, writer, how.encoder)

            for piece in tokenized(documents, how.encoder, how.workers, show):
                if isinstance(piece, Piece):
                    writer.add(*piece)
                elif left_out is None:
                    raise piece
                else:
                    left_out.add(piece)
                show()
            writer.pass_over(left_out)
            writer.finish(**how.closing)
        if [found.identity() for found in part.sources] != part.identity:
            raise DataError(
                "documents changed while being read; start again when they are complete", page="changed-files"
            )
        partial.rename(folder)
        to_disk(folder.parent)
        bar.made(writer)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _SharedBuild:
    """Builds a store of several parts, each tokenized by the first process that takes it."""

    def __init__(self, folder: Path, parts: Sequence[CorpusPart], how: Tokenization, bar: _Progress) -> None:
        self._folder, self._parts, self._how, self._bar = folder, parts, how, bar
        self._parts_folder = folder.with_name(f"{folder.name}.parts")
        self._record = self._parts_folder / "joined.json"

    def run(self) -> None:
        """Returns when the store is complete, whichever process completed it."""
        while not self._complete():
            while missing := self._missing():
                self._bar.missing(missing)
                if not any(self._take(part) for part in missing):
                    time.sleep(_PAUSE_SECONDS)  # other processes hold them all; one may still die
            self._bar.missing([])

    def _complete(self) -> bool:
        """Whether the store is complete. Completes it first if all parts are there."""
        with self._acquire():
            if is_sound(self._folder):
                # The folder may exist again: a process that takes a part's lock too late creates it.
                shutil.rmtree(self._parts_folder, ignore_errors=True)
                return True
            shutil.rmtree(self._folder, ignore_errors=True)
            self._parts_folder.mkdir(exist_ok=True)
            names, state = self._joined()
            whole = state is not None and StoreWriter.can_go_on(_partial_of(self._folder), state)
            if not whole or names != [part.name for part in self._parts[: len(names)]]:
                self._record.unlink(missing_ok=True)
            return not self._missing() and self._join()

    def _acquire(self) -> AcquireReturnProxy:
        """Waits for the store's lock; meanwhile shows how far its holder has joined the parts."""
        while True:
            with contextlib.suppress(Timeout):
                return FileLock(_lock_of(self._folder)).acquire(timeout=1)
            self._bar.joined(len(self._joined()[0]))

    def _joined(self) -> tuple[list[str], dict[str, Any] | None]:
        """Names of the parts joined so far, and the state of the writer that joined them."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return [], None
        return record["parts"], record["state"]

    def _missing(self) -> list[CorpusPart]:
        """The parts still to be tokenized; none if the folder of parts is gone, since the store is then complete."""
        # The order matters: a part is in joined.json before its folder is deleted, and the store has its name before
        # the folder of parts is deleted. Listing a folder asks a network file system anew; a single name may be cached.
        try:
            there = {found.name for found in self._parts_folder.iterdir()}
        except FileNotFoundError:
            return []
        there.update(self._joined()[0])
        if (self._folder / "meta.json").exists():
            return []
        return [part for part in self._parts if part.name not in there]

    def _take(self, part: CorpusPart) -> bool:
        """Tokenizes a part if it is still missing; returns False if another process holds its lock."""
        folder = self._parts_folder / part.name
        try:
            held = FileLock(_lock_of(folder)).acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in _GONE:  # the folder of parts: another process has completed the store
                return True
            raise
        with held:
            if part in self._missing() and not self._take_over(folder):
                _tokenize(folder, part, self._how, self._bar)
        return True

    def _take_over(self, folder: Path) -> bool:
        """Moves in the same part from an unfinished build of another store, such as one whose other files changed."""
        for found in folder.parent.parent.glob(f"*.parts/{folder.name}"):
            with contextlib.suppress(Timeout, OSError), FileLock(_lock_of(found), timeout=0):
                found.rename(folder)
                return True
        return False

    def _join(self) -> bool:
        """Joins the parts, resuming where an earlier attempt stopped; deletes a damaged part and returns False."""
        partial = _partial_of(self._folder)
        names, state = self._joined()
        if state is None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        with StoreWriter(partial, self._how.encoder.dtype, state) as writer:
            for part in self._parts[len(names) :]:
                folder = self._parts_folder / part.name
                with FileLock(_lock_of(folder)):  # keeps the build of another store from moving it away
                    if not is_sound(folder, whole=True):
                        shutil.rmtree(folder, ignore_errors=True)
                        return False
                    writer.append(TokenFiles(folder))
                    names.append(part.name)
                    replace_file(self._record, json.dumps({"parts": names, "state": writer.state()}) + "\n")
                    shutil.rmtree(folder, ignore_errors=True)
                self._bar.joined(len(names))
            writer.finish(**self._how.closing)
        partial.rename(self._folder)
        to_disk(self._folder.parent)
        shutil.rmtree(self._parts_folder, ignore_errors=True)
        return True


def _lock_of(folder: Path) -> Path:
    # Never deleted before its folder: one process could then hold the deleted file and another one a new file.
    return folder.with_name(f"{folder.name}.lock")


def _partial_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")

"""Building: one process, or many on any machines that share the cache folder, tokenize one store.

    <key>/                 the store; it has this name when it is complete
    <key>.lock             held by who builds a store of one part, or puts the parts of one together
    <key>.partial/         a store that is being written
    <key>.parts/           of a source of several parts, until the store is there:
        <part>/            one that is tokenized, by itself a complete token store
        <part>.lock        held by who tokenizes it
        <part>.partial/    while it does
        joined.json        how far <key>.partial/ is; a part is removed when this says that it is in

A lock goes with the process that holds it, so what a dead one has left undone the next one does. Lock files are removed
with their folder alone, when the store is there and nothing is left to be done twice. What is called `.parts` or
`.partial` and belongs to no build that goes on or will may be deleted.
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
from typing import Any, NoReturn

from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from skipwise.data.documents import Document, LocalFiles, PassedOver, Source
from skipwise.data.store import FORMAT, StoreWriter, TokenFiles
from skipwise.data.tokens import Encoder, tokenized
from skipwise.errors import DataError
from skipwise.files import replace_file, to_disk

# Large enough that starting a part costs nothing, small enough that what a death undoes is minutes.
_PART_BYTES = 256 << 20
_MOST_PARTS = 1024
_PAUSE_SECONDS = 0.2
_GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusPart:
    """Consecutive documents that one process tokenizes.

    Attributes:
        name: hash of all that their tokens depend on, so that they are known again in another source.
        sources: what they are read from.
        identity: what the sources' `identity` was when the build began.
        size_bytes: on disk, None where that cannot be known.
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
        field: entry that holds the text, in files that have such.
        skip_unreadable: what cannot be read is left out, and counted.
        workers: threads.
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
        }


def divided(
    sources: Sequence[Source], identities: Sequence[list[Any]], encoder: Encoder, field: str
) -> list[CorpusPart]:
    """Cuts sources between files into parts of 256 MiB or more, at most about a thousand; little is one part.

    Args:
        sources: in reading order; what is no local file is a part by itself.
        identities: of each source; these alone decide, so all processes cut alike.
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
    """Makes the store of these parts, together with whoever else does; returns when it is there.

    Args:
        folder: the store's; the one that holds it must exist.
        parts: all of the source's.
        how: how they are tokenized.
        progress: shows a bar.

    Raises:
        DataError: a document cannot be read, or documents change meanwhile. Parts that are finished stay.
        OSError: something cannot be written.
    """
    with _Progress(parts, progress) as bar:
        if len(parts) > 1:
            _SharedBuild(folder, parts, how, bar).run()
            return
        with FileLock(_lock_of(folder)):
            if not is_sound(folder):  # no other process built it while this one waited
                _tokenize(folder, parts[0], how, bar)


def is_sound(folder: Path, *, whole: bool = False) -> bool:
    """Whether complete token files lie here that agree with their checksums (see `TokenFiles.verify`)."""
    try:
        TokenFiles(folder).verify(whole=whole)
    except (DataError, OSError):  # another process that found damage may be removing them
        return False
    return True


class _Progress:
    """A bar of what all processes have done, as far as this one can know: whole parts, and what it reads by itself.

    It counts bytes on disk where they are known, else documents.
    """

    def __init__(self, parts: Sequence[CorpusPart], shown: bool) -> None:
        self._parts = parts
        sizes = [part.size_bytes for part in parts]
        known = [size for size in sizes if size is not None]
        self._total = sum(known) if len(known) == len(sizes) else None
        self._shown = shown
        self._bar: tqdm[NoReturn] | None = None
        self._finished_bytes = self._finished = self._documents = self._tokens = 0
        # Of the part that is tokenized, and of those before it.
        self._characters = self._before = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def missing(self, parts: Collection[CorpusPart]) -> None:
        """Takes note of the parts that nobody has finished yet."""
        self._finished = len(self._parts) - len(parts)
        self._finished_bytes = (self._total or 0) - sum(part.size_bytes or 0 for part in parts)
        self._show(self._finished_bytes if self._total else self._documents)

    def read(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Passes documents on, and takes note of how much text has been read."""
        for document in documents:
            if not document.text.isspace():
                self._characters += len(document.text)
            yield document

    def reading(self, part: CorpusPart, written: StoreWriter, encoder: Encoder) -> None:
        """Takes note of how far a part of this process's own is: of what was read, what is tokenized by now."""
        tokenized = encoder.num_characters - self._before
        read = sum(found.read_bytes() for found in part.sources)
        read = read * tokenized // self._characters if self._characters else read
        self._show(
            self._finished_bytes + read if self._total else self._documents + written.documents,
            documents=self._documents + written.documents,
            tokens=f"{(self._tokens + written.tokens) / 1e6:.1f}M",
        )

    def made(self, written: StoreWriter) -> None:
        """Adds a part of this process's own."""
        self._documents += written.documents
        self._tokens += written.tokens
        self._before += self._characters
        self._characters = 0

    def joined(self, parts: int) -> None:
        """Takes note of how many parts have been put together."""
        if self._bar is not None and parts:
            self._bar.set_postfix(joined=f"{parts}/{len(self._parts)}")

    def _show(self, done: int, **counts: Any) -> None:
        if self._bar is None:
            self._bar = self._begun(done)
        self._bar.update(done - self._bar.n)
        if len(self._parts) > 1:
            counts["parts"] = f"{self._finished}/{len(self._parts)}"
        self._bar.set_postfix(counts, refresh=False)

    def _begun(self, done: int) -> "tqdm[NoReturn]":
        if self._total is None:
            return tqdm(desc="Tokenizing", unit=" documents", disable=not self._shown)
        # What was there before must not count for this build's speed.
        initial = done if len(self._parts) > 1 else 0
        return tqdm(
            desc="Tokenizing", total=self._total, initial=initial, unit="B", unit_scale=True, disable=not self._shown
        )


def _tokenize(folder: Path, part: CorpusPart, how: Tokenization, bar: _Progress) -> None:
    """Tokenizes a part, under its lock, into a folder that has its name when it is complete and not before."""
    # Under the lock, whatever lies here is damaged, or what an interrupted build left.
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
                writer.add(*piece)
                show()
            writer.pass_over(left_out)
            writer.finish(**how.closing)
        if [found.identity() for found in part.sources] != part.identity:
            raise DataError("documents changed while being read; start again when they are complete")
        partial.rename(folder)
        to_disk(folder.parent)
        bar.made(writer)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _SharedBuild:
    """A store of several parts, each tokenized by whichever process takes it first."""

    def __init__(self, folder: Path, parts: Sequence[CorpusPart], how: Tokenization, bar: _Progress) -> None:
        self._folder, self._parts, self._how, self._bar = folder, parts, how, bar
        self._room = folder.with_name(f"{folder.name}.parts")
        self._record = self._room / "joined.json"

    def run(self) -> None:
        """Returns when the store is there, whoever has made it."""
        while not self._is_there():
            while missing := self._missing():
                self._bar.missing(missing)
                if not any(self._take(part) for part in missing):
                    time.sleep(_PAUSE_SECONDS)  # others have them all; one of them may yet die
            self._bar.missing([])

    def _is_there(self) -> bool:
        """Whether the store is there, by now at least: who finds all its parts puts them together."""
        with self._held():
            if is_sound(self._folder):
                # What is left of the parts: a lock's folder is made again by who reaches for it too late.
                shutil.rmtree(self._room, ignore_errors=True)
                return True
            shutil.rmtree(self._folder, ignore_errors=True)
            self._room.mkdir(exist_ok=True)
            names, state = self._joined()
            whole = state is not None and StoreWriter.can_go_on(_partial_of(self._folder), state)
            if not whole or names != [part.name for part in self._parts[: len(names)]]:
                self._record.unlink(missing_ok=True)
            return not self._missing() and self._join()

    def _held(self) -> AcquireReturnProxy:
        """Waits for the store's lock, and tells meanwhile how far its holder is."""
        while True:
            with contextlib.suppress(Timeout):
                return FileLock(_lock_of(self._folder)).acquire(timeout=1)
            self._bar.joined(len(self._joined()[0]))

    def _joined(self) -> tuple[list[str], dict[str, Any] | None]:
        """Names of the parts that have been put together, and the state of what they were written to."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return [], None
        return record["parts"], record["state"]

    def _missing(self) -> list[CorpusPart]:
        """The parts that are still to be tokenized; none where their room is gone, so that the store is there."""
        # In this order, as the record has a part before its folder goes, and the store its name before the room goes. A
        # listing asks a network file system anew, where a look at a single name may be answered from memory.
        try:
            there = {found.name for found in self._room.iterdir()}
        except FileNotFoundError:
            return []
        there.update(self._joined()[0])
        if (self._folder / "meta.json").exists():
            return []
        return [part for part in self._parts if part.name not in there]

    def _take(self, part: CorpusPart) -> bool:
        """Sees to a part, unless another process is at it: that is what False says."""
        folder = self._room / part.name
        try:
            held = FileLock(_lock_of(folder)).acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in _GONE:  # with its room, as another process has finished the store
                return True
            raise
        with held:
            if part in self._missing() and not self._take_over(folder):
                _tokenize(folder, part, self._how, self._bar)
        return True

    def _take_over(self, folder: Path) -> bool:
        """Fetches a part that was tokenized for a store whose other documents have changed since, if there is one."""
        for found in folder.parent.parent.glob(f"*.parts/{folder.name}"):
            with contextlib.suppress(Timeout, OSError), FileLock(_lock_of(found), timeout=0):
                found.rename(folder)
                return True
        return False

    def _join(self) -> bool:
        """Puts the parts together, from where that was left; False where one is damaged, which is then missing."""
        partial = _partial_of(self._folder)
        names, state = self._joined()
        if state is None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        with StoreWriter(partial, self._how.encoder.dtype, state) as writer:
            for part in self._parts[len(names) :]:
                folder = self._room / part.name
                with FileLock(_lock_of(folder)):  # no other store's build takes it over meanwhile
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
        shutil.rmtree(self._room, ignore_errors=True)
        return True


def _lock_of(folder: Path) -> Path:
    # It stays as long as its folder: were it removed, one process could hold the removed file and another a new one.
    return folder.with_name(f"{folder.name}.lock")


def _partial_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")

"""Building: several processes make one store, and whatever disturbs them, its bytes are those that one alone writes."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from corpora import build_store
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data import documents
from skipwise.data import tokens as tokenizing
from skipwise.data.corpus import TokenStore, building
from skipwise.data.documents import find_sources
from skipwise.data.documents import sources as documents_sources
from skipwise.data.store import TokenFiles, files, writer
from skipwise.errors import DataError

FORK = multiprocessing.get_context("fork")
TOKENIZER = byte_tokenizer(begin=True)
NUM_FILES = 12


def build(source: Any, cache: Path, **options: Any) -> TokenStore:
    return build_store(source, TOKENIZER, **{"min_tokens": 2, "cache_dir": cache, "progress": False} | options)


def content(store: TokenStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.folder.iterdir()}


def room(cache: Path) -> Path:
    [found] = cache.glob("*.parts")
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files of many lines or of one text, in folders; some documents are empty."""
    folder = tmp_path / "documents"
    for i in range(NUM_FILES):
        file = folder / f"{i % 3}" / (f"{i}.jsonl" if i % 4 else f"{i}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": f"text {i} {line} é" * (line % 4)}) for line in range(30)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is a part; checksums and copies go in small blocks."""
    monkeypatch.setattr(building, "_PART_BYTES", 1)
    monkeypatch.setattr(building, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(writer, "_BLOCK_DOCUMENTS", 7)
    for module in (files, writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)


@pytest.fixture
def expected(source: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What one process writes in one part."""
    with monkeypatch.context() as patch:
        patch.setattr(building, "_PART_BYTES", 1 << 30)
        return content(build(source, tmp_path / "expected"))


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every part that this process tokenizes."""
    parts: list[str] = []
    original = building._tokenize

    def tokenize(folder: Path, *arguments: Any) -> None:
        parts.append(folder.name)
        original(folder, *arguments)

    monkeypatch.setattr(building, "_tokenize", tokenize)
    return parts


class Builder:
    """A process that builds the store, and tells which parts it tokenized and what came of it."""

    def __init__(self, source: Path, cache: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self._told, tell = FORK.Pipe(duplex=False)
        self.process: BaseProcess = FORK.Process(target=self._run, args=(source, cache, prepare, tell))
        self.process.start()
        tell.close()

    @staticmethod
    def _run(source: Path, cache: Path, prepare: Callable[[], None], tell: Any) -> None:
        parts: list[str] = []
        tokenize, encode = building._tokenize, tokenizing.Encoder.encode

        def counted(folder: Path, *arguments: Any) -> None:
            tokenize(folder, *arguments)
            parts.append(folder.name)

        def slow(encoder: Any, texts: list[str]) -> Any:
            time.sleep(0.03)  # so that all of them get some
            return encode(encoder, texts)

        building._tokenize, tokenizing.Encoder.encode = counted, slow  # type: ignore[assignment]
        prepare()
        try:
            outcome = build(source, cache, num_workers=1).fingerprint
        except DataError as error:
            outcome = str(error)
        tell.send((parts, outcome))

    def answer(self) -> tuple[list[str], str]:
        assert self._told.poll(60), "a process hangs"
        answer = self._told.recv()
        self.process.join()
        return answer


@pytest.mark.parametrize("part_bytes", [1, 2500, 6000])
def test_the_bytes_are_the_same_however_it_is_cut(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, part_bytes: int
) -> None:
    monkeypatch.setattr(building, "_PART_BYTES", part_bytes)
    store = build(source, tmp_path / "cache")
    assert len(tokenized) == {1: 12, 2500: 4, 6000: 2}[part_bytes]
    assert content(store) == expected
    assert sorted(file.name for file in store.folder.parent.iterdir()) == [
        store.folder.name,
        f"{store.folder.name}.lock",
    ]
    TokenFiles(store.folder).verify(whole=True)


def test_names_that_meet_at_a_cut_are_written_once(source: Path, tmp_path: Path, small_parts, monkeypatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text(f"text of {name} " * 9)
    sources = [tmp_path / "a" / "same.txt", tmp_path / "b" / "same.txt", source, tmp_path / "c" / "same.txt"]
    cut = build(sources, tmp_path / "cut")
    monkeypatch.setattr(building, "_PART_BYTES", 1 << 30)
    whole = build(sources, tmp_path / "whole")
    assert content(cut) == content(whole)
    assert list(cut.names)[:2] == ["same.txt", "same.txt"]
    assert cut.names[-1] == "same.txt"


@given(
    sizes=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=12), min_size=1, max_size=4),
    hub=st.integers(0, 4),
    enough=st.integers(1, 60),
    most=st.integers(1, 5),
)
def test_parts_are_the_files_in_order_and_few(sizes: list[list[int]], hub: int, enough: int, most: int) -> None:
    def local(number: int, bytes_of: list[int]) -> tuple[Any, list[Any]]:
        named = [documents.DocumentFile(path=Path(f"{number}/{i}.txt"), name=f"{i}.txt") for i in range(len(bytes_of))]
        entries = [[file.name, size, f"hash {number}"] for file, size in zip(named, bytes_of, strict=True)]
        return documents.LocalFiles(files=named, _is_small=True, _sampled_bytes=1), [False, *entries]

    sources, identities = map(list, zip(*(local(*one) for one in enumerate(sizes)), strict=True))
    if hub <= len(sizes):
        sources.insert(hub, documents.HubDataset(name="owner/name", config=None, split="train"))
        identities.insert(hub, ["owner/name", None, "train", "commit"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_PART_BYTES", enough)
        patch.setattr(building, "_MOST_PARTS", most)
        encoder = tokenizing.Encoder(TOKENIZER)
        parts = building.divided(sources, identities, encoder, "text")

    def flat(several: list[Any], identified: list[Any]) -> Iterator[tuple[Any, Any]]:
        for found, identity in zip(several, identified, strict=True):
            if isinstance(found, documents.HubDataset):
                yield "hub", identity
            else:
                yield from zip(((str(file.path), file.name) for file in found.files), identity[1:], strict=True)

    assert [*itertools.chain(*(flat(part.sources, part.identity) for part in parts))] == [*flat(sources, identities)]
    assert len({part.name for part in parts}) == len(parts)
    total = sum(map(sum, sizes))
    least = max(enough, total / most)
    assert len(parts) <= most + 3, "the hub's is one, and before and after it little may be left"
    for part, after in itertools.pairwise(parts):
        if part.size_bytes is not None and after.size_bytes is not None:
            assert part.size_bytes >= least
    assert sum(part.size_bytes or 0 for part in parts) == total


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_parts_and_each_is_tokenized_once(
    source: Path, tmp_path: Path, expected: dict[str, bytes], processes: int
) -> None:
    builders = [Builder(source, tmp_path / "cache") for _ in range(processes)]
    answers = [builder.answer() for builder in builders]
    store = build(source, tmp_path / "cache")
    assert content(store) == expected
    assert {outcome for _, outcome in answers} == {store.fingerprint}
    parts = [part for own, _ in answers for part in own]
    assert len(parts) == len(set(parts)) == NUM_FILES
    assert all(own for own, _ in answers), "all took part"
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {"", ".lock"}


def test_what_a_killed_process_held_the_others_do(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    def hang_in_the_third() -> None:
        read, seen = documents.LocalFiles.documents, itertools.count()

        def stuck(found: documents.LocalFiles, *how: Any) -> Iterator[documents.Document]:
            if next(seen) == 2:
                time.sleep(60)
            return read(found, *how)

        documents.LocalFiles.documents = stuck  # type: ignore[method-assign]

    stuck = Builder(source, tmp_path / "cache", hang_in_the_third)
    _wait_until(lambda: len([part for part in _finished(tmp_path / "cache") if part]) >= 2)
    others = [Builder(source, tmp_path / "cache") for _ in range(2)]
    _wait_until(lambda: len(_finished(tmp_path / "cache")) == NUM_FILES - 1)
    time.sleep(0.1)
    assert all(other.process.is_alive() for other in others), "they wait for the one that is taken"
    assert stuck.process.pid
    os.kill(stuck.process.pid, signal.SIGKILL)
    answers = [other.answer() for other in others]
    parts = [part for own, _ in answers for part in own]
    assert len(parts) == len(set(parts)) == NUM_FILES - 2
    assert content(build(source, tmp_path / "cache")) == expected


def _finished(cache: Path) -> list[Path]:
    return list(cache.glob("*.parts/*/meta.json"))


def _finished_parts(cache: Path) -> set[str]:
    return {file.parent.name for file in _finished(cache) if file.parent.suffix != ".partial"}


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_interrupted_build_goes_on(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch
) -> None:
    encode, calls = tokenizing.Encoder.encode, itertools.count()

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizing.Encoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "cache")
    done = _finished_parts(tmp_path / "cache")
    assert 0 < len(done) < NUM_FILES
    tokenized.clear()
    assert content(build(source, tmp_path / "cache")) == expected
    assert not done & set(tokenized)
    assert len(tokenized) == NUM_FILES - len(done)


@pytest.mark.parametrize("moment", ["appended", "recorded", "removed", "finished", "renamed"])
@pytest.mark.parametrize("after", [0, 4])
def test_killed_while_parts_are_put_together(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], moment: str, after: int
) -> None:
    def die_there() -> None:
        calls = itertools.count()

        def dying(original: Callable[..., Any], concerns: Callable[..., bool]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                if concerns(*arguments) and next(calls) == after:
                    os._exit(9)
                return original(*arguments, **keywords)

            return call

        if moment == "appended":
            building.write_json = dying(building.write_json, lambda *_: True)
        elif moment == "recorded":
            building.shutil.rmtree = dying(
                shutil.rmtree, lambda path: path.parent.suffix == ".parts" and (path / "meta.json").exists()
            )
        elif moment == "removed":
            building._Progress.joined = dying(building._Progress.joined, lambda _, parts: parts)  # type: ignore
        elif moment == "finished":
            Path.rename = dying(Path.rename, lambda path, _: path.parent.name == "cache")  # type: ignore
        else:
            building.shutil.rmtree = dying(shutil.rmtree, lambda path: path.suffix == ".parts")

    if moment in ("finished", "renamed") and after:
        pytest.skip("this happens once")
    dead = Builder(source, tmp_path / "cache", die_there)
    dead.process.join()
    assert dead.process.exitcode == 9
    assert content(build(source, tmp_path / "cache")) == expected
    assert tokenized == []


def test_disk_is_needed_twice_for_one_part_alone(source: Path, tmp_path: Path, expected, monkeypatch) -> None:
    left: list[int] = []
    told = building._Progress.joined
    monkeypatch.setattr(
        building._Progress,
        "joined",
        lambda bar, parts: left.append(len(_finished_parts(tmp_path / "cache"))) or told(bar, parts),
    )
    build(source, tmp_path / "cache")
    assert left == list(range(NUM_FILES - 1, -1, -1))


@pytest.mark.parametrize("damage", ["flipped", "gone", "cut"])
def test_a_damaged_part_is_made_again(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, damage: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(building._SharedBuild, "_join", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "cache")
    part = room(tmp_path / "cache") / tokenized[5]
    tokens = (part / "tokens.bin").read_bytes()
    if damage == "flipped":
        monkeypatch.setattr(files, "_VERIFIED_BLOCKS", 0)  # a look at samples does not find it
        (part / "tokens.bin").write_bytes(tokens[:-1] + bytes([tokens[-1] ^ 1]))
    elif damage == "gone":
        (part / "tokens.bin").unlink()
    else:
        os.truncate(part / "meta.json", 20)
    tokenized.clear()
    assert content(build(source, tmp_path / "cache")) == expected
    assert tokenized == [part.name]


@pytest.mark.parametrize("spoilt", ["joined.json", "partial"])
def test_half_of_a_store_that_is_spoilt_begins_anew(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, spoilt: str
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(building._Progress, "joined", lambda _, parts: 1 / (parts - 4))
        with pytest.raises(ZeroDivisionError):
            build(source, cache)
    if spoilt == "partial":
        os.truncate(next(cache.glob("*.partial")) / "tokens.bin", 1)
    else:
        (room(cache) / "joined.json").write_text("{")
    gone = set(tokenized) - _finished_parts(cache)
    tokenized.clear()
    assert content(build(source, cache)) == expected
    assert set(tokenized) == gone
    assert len(gone) == 4


def test_a_damaged_store_of_parts_is_built_again(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    store = build(source, tmp_path / "cache")
    (store.folder / "digests.bin").unlink()
    assert content(build(source, tmp_path / "cache")) == expected


def test_a_bad_line_reaches_every_process_and_costs_one_part(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch
) -> None:
    # As of a large source, whose ends alone are looked at beforehand.
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 4000)
    monkeypatch.setattr(documents_sources, "_SAMPLED_BYTES", 100)
    bad = source / "1" / "7.jsonl"
    right = bad.read_text(encoding="utf-8")
    bad.write_text(right + "{oops\n", encoding="utf-8")
    builders = [Builder(source, tmp_path / "cache") for _ in range(2)]
    answers = [builder.answer() for builder in builders]
    for _, outcome in answers:
        assert f"{bad}:31 is not JSON" in outcome
    done = _finished_parts(tmp_path / "cache")
    assert done == {part for own, _ in answers for part in own}
    assert len(done) >= 7, "those before it"

    # Mended, it is another source; what is the same in both is not tokenized again.
    bad.write_text(right, encoding="utf-8")
    assert content(build(source, tmp_path / "cache")) == expected
    assert not done & set(tokenized)
    assert len(tokenized) == NUM_FILES - len(done)


def test_parts_of_a_build_that_goes_on_are_not_taken_over(
    source: Path, tmp_path: Path, small_parts, tokenized: list[str], monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(building._SharedBuild, "_join", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "cache")
    held = room(tmp_path / "cache") / tokenized[0]
    tokenized.clear()
    (source / "new.txt").write_text("one more text")
    monkeypatch.setattr(building, "_MOST_PARTS", 1 << 20)
    with FileLock(f"{held}.lock"):
        build(source, tmp_path / "cache")
    assert len(tokenized) == 2
    assert held.name in tokenized
    assert _finished_parts(tmp_path / "cache") == {held.name}


def test_documents_that_change_meanwhile_are_refused(source: Path, tmp_path: Path, small_parts, monkeypatch) -> None:
    encode, calls = tokenizing.Encoder.encode, itertools.count()
    changed = source / "1" / "10.jsonl"

    def encode_and_append(*arguments: Any) -> Any:
        if next(calls) == 1:
            with changed.open("a") as file:
                file.write('{"text": "still being written"}\n')
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizing.Encoder, "encode", encode_and_append)
        with pytest.raises(DataError, match="changed while being read"):
            build(source, tmp_path / "cache")
    assert build(source, tmp_path / "cache").counts.seen == sum(1 if i % 4 == 0 else 30 for i in range(NUM_FILES)) + 1


@pytest.mark.parametrize("error", [None, errno.ENOENT, errno.ESTALE])
def test_a_store_that_is_finished_while_another_reaches_for_a_part(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, error: int | None
) -> None:
    class Late(FileLock):  # type: ignore[misc]
        def acquire(self, *arguments: Any, **keywords: Any) -> Any:
            if (folder := Path(self.lock_file).parent).suffix == ".parts":
                monkeypatch.setattr(building, "FileLock", FileLock)
                assert len(Builder(source, tmp_path / "cache").answer()[0]) == NUM_FILES
                assert not folder.exists()
                if error:
                    raise OSError(error, os.strerror(error))
            return super().acquire(*arguments, **keywords)

    monkeypatch.setattr(building, "FileLock", Late)
    store = build(source, tmp_path / "cache")
    assert content(store) == expected
    assert tokenized == []
    assert {file.suffix for file in store.folder.parent.iterdir()} == {"", ".lock"}


def test_a_part_that_is_finished_while_another_reaches_for_it(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch
) -> None:
    def refuse_to_join() -> None:
        def refused(build: Any) -> bool:
            raise DataError("refused")

        building._SharedBuild._join = refused  # type: ignore[method-assign]

    class Late(FileLock):  # type: ignore[misc]
        def acquire(self, *arguments: Any, **keywords: Any) -> Any:
            if Path(self.lock_file).parent.suffix == ".parts":
                monkeypatch.setattr(building, "FileLock", FileLock)
                assert Builder(source, tmp_path / "cache", refuse_to_join).answer()[1] == "refused"
                assert len(_finished_parts(tmp_path / "cache")) == NUM_FILES
            return super().acquire(*arguments, **keywords)

    monkeypatch.setattr(building, "FileLock", Late)
    assert content(build(source, tmp_path / "cache")) == expected
    assert tokenized == []


@pytest.mark.parametrize("where", ["a part", "the whole"])
def test_a_full_disk_is_one_line_and_what_is_finished_stays(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, where: str
) -> None:
    write, cache = writer._Output.write, tmp_path / "cache"

    def full(out: Any, data: Any) -> None:
        whole = out._file.name.startswith(str(next(cache.glob("*.partial"), None)))
        if len(_finished_parts(cache)) == 5 and whole == (where == "the whole"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(out, data)

    with monkeypatch.context() as patch:
        patch.setattr(writer._Output, "write", full)
        with pytest.raises(DataError, match=r"cannot be written to '.*cache': No space left on device\. Free some"):
            build(source, cache)
    done = len(tokenized) - (where == "a part")
    assert done == (5 if where == "a part" else NUM_FILES)
    assert content(build(source, cache)) == expected
    assert len(tokenized) == NUM_FILES + (where == "a part")


def test_a_cache_that_cannot_be_made_is_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"tokens cannot be written to '.*file/cache': Not a directory"):
        build(source, tmp_path / "file" / "cache")


def test_processes_of_one_machine_share_its_processors(source: Path, tmp_path: Path, small_parts, monkeypatch) -> None:
    workers: list[int] = []
    original = building._tokenize
    monkeypatch.setattr(
        building, "_tokenize", lambda *arguments: workers.append(arguments[2].workers) or original(*arguments)
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    build(source, tmp_path / "cache")
    assert set(workers) == {4}
    workers.clear()
    build(source / "0" / "0.txt", tmp_path / "cache")
    assert workers == [16], "of one part nobody else takes anything"


def test_progress_counts_what_others_have_done(source: Path, tmp_path: Path, small_parts, capfd, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(building._SharedBuild, "_join", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "cache")
    shutil.rmtree(next(room(tmp_path / "cache").glob("*/meta.json")).parent)
    capfd.readouterr()
    build(source, tmp_path / "cache", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Tokenizing:  9" in err.split("\r")[1], "it begins where the parts that are there end"
    assert "100%" in err
    assert f"joined={NUM_FILES}/{NUM_FILES}" in err


def test_a_part_is_known_by_what_the_whole_source_says_of_it(source: Path) -> None:
    for is_large in (False, True):
        [found] = find_sources(source)
        assert isinstance(found, documents.LocalFiles)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents_sources, "_HASHED_BYTES", 4000 if is_large else 1 << 20)
            identity = found.identity()
            assert len(identity[1]) == (5 if is_large else 3)
            assert found.part(3, 5).identity() == [identity[0], *identity[4:6]]
            assert documents.LocalFiles.sizes_of(identity) == [file.path.stat().st_size for file in found.files]

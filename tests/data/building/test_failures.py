"""Whatever disturbs building, what is finished stays, and the bytes are those of a store that nothing has disturbed."""

import errno
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skipwise.data import documents
from skipwise.data import tokens as tokenizing
from skipwise.data.corpus import building
from skipwise.data.documents import sources as documents_sources
from skipwise.data.store import files, writer
from skipwise.errors import DataError

from .conftest import NUM_FILES, Builder, build, content, finished, finished_parts, room, wait_until


def test_what_a_killed_process_held_the_others_do(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    def hang_in_the_third() -> None:
        read, seen = documents.LocalFiles.documents, itertools.count()

        def stuck(found: documents.LocalFiles, *how: Any) -> Iterator[documents.Document]:
            if next(seen) == 2:
                time.sleep(60)
            return read(found, *how)

        documents.LocalFiles.documents = stuck  # type: ignore[method-assign]

    stuck = Builder(source, tmp_path / "cache", hang_in_the_third)
    wait_until(lambda: len([part for part in finished(tmp_path / "cache") if part]) >= 2)
    others = [Builder(source, tmp_path / "cache") for _ in range(2)]
    wait_until(lambda: len(finished(tmp_path / "cache")) == NUM_FILES - 1)
    time.sleep(0.1)
    assert all(other.process.is_alive() for other in others), "they wait for the one that is taken"
    assert stuck.process.pid
    os.kill(stuck.process.pid, signal.SIGKILL)
    answers = [other.answer() for other in others]
    parts = [part for own, _ in answers for part in own]
    assert len(parts) == len(set(parts)) == NUM_FILES - 2
    assert content(build(source, tmp_path / "cache")) == expected


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
    done = finished_parts(tmp_path / "cache")
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
            building.replace_file = dying(building.replace_file, lambda *_: True)
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
    gone = set(tokenized) - finished_parts(cache)
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
    done = finished_parts(tmp_path / "cache")
    assert done == {part for own, _ in answers for part in own}
    assert len(done) >= 7, "those before it"

    # Mended, it is another source; what is the same in both is not tokenized again.
    bad.write_text(right, encoding="utf-8")
    assert content(build(source, tmp_path / "cache")) == expected
    assert not done & set(tokenized)
    assert len(tokenized) == NUM_FILES - len(done)


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


@pytest.mark.parametrize("where", ["a part", "the whole"])
def test_a_full_disk_is_one_line_and_what_is_finished_stays(
    source: Path, tmp_path: Path, expected: dict[str, bytes], tokenized: list[str], monkeypatch, where: str
) -> None:
    write, cache = writer._Output.write, tmp_path / "cache"

    def full(out: Any, data: Any) -> None:
        whole = out._file.name.startswith(str(next(cache.glob("*.partial"), None)))
        if len(finished_parts(cache)) == 5 and whole == (where == "the whole"):
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

"""Building: several processes make one store, whose bytes are those that one alone writes."""

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data import documents
from skipwise.data import tokens as tokenizing
from skipwise.data.corpus import building
from skipwise.data.documents import find_sources
from skipwise.data.documents import sources as documents_sources
from skipwise.data.documents.finding import DocumentFile
from skipwise.data.store import TokenFiles
from skipwise.errors import DataError

from .conftest import NUM_FILES, TOKENIZER, Builder, build, content, finished_parts, room


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
        named = [DocumentFile(path=Path(f"{number}/{i}.txt"), name=f"{i}.txt") for i in range(len(bytes_of))]
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


def test_disk_is_needed_twice_for_one_part_alone(source: Path, tmp_path: Path, expected, monkeypatch) -> None:
    left: list[int] = []
    told = building._Progress.joined
    monkeypatch.setattr(
        building._Progress,
        "joined",
        lambda bar, parts: left.append(len(finished_parts(tmp_path / "cache"))) or told(bar, parts),
    )
    build(source, tmp_path / "cache")
    assert left == list(range(NUM_FILES - 1, -1, -1))


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
    assert finished_parts(tmp_path / "cache") == {held.name}


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
                assert len(finished_parts(tmp_path / "cache")) == NUM_FILES
            return super().acquire(*arguments, **keywords)

    monkeypatch.setattr(building, "FileLock", Late)
    assert content(build(source, tmp_path / "cache")) == expected
    assert tokenized == []


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
    assert "Tokenizing:  9" in err.splitlines()[0], "it begins where the parts that are there end"
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

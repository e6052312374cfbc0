"""Streams of documents: every one once an epoch, the same after any restart, on any number of processes."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from corpora import build_store, open_stream, streamed
from pyarrow import parquet
from transformers import AutoTokenizer

from skipwise.config import DataConfig, RunConfig
from skipwise.data.documents import is_held_out
from skipwise.data.documents import sources as documents_sources
from skipwise.data.stream import DocumentStream, Shards
from skipwise.errors import ConfigError, DataError
from skipwise.train import check_run

SHARDS, ROWS = 5, 24
SHORT, LONG = 40, 90


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    """One token a byte, so that text reads back from the ids."""
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """One in three is short, one is of spaces, and each says which it is."""
    rng = np.random.default_rng(3)
    made = [
        f"text {i} " + "".join(rng.choice(list("abc"), SHORT - 10 if i % 3 == 0 else LONG))
        for i in range(SHARDS * ROWS)
    ]
    return [*made[:-1], "   "]


@pytest.fixture(scope="module")
def folder(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of row groups of eight."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        own = texts[shard * ROWS : (shard + 1) * ROWS]
        table = pyarrow.table({"id": list(range(len(own))), "text": own})
        parquet.write_table(table, folder / f"{shard}.parquet", row_group_size=8)
    return folder


@pytest.fixture
def stream(folder: Path, tokenizer: Any) -> Callable[..., DocumentStream]:
    def stream(lanes: int, seed: int = 0, **settings: Any) -> DocumentStream:
        data = {"source": str(folder), "buffer": 5, "held_out": 0.0, **settings}
        return open_stream(DataConfig(**data), tokenizer, lanes=lanes, seed=seed)

    return stream


Ids = tuple[int, ...]


def taken(stream: DocumentStream, lanes: Sequence[int], steps: range, min_tokens: int = SHORT) -> list[Ids]:
    """What some lanes give in some steps, step by step."""
    return [tuple(stream.take(lane, step, min_tokens=min_tokens).tokens.tolist()) for step in steps for lane in lanes]


def numbers(found: Sequence[Sequence[int]], tokenizer: Any) -> list[int]:
    """Which texts were taken, by their beginnings."""
    return [int(tokenizer.decode(list(ids)).split()[1]) for ids in found]


# Fewer lanes than files, as many as files, more than files and fewer than row groups, more than these.
@pytest.mark.parametrize("lanes", [1, 3, 5, 8, 15, 20])
def test_an_epoch_has_every_long_document_once(
    lanes: int, stream: Callable[..., DocumentStream], texts: list[str], tokenizer: Any
) -> None:
    opened = stream(lanes)
    expected = Counter(i for i, text in enumerate(texts) if len(text) >= SHORT)
    for epoch in range(2):
        found: list[int] = []
        for lane in range(lanes):
            step = 0
            while True:
                document = opened.take(lane, step, min_tokens=SHORT)
                if document.begins.epoch > epoch:
                    break
                if document.begins.epoch == epoch:
                    found += numbers([document.tokens.tolist()], tokenizer)
                    assert texts[found[-1]] == tokenizer.decode(document.tokens)
                step += 1
        assert Counter(found) == expected
        opened = stream(lanes)  # From the start, to go through the second epoch as well.


def test_orders_differ_by_epoch_and_seed_and_are_the_same_again(
    stream: Callable[..., DocumentStream], texts: list[str], tokenizer: Any
) -> None:
    epoch = sum(len(text) >= SHORT for text in texts)
    first = taken(stream(1), [0], range(2 * epoch))
    assert first == taken(stream(1), [0], range(2 * epoch))
    assert sorted(first[:epoch]) == sorted(first[epoch:])
    assert first[:epoch] != first[epoch:]
    assert first[:epoch] != taken(stream(1, seed=1), [0], range(epoch))
    assert numbers(first[:epoch], tokenizer) != sorted(numbers(first[:epoch], tokenizer))


def test_the_buffer_is_what_is_shuffled_together(stream: Callable[..., DocumentStream], tokenizer: Any) -> None:
    one_by_one = numbers(taken(stream(5, buffer=1), [0], range(12)), tokenizer)
    assert one_by_one == sorted(one_by_one), "with a buffer of one, a shard is read in its own order"
    shuffled = numbers(taken(stream(5, buffer=24), [0], range(12)), tokenizer)
    assert shuffled != sorted(shuffled)
    assert len({number // ROWS for number in shuffled}) == 1, "all of one shard"


@pytest.mark.parametrize("step", [1, 7, 30])
@pytest.mark.parametrize("settings", [{}, {"join": True}])
def test_other_processes_go_on_where_some_have_stopped(
    step: int, settings: dict[str, Any], folder: Path, tokenizer: Any
) -> None:
    lanes, more = 6, 9
    # Of a tokenizer with an end token, so that short texts can be joined.
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path, eos_token="!")

    def opened() -> DocumentStream:
        data = DataConfig(source=str(folder), buffer=5, held_out=0.2, **settings)
        return open_stream(data, tokenizer, lanes=lanes, seed=4)

    whole = opened()
    before = [taken(whole, range(lanes), range(n, n + 1)) for n in range(step + more)]
    # Two processes with half of the lanes each; their loaders have fetched something of the next step.
    halves = [opened(), opened()]
    for half, own in zip(halves, ([0, 2, 4], [1, 3, 5]), strict=True):
        taken(half, own, range(step))
        taken(half, own[:1], range(step, step + 1))
    states = [json.loads(json.dumps(half.state(step))) for half in halves]
    # Three others go on, and one of these states knows lanes that it no longer has.
    for own in ([0, 1], [2, 3], [4, 5]):
        third = opened()
        third.restore(states)
        for n in range(step, step + more):
            assert taken(third, own, range(n, n + 1)) == [before[n][lane] for lane in own]
        again = opened()
        again.restore([third.state(step + more), *states])
        assert taken(again, own, range(step + more, step + more + 1)) == taken(
            third, own, range(step + more, step + more + 1)
        )


def test_a_process_reads_the_shards_of_its_own_lanes(
    stream: Callable[..., DocumentStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    own, opened = Shards.texts, stream(5)

    def texts(shards: Shards, shard: int, first: int = 0) -> Any:
        # Streams of other tests may still be looking ahead.
        if shards is opened._shards:
            read.add(shard)
        return own(shards, shard, first)

    monkeypatch.setattr(Shards, "texts", texts)
    taken(opened, [1, 3], range(4))
    assert len(read) == 2


def test_short_documents_are_joined_with_those_after_them(folder: Path, tokenizer: Any, texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path, eos_token="!")
    data = DataConfig(source=str(folder), buffer=1, held_out=0.0, join=True)
    opened = open_stream(data, tokenizer, lanes=1, seed=0)
    found = opened.take(0, 0, min_tokens=250)
    assert len(found.tokens) >= 250
    pieces = tokenizer.decode(found.tokens).split("!")
    first = found.shard * ROWS + found.row
    assert pieces == texts[first : first + len(pieces)]
    assert len("!".join(pieces[:-1])) < 250


def test_what_is_held_out_is_never_streamed(
    stream: Callable[..., DocumentStream], texts: list[str], folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    share = 0.3
    kept_out = {i for i, text in enumerate(texts) if text.strip() and is_held_out(text, share)}
    seen = numbers(taken(stream(1, held_out=share), [0], range(70)), tokenizer)
    assert kept_out
    assert not kept_out & set(seen)
    data = DataConfig(source=str(folder), held_out=share)
    first = streamed(data, tokenizer).long_documents("held_out", 1000, min_tokens=SHORT)
    store = build_store(
        folder, tokenizer, min_tokens=SHORT, part="held_out", held_out_share=share, cache_dir=tmp_path, progress=False
    )
    assert [ids.tolist() for ids in first] == [store.document(i).tolist() for i in range(store.num_documents)]


def test_first_documents_are_joined_where_none_is_long_enough(folder: Path, tokenizer: Any) -> None:
    data = DataConfig(source=str(folder), held_out=0.3)
    with pytest.raises(DataError, match=" 500 "):
        streamed(data, tokenizer).long_documents("held_out", 2, min_tokens=500)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path, eos_token="!")
    joined = streamed(data, tokenizer).long_documents("held_out", 2, min_tokens=500)
    assert [len(ids) >= 500 for ids in joined] == [True, True]


def test_an_epoch_without_a_document_is_told(stream: Callable[..., DocumentStream]) -> None:
    with pytest.raises(DataError, match=" 1000 "):
        stream(2).take(0, 0, min_tokens=1000)


def test_a_longer_window_goes_on_in_the_same_lane(stream: Callable[..., DocumentStream]) -> None:
    opened, short = stream(1, buffer=1), stream(1, buffer=1)
    all_long = taken(short, [0], range(20), min_tokens=SHORT)
    begun = taken(opened, [0], range(4), min_tokens=20)
    after = taken(opened, [0], range(4, 8), min_tokens=SHORT)
    assert after == [ids for ids in all_long if ids not in begun][: len(after)]


def test_documents_are_passed_over_for_those_that_stand_in(stream: Callable[..., DocumentStream]) -> None:
    all_of_lane = taken(stream(2), [1], range(6))
    opened = stream(2)
    taken(opened, [1], range(2))
    stood_in = opened.take(1, 2, min_tokens=SHORT, passed_over=2)
    assert tuple(stood_in.tokens.tolist()) == all_of_lane[4]
    assert taken(opened, [1], range(3, 4)) == [all_of_lane[5]]


def test_a_file_that_breaks_off_is_named_by_shard_and_row(
    folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 64)  # else a look at all of it would find the fault
    whole = (folder / "0.parquet").read_bytes()
    # The footer is sound and what it points to is not.
    (tmp_path / "0.parquet").write_bytes(b"\0" * 400 + whole[400:])
    opened = open_stream(DataConfig(source=str(tmp_path), held_out=0.0), tokenizer, lanes=1, seed=0)
    with pytest.raises(DataError, match=r"shard 0 .* row \d+"):
        taken(opened, [0], range(20))


def test_what_cannot_be_streamed_is_refused(
    folder: Path, tokenizer: Any, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match=r"\.jsonl"):
        Shards(str(tmp_path), "text")
    with pytest.raises(DataError, match=r"'body'.* id, text"):
        Shards(str(folder), "body")
    (tmp_path / "b.parquet").write_bytes(b"not a table")
    with pytest.raises(DataError, match=r"b\.parquet"):
        Shards(str(tmp_path / "b.parquet"), "text")
    settings = {"model": str(tiny_checkpoint), "target": 256, "data": {"source": str(folder), "streaming": True}}
    with pytest.raises(ConfigError, match="dataloader_num_workers' is 2"):
        check_run(RunConfig.from_mapping({**settings, "training": {"dataloader_num_workers": 2}}))
    settings["data"] = {"source": "stdlib", "streaming": True}
    with pytest.raises(DataError, match=r"\.py"):
        check_run(RunConfig.from_mapping(settings))

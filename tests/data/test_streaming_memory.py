"""What a stream holds of its Parquet shards: pages and blocks, whatever their row groups are."""

import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from corpora import open_stream
from pyarrow import parquet
from transformers import AutoTokenizer

from skipwise.config import DataConfig
from skipwise.data import documents
from skipwise.data.documents import HubDataset
from skipwise.data.documents import sources as documents_sources
from skipwise.data.stream import Place, Shards
from skipwise.data.stream import parquet as paged
from skipwise.errors import DataError

MIB = 1 << 20


def write(file: Path, rows: int, length: int, row_group_size: int, **settings: Any) -> list[str]:
    """A Parquet file of random texts, and these."""
    letters = np.random.default_rng(0).integers(97, 123, (rows, length), dtype=np.uint8)
    texts = [row.tobytes().decode() for row in letters]
    parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=row_group_size, **settings)
    return texts


# A row group of 48 MiB: pages of 1.5 MiB, kept open; of 16 MiB, closed between blocks; the same, compressed.
@pytest.mark.parametrize(
    ("rows", "length", "settings"),
    [
        (32_768, 1536, {"compression": "none"}),
        (3072, 16_384, {"compression": "none"}),
        (3072, 16_384, {"compression": "zstd"}),
    ],
)
def test_a_row_group_is_never_held_as_a_whole(rows: int, length: int, settings: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "one.parquet", rows, length, row_group_size=rows, **settings)
    opened = Shards(str(tmp_path), "text")
    before = pyarrow.total_allocated_bytes()
    blocks = opened.blocks(0, 0, 100)
    held = []
    for _ in range(5):
        assert len(next(blocks)) == 100
        held.append((pyarrow.total_allocated_bytes() - before) / MIB)
    assert max(held) < 6, held


def test_lanes_that_share_a_shard_hold_each_their_own_texts(tmp_path: Path, tiny_checkpoint: Path) -> None:
    rows, length, lanes = 40, 100_000, 4
    write(tmp_path / "one.parquet", rows, length, row_group_size=rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    data = DataConfig(source=str(tmp_path), buffer=rows, held_out=0.0)
    stream = open_stream(data, tokenizer, lanes=lanes, seed=0)
    waiting = [stream.texts(lane, Place()) for lane in range(lanes)]
    tracemalloc.start()
    try:
        begun = [next(texts).row for texts in waiting]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(begun)) == lanes
    assert held < 1.2 * rows * length


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 29, 30, 31, 95, 99, 100])
@pytest.mark.parametrize("row_group_size", [7, 30, 100])
def test_texts_are_read_from_any_row_on(first: int, row_group_size: int, tmp_path: Path) -> None:
    texts = write(tmp_path / "one.parquet", 100, 20, row_group_size=row_group_size)
    assert list(Shards(str(tmp_path), "text").texts(0, first)) == texts[first:]


@pytest.mark.parametrize("kept_open", [0, MIB])
def test_blocks_are_the_same_whether_a_shard_stays_open(
    kept_open: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write(tmp_path / "one.parquet", 100, 20, row_group_size=30)
    opened: list[str] = []
    own = paged._opened
    monkeypatch.setattr(paged, "_opened", lambda file: opened.append(file) or own(file))
    monkeypatch.setattr(paged, "_KEPT_OPEN", kept_open)
    blocks = list(Shards(str(tmp_path), "text").blocks(0, 24, 12))
    assert [text for block in blocks for text in block] == texts[24:]
    assert [len(block) for block in blocks] == [12] * 6 + [4]
    assert len(opened) == (1 if kept_open else 8)


def test_row_groups_before_a_row_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 64)  # else a look at all of it would find the fault
    texts = write(tmp_path / "one.parquet", 100, 200, row_group_size=50, compression="none", use_dictionary=False)
    whole = bytearray((tmp_path / "one.parquet").read_bytes())
    group = parquet.ParquetFile(tmp_path / "one.parquet").metadata.row_group(1).column(0)
    whole[4 : group.data_page_offset] = bytes(group.data_page_offset - 4)
    (tmp_path / "one.parquet").write_bytes(whole)
    spoilt = Shards(str(tmp_path), "text")
    assert list(spoilt.texts(0, 60)) == texts[60:]
    with pytest.raises(DataError, match=r"shard 0 of the documents breaks off after row 49 "):
        list(spoilt.texts(0, 49))


def test_a_later_file_without_the_column_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 10, 20, row_group_size=10)
    parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no field 'text'; its fields are body"):
        Shards(str(tmp_path), "text")


class TestHub:
    """A folder stands in for a data set of the hub: the `datasets` library finds the files of either alike."""

    @pytest.fixture
    def opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        def opened(at_least: int = 1) -> Shards:
            found = HubDataset(name=str(tmp_path), config=None, split="train")
            monkeypatch.setattr(HubDataset, "identity", lambda self: [self.name])
            monkeypatch.setattr(documents, "find_sources", lambda source, field: [found])
            return Shards("owner/name", "text", at_least=at_least)

        return opened

    def test_parquet_files_are_read_by_pages(self, opened: Any, tmp_path: Path) -> None:
        first = write(tmp_path / "train-0.parquet", 50, 20, row_group_size=20)
        write(tmp_path / "test-0.parquet", 50, 30, row_group_size=20)
        found = opened()
        assert isinstance(found._parts[0], paged.ParquetShards)
        assert len(found) == 1
        assert list(found.texts(0, 7)) == first[7:]
        finer = opened(at_least=2)
        assert [list(finer.texts(shard)) for shard in range(len(finer))] == [first[:20], first[20:40], first[40:]]

    def test_other_files_are_read_by_the_library(self, opened: Any, tmp_path: Path) -> None:
        for shard in range(2):
            lines = [f'{{"text": "{shard} {row}"}}\n' for row in range(10)]
            (tmp_path / f"train-{shard}.jsonl").write_text("".join(lines))
        found = opened()
        assert len(found) == 2
        assert [list(found.blocks(shard, 3, 5)) for shard in range(2)] == [
            [[f"{shard} {row}" for row in range(3, 8)], [f"{shard} {row}" for row in range(8, 10)]]
            for shard in range(2)
        ]

    def test_a_folder_without_data_is_told(self, opened: Any) -> None:
        with pytest.raises(DataError, match="contain any data files"):
            opened()

    def test_a_file_of_an_address_is_fetched_as_it_is_read(self, tmp_path: Path) -> None:
        texts = write(tmp_path / "one.parquet", 50, 20, row_group_size=20)
        fsspec.filesystem("memory").pipe_file("/one.parquet", (tmp_path / "one.parquet").read_bytes())
        assert list(paged.ParquetShards(["memory://one.parquet"], "text").texts(0, 22, "it")) == texts[22:]

"""Files and records that cannot be read: all told at once, or all left out and counted, held against plain loops."""

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from corpora import build_store, open_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tiny_models import byte_tokenizer

from skipwise.config import DataConfig
from skipwise.data.documents import HubDataset, look_through, read_documents
from skipwise.data.documents import sources as documents_sources
from skipwise.data.stream import DocumentStream
from skipwise.errors import DataError

TOKENIZER = byte_tokenizer()
RECORDS: list[Any] = [
    {"text": "a first text"},
    {"text": None},
    {"body": "of another field"},
    None,
    {"text": 5},
    ["text"],
    {},
    {"text": ""},
    {"text": "a last text"},
]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Good files and bad ones, of every kind that can be bad."""
    root = tmp_path / "docs"
    root.mkdir()
    (root / "good.txt").write_text("a good text")
    (root / "latin.txt").write_bytes("sch\xf6n".encode("latin-1"))
    (root / "latin-too.md").write_bytes(b"one\ntwo \xff\n")
    (root / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "{oops\n")
    (root / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "of a cut file"}\n' * 2000)[:-30])
    (root / "no.parquet").write_bytes(b"no table")
    parquet.write_table(pyarrow.table({"other": ["a"]}), root / "other.parquet")
    for name in ("a.ppt", "b.doc", "c.doc"):
        (root / name).write_bytes(b"\0")
    return root


def test_all_that_is_wrong_is_in_one_line(docs: Path) -> None:
    with pytest.raises(DataError) as caught:
        look_through(docs)
    told = str(caught.value)
    assert "\n" not in told
    for words in (
        "2 not UTF-8",
        "latin.txt:1",
        "latin-too.md:2",
        # Two records of the lines and the table without the column.
        "3 no text in the field",
        "lines.jsonl:3 has no field 'text'; its fields are body",
        # A list, and what is no JSON.
        "2 not a valid record",
        "lines.jsonl:6",
        "lines.jsonl:10",
        "2 damaged or incomplete",
        "cut.jsonl.gz",
        "no.parquet",
        "2 .doc, 1 .ppt",
        "data.skip_unreadable=true",
    ):
        assert words in told, words


def test_one_fault_is_told_as_itself_with_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt:1 is not UTF-8 .*; or leave it out by --set data\.skip_unreadable"):
        look_through(tmp_path)


def test_records_of_another_field_are_told_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "Add.", "output": "3"}\n' * 3)
    line = (
        r"3 no text in the field: .*; name the field .* by --set data\.field=NAME \(eval .*: --field NAME\), or leave"
    )
    with pytest.raises(DataError, match=line):
        look_through(tmp_path)
    (tmp_path / "b.jsonl").write_text("{oops\n")
    with pytest.raises(DataError, match=r"; fix them \(name the field .*data\.field=NAME .*\), or leave them out by"):
        look_through(tmp_path)


def _by_hand(docs: Path) -> tuple[list[str], Counter[str]]:
    """The texts that can be read, in order, and how many cannot be."""
    texts, bad = list[str](), Counter[str]()
    for file in sorted(docs.iterdir()):
        if file.suffix in (".txt", ".md"):
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                bad["encoding"] += 1
        elif file.suffix == ".jsonl":
            for line in file.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    bad["record"] += 1
                    continue
                if not record:
                    bad["record"] += isinstance(record, list)
                    texts += [] if isinstance(record, list) else [""]
                elif not isinstance(record, dict):
                    bad["record"] += 1
                elif "text" not in record or not isinstance(record["text"], str | None):
                    bad["field"] += 1
                else:
                    texts.append(record["text"] or "")
        elif file.suffix == ".gz":
            lines = []
            try:
                with gzip.open(file, "rt") as opened:
                    lines += opened
            except EOFError:
                bad["broken"] += 1
            texts += [json.loads(line)["text"] for line in lines if line.endswith("\n")]
        elif file.suffix == ".parquet":
            try:
                names = parquet.read_schema(file).names
                bad["field"] += "text" not in names
            except pyarrow.ArrowInvalid:
                bad["broken"] += 1
    return texts, bad


@pytest.mark.parametrize("hashed_bytes", [1 << 28, 100])
def test_what_can_be_read_is_and_the_rest_is_counted(
    docs: Path, tmp_path: Path, hashed_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", hashed_bytes)
    store = build_store(
        docs, TOKENIZER, skip_unreadable=True, min_tokens=1, cache_dir=tmp_path / "cache", progress=False
    )
    texts, bad = _by_hand(docs)
    assert [TOKENIZER.decode(store.document(i)) for i in range(store.num_documents)] == [text for text in texts if text]
    assert store.counts.dropped_empty == sum(not text for text in texts)
    assert {kind: entry["number"] for kind, entry in store.passed_over.items()} == +bad
    assert store.passed_over["encoding"]["named"] == [str(docs / "latin-too.md:2"), str(docs / "latin.txt:1")]
    # Who asks for the same without leave is not given what another start has left out.
    with pytest.raises(DataError, match="some documents cannot be read"):
        build_store(docs, TOKENIZER, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)


def test_what_is_left_out_is_counted_over_all_parts(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipwise.data.corpus import building

    monkeypatch.setattr(building, "_PART_BYTES", 1)
    store = build_store(docs, TOKENIZER, skip_unreadable=True, min_tokens=1, cache_dir=tmp_path, progress=False)
    assert {kind: entry["number"] for kind, entry in store.passed_over.items()} == +_by_hand(docs)[1]


def test_faults_beyond_the_samples_of_a_large_source_are_all_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 1000)
    monkeypatch.setattr(documents_sources, "_SAMPLED_BYTES", 100)
    for name in "abc":
        lines = [json.dumps({"text": f"text {i} of {name}"}) for i in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "{oops"] if name != "b" else lines))
    look_through(tmp_path)
    with pytest.raises(DataError, match=r"2 not a valid record: .*a\.jsonl:101.*c\.jsonl:101"):
        build_store(tmp_path, TOKENIZER, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=30),
    at_most=st.integers(2, 200),
)
def test_a_look_at_the_beginning_raises_no_false_alarm(
    texts: list[str], at_most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever a file is cut, in a character, a line or a compressed block, what is good is good."""
    root = tmp_path_factory.mktemp("cut")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (root / "a.jsonl").write_bytes(lines)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pyarrow.output_stream(str(root / "c.jsonl.zst"), compression="zstd") as out:
        out.write(lines)
    (root / "d.txt").write_bytes("\n".join(texts).encode() or b" ")
    parquet.write_table(pyarrow.table({"text": texts}), root / "e.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_sources.LocalFiles, "_choose_samples", _samples(at_most))
        assert look_through(root).sources


def _samples(at_most: int) -> Any:
    def choose(found: Any) -> None:
        found._is_small, found._sampled_bytes = False, at_most

    return choose


def test_a_misspelt_source_is_never_left_out(docs: Path) -> None:
    with pytest.raises(DataError) as caught:
        look_through([str(docs / "good.txt"), "no/such/one/here", "nor*this"], skip_unreadable=True)
    assert all(words in str(caught.value) for words in ("2 no documents there", "no/such/one/here", "nor*this"))
    assert "skip_unreadable" not in str(caught.value)


def test_named_files_of_other_kinds_are_told_together(docs: Path) -> None:
    asked = [str(docs / name) for name in ("good.txt", "a.ppt", "b.doc")]
    with pytest.raises(DataError, match=r"2 of an unsupported kind: .*a\.ppt .*b\.doc"):
        look_through(asked)
    assert [len(found.faults) for found in look_through(asked, skip_unreadable=True).sources] == [0, 1, 1]


# A record, a field, and its text; None where it has none.
NESTED: list[tuple[Any, str, str | None]] = [
    ({"a": {"b": "deep"}}, "a.b", "deep"),
    ({"a.b": "literal", "a": {"b": "deep"}}, "a.b", "literal"),
    ({"a": {}}, "a.b", ""),
    ({"a": {"b.c": "half"}}, "a.b.c", "half"),
    ({"a": {"b": {"c": "deeper"}}}, "a.b.c", "deeper"),
    ({"a": {"b": None}}, "a.b", ""),
    ({"a": None}, "a.b", ""),
    ({"a": {"c": "x"}}, "a.b", None),
    ({"a": "text"}, "a.b", None),
    ({"a": {"b": 5}}, "a.b", None),
]


@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize(("record", "field", "expected"), NESTED)
def test_a_field_inside_a_field(record: Any, field: str, expected: str | None, is_table: bool, tmp_path: Path) -> None:
    if not is_table:
        (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    elif isinstance(record["a"], dict) and record["a"]:
        parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "x.parquet")
    else:
        return  # A table holds structures with something in them.
    if expected is None:
        with pytest.raises(DataError, match=rf"field '({field}|a)'"):
            list(read_documents(tmp_path, field=field))
        return
    assert [document.text for document in read_documents(tmp_path, field=field)] == [expected]
    if is_table and expected:
        data = DataConfig(source=str(tmp_path), field=field, held_out=0.0)
        taken = open_stream(data, TOKENIZER, lanes=1, seed=0).take(0, 0, min_tokens=1)
        assert TOKENIZER.decode(taken.tokens) == expected


def test_null_rows_are_empty_documents_and_suggest_no_other_field(tmp_path: Path) -> None:
    texts = ["one", None, "two", None, ""]
    parquet.write_table(pyarrow.table({"text": texts, "body": ["x"] * 5}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text, "body": "x"}) + "\n" for text in texts))
    store = build_store(tmp_path, TOKENIZER, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)
    assert (store.counts.kept, store.counts.dropped_empty) == (4, 6)

    (tmp_path / "nulls").mkdir()
    parquet.write_table(pyarrow.table({"text": pyarrow.nulls(3), "body": ["x"] * 3}), tmp_path / "nulls" / "a.parquet")
    with pytest.raises(DataError, match=r"all 3 documents .* are empty; give documents with text") as caught:
        build_store(tmp_path / "nulls", TOKENIZER, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)
    assert "body" not in str(caught.value)
    assert "field" not in str(caught.value)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, list[str], int, int]:
    """Parquet files with null rows, and rows whose bytes are not UTF-8: the folder, the texts, and how many of each."""
    rng = np.random.default_rng(1)
    good, nulls, bad = list[str](), 0, 0
    for shard in range(3):
        rows: list[bytes | None] = []
        for row in range(20):
            kind = rng.integers(4)
            text = f"text {row} of shard {shard}"
            rows.append([text.encode(), text.encode(), None, b"\xff" + text.encode()][kind])
            good += [text] if kind < 2 else []
            nulls += int(kind == 2)
            bad += int(kind == 3)
        # Arrow takes any bytes for a string without a look, as writers of other languages do.
        column = pyarrow.array(rows, pyarrow.binary()).view(pyarrow.string())
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{shard}.parquet", row_group_size=8)
    return tmp_path, good, nulls, bad


def _all_taken(stream: DocumentStream, steps: range) -> list[str]:
    return [str(TOKENIZER.decode(stream.take(0, step, min_tokens=1).tokens)) for step in steps]


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_a_stream_goes_on_without_what_cannot_be_read(shards: tuple[Path, list[str], int, int], lanes: int) -> None:
    folder, good, nulls, bad = shards
    data = DataConfig(source=str(folder), held_out=0.0, skip_unreadable=True, buffer=6)
    stream = open_stream(data, TOKENIZER, lanes=lanes, seed=3)
    found: list[str] = []
    for lane in range(lanes):
        step = 0
        while (document := stream.take(lane, step, min_tokens=1)).begins.epoch == 0:
            found.append(str(TOKENIZER.decode(document.tokens)))
            step += 1
    assert sorted(found) == sorted(good)
    counts = stream.counts().values()
    assert (sum(len(lane.unreadable) for lane in counts), sum(lane.empty for lane in counts)) == (bad, nulls)
    with pytest.raises(DataError, match=r"not UTF-8"):
        open_stream(data.model_copy(update={"skip_unreadable": False}), TOKENIZER, lanes=lanes, seed=3)


def test_a_stream_of_a_large_source_says_how_to_go_on(
    shards: tuple[Path, list[str], int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 1)
    stream = open_stream(DataConfig(source=str(shards[0]), held_out=0.0), TOKENIZER, lanes=1, seed=3)
    with pytest.raises(DataError, match=r"row \d+ of shard \d is not UTF-8 .*data\.skip_unreadable=true"):
        _all_taken(stream, range(100))


def test_a_stream_leaves_out_files_that_are_no_tables(shards: tuple[Path, list[str], int, int]) -> None:
    folder, good, _, _ = shards
    (folder / "3.parquet").write_bytes(b"no table")
    parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "4.parquet")
    data = DataConfig(source=str(folder), held_out=0.0, skip_unreadable=True)
    stream = open_stream(data, TOKENIZER, lanes=1, seed=3)
    assert stream.num_shards == 3
    assert set(_all_taken(stream, range(len(good)))) == set(good)


def test_of_a_hub_data_set_the_first_row_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(HubDataset, "identity", lambda found: [found.name])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"body": "x"}, {"text": "y"}]))
    with pytest.raises(DataError, match=r"owner/name:train:1 has no field 'text'; its fields are body"):
        look_through("owner/name")
    looked = look_through("owner/name", skip_unreadable=True)
    assert [document.text for document in looked.documents()] == ["y"]


def test_an_error_goes_from_one_process_to_another() -> None:
    with pytest.raises(DataError) as caught:
        list(read_documents("no/such/one/here"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

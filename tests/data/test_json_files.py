"""JSON files: arrays of records and single records, as data sets are published; other JSON files are no documents."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard

from skipwise.data.documents import find_sources, look_through, read_documents
from skipwise.data.formats import records
from skipwise.errors import DataError

SHARE_GPT = [
    {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"id": "b", "conversations": [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Farewell"}]},
]
ALPACA = [{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Go.", "input": "", "output": "No"}]


def write(path: Path, value: Any, **how: Any) -> Path:
    path.write_text(json.dumps(value, **how))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_record_by_record(tmp_path: Path, suffix: str, indent: int | None) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    file = tmp_path / f"a.json{suffix}"
    file.write_bytes(compress(json.dumps(ALPACA, indent=indent).encode()))
    found = [(document.name, document.text) for document in read_documents(file, field="output")]
    assert found == [(f"a.json{suffix}:1", "3"), (f"a.json{suffix}:2", "No")]


def test_one_record_and_null_records(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", {"text": "alone"}, indent=1)
    nulls = write(tmp_path / "nulls.json", [None, {"text": "second"}, {"text": None}])
    assert [document.text for document in read_documents(one)] == ["alone"]
    assert [document.text for document in read_documents(nulls)] == ["", "second", ""]
    assert [document.text for document in read_documents(tmp_path)] == ["", "second", "", "alone"]


def test_conversations_are_found_in_them(tmp_path: Path) -> None:
    looked = look_through(write(tmp_path / "a.json", SHARE_GPT), format="auto")
    assert looked.are_conversations
    first = json.loads(next(looked.documents()).text)
    assert first["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_other_json_files_of_a_folder_are_passed_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "chats.json", SHARE_GPT)
    write(tmp_path / "package.json", {"name": "a", "version": "1"}, indent=2)
    write(tmp_path / "numbers.json", [1, 2])
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "tsconfig.json").write_text("{ // a comment\n}")
    write(tmp_path / "tokenizer.json.gz", {})
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress(b'{"model": {}}'))
    with caplog.at_level(logging.WARNING):
        looked = look_through(tmp_path, format="auto")
    assert [file.name for file in looked.files()] == ["chats.json"]
    assert "files of unsupported kinds are skipped: 5 .json" in caplog.text
    (found,) = find_sources(str(tmp_path / "*.json"))
    assert found.passed_over == {".json": 4}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"name": "a", "version": "1"}', r"p\.json has no field 'text'; its fields are name, version; .*data\.field="),
        ("[1]", r"p\.json:1 holds a int; it must be an array of records"),
        ('"text"', r"p\.json holds a str; it must be an array of records \(JSON objects\), or one record"),
        ("[]", r"p\.json holds no records; it must be an array of records"),
        (" ", r"p\.json is empty; it must be an array of records"),
        ('[{"text": "a"},\n {"text"', r"p\.json is not JSON \(Expecting ':' delimiter, line 2, column 9\); fix it or"),
        ('[{"text": "\\ud800"}]', r"p\.json:1 has a lone surrogate"),
    ],
)
def test_a_file_that_is_named_is_refused_with_what_is_expected(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=told):
        look_through(tmp_path / "p.json")


def test_a_broken_array_in_a_folder_is_no_other_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"te')
    with pytest.raises(DataError, match=r"cut\.json is not JSON"):
        look_through(tmp_path)


def test_one_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MOST_BYTES", 40)
    write(tmp_path / "a.json", [{"text": "long " * 20}])
    with pytest.raises(DataError, match=r"a\.json is larger than .*write it as \.jsonl"):
        look_through(tmp_path / "a.json")
    (tmp_path / "a.json").rename(tmp_path / "b.json.gz")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress((tmp_path / "b.json.gz").read_bytes()))
    monkeypatch.setattr(records, "_MOST_BYTES", (tmp_path / "b.json.gz").stat().st_size + 1)
    with pytest.raises(DataError, match=r"b\.json\.gz is larger than "):
        look_through(tmp_path / "b.json.gz")


def test_an_array_in_a_line_is_told_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ALPACA)
    with pytest.raises(DataError, match=r"a\.jsonl:1 holds a list; .*one record a line, or .*array \.json"):
        look_through(tmp_path / "a.jsonl")

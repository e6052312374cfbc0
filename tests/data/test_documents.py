"""Documents: every kind of source, in a fixed order, and messages that name file and line."""

import gzip
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from refusals import refused

from skipwise.data.documents import Document, HubDataset, find_sources, is_held_out, read_documents, stdlib_documents
from skipwise.errors import DataError

TEXTS = ["First text.", "Zweiter Text: äöü €.", "third\ntext"]


def _lines(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text, "id": i}).encode() + b"\n" for i, text in enumerate(texts))


def _parquet(**columns: Any) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), written)
    return written.getvalue()


def _read(source, **options) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read_documents(source, **options)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_and_texts_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    file = tmp_path / f"a.jsonl{suffix}"
    # Two members or frames one after another, as parallel compressors write them; and a blank line.
    file.write_bytes(compress(_lines(TEXTS[:1]) + b"\n") + compress(_lines(TEXTS[1:])))
    assert _read(file) == [(f"{file.name}:{line}", text) for line, text in zip([1, 3, 4], TEXTS, strict=True)]
    file = tmp_path / f"a.md{suffix}"
    file.write_bytes(compress("\ufeffone\r\ntwo ä\n".encode()))
    assert _read(str(file)) == [(file.name, "one\ntwo ä\n")]


def test_parquet_over_several_row_groups(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(700)]
    table = pyarrow.table({"body": texts, "other": list(range(700))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert _read(tmp_path / "a.parquet", field="body") == [
        (f"a.parquet:{row}", text) for row, text in enumerate(texts, start=1)
    ]


def test_html_becomes_what_a_reader_sees(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<html><head><title>T</title><style>p {}</style></head><body><nav>Menu</nav><h1>Head &amp; more</h1>"
        "<p>One <b>bold</b>\n   word.<p>Two<script>x()</script><pre>a\n   b\n</pre><ul><li>x<li>y</ul></body></html>"
    )
    assert _read(tmp_path) == [("a.html", "Head & more\nOne bold word.\nTwo\na\n   b\nx\ny")]


def test_folder_mixes_kinds_and_counts_the_others(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "b" / "x.jsonl").write_bytes(_lines(TEXTS[:2]))
    (tmp_path / "b" / "y.py").write_text("pass\n")
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "empty.rst").write_text("")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "Makefile").write_text("all:")
    expected = [
        ("a.txt", "a text"),
        ("empty.rst", ""),
        ("b/x.jsonl:1", TEXTS[0]),
        ("b/x.jsonl:2", TEXTS[1]),
        ("b/y.py", "pass\n"),
    ]
    assert _read(tmp_path) == expected
    [source] = find_sources(tmp_path)
    assert source.passed_over == {".png": 1, "no suffix": 1}


def test_globs_name_documents_from_where_the_pattern_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/a.jsonl", "two/b.jsonl", "two/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(_lines(TEXTS[:1]))
    assert [name for name, _ in _read(f"{tmp_path}/*/*.jsonl")] == ["one/a.jsonl:1", "two/b.jsonl:1"]
    assert [name for name, _ in _read(f"{tmp_path}/t*")] == ["two/b.jsonl:1", "two/c.txt"]
    assert [name for name, _ in _read(f"{tmp_path}/**")] == ["one/a.jsonl:1", "two/b.jsonl:1", "two/c.txt"]
    assert [name for name, _ in _read(f"{tmp_path}/**/*.txt")] == ["two/c.txt"]
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in _read("one/*.jsonl")] == ["a.jsonl:1"]


def test_a_list_is_read_in_its_order(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert _read([tmp_path / "b.txt", str(tmp_path / "a.txt")]) == [("b.txt", "b.txt"), ("a.txt", "a.txt")]


def test_the_standard_library_reads_alike_both_ways() -> None:
    documents = list(stdlib_documents())
    assert len(documents) > 300
    assert list(read_documents("stdlib")) == documents
    assert all(isinstance(document, Document) and not document.name.startswith("/") for document in documents)


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_lines(TEXTS) + b"{broken\n")
    documents = read_documents(tmp_path)
    assert [next(documents).text for _ in TEXTS] == TEXTS
    with pytest.raises(DataError):
        next(documents)


BAD_FILES = {
    "broken.jsonl": (_lines(TEXTS) + b'{"text": "a\n', ":4 .*JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"]" * 100_000 + b"\n", ":1 .*JSON.*deep"),
    "digits.jsonl": (_lines(TEXTS[:1]) + b'{"id": ' + b"9" * 5000 + b"}\n", ":2 .*JSON.*long"),
    "scalar.jsonl": (_lines(TEXTS[:1]) + b'"text"\n', ":2 .* str"),
    "missing.jsonl": (_lines(TEXTS[:2]) + b'{"body": "a", "id": 1}\n', ":3 .*'text'.* body, id"),
    "number.jsonl": (b'{"text": 5}\n', ":1 .* int .*'text'"),
    "surrogate.jsonl": (b'{"text": "a \\ud83d b"}\n', ":1 .*surrogate"),
    "latin.jsonl": (_lines(TEXTS[:1]) + b'{"text": "\xe4"}\n', ":2 .*UTF-8.* 11 .* 0xe4"),
    "latin.txt": (b"one\ntwo\nthr\xe4\n", ":3 .*UTF-8.* 4 "),
    "empty.jsonl": (b"\n\n", " is empty"),
    "cut.jsonl.gz": (gzip.compress(_lines(TEXTS * 500))[:-40], r" .*line \d+"),
    "cut.jsonl.zst": (zstandard.ZstdCompressor().compress(_lines(TEXTS * 500))[:-40], r" .*line \d+"),
    "wrong.jsonl.gz": (b"no gzip at all", " .*line 0"),
    "wrong.parquet": (b"no parquet at all", " .*Parquet"),
    "other.parquet": (_parquet(body=["a"]), " .*'text'.* body"),
    "numbers.parquet": (_parquet(text=[1, 2]), " .*int64 .*'text'"),
    "no-rows.parquet": (_parquet(text=pyarrow.array([], pyarrow.string())), " is empty"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_content_names_file_and_line(tmp_path: Path, name: str) -> None:
    content, named = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    with refused(DataError, re.escape(str(tmp_path / name)) + named):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("name", "alone", "named"),
    [("a.txt", True, r"a\.txt"), ("a.doc", True, r"a\.doc .* \.jsonl"), ("a.doc", False, r" 1 \.doc")],
)
def test_files_without_text_are_refused_by_name(tmp_path: Path, name: str, alone: bool, named: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=named):
        _read(tmp_path / name if alone else tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DataError, match=r"a\.txt"):
        _read(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder/at/all", "missing.txt/", "nothing*here", "", "/absolute", []])
def test_what_is_no_source_says_what_is(source) -> None:
    with pytest.raises(DataError, match=r"stdlib$"):
        _read(source)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:config-1:validation", ("owner/name", "config-1", "validation")),
        ("wikitext:wikitext-2-raw-v1:test", ("wikitext", "wikitext-2-raw-v1", "test")),
    ],
)
def test_hub_names(name: str, expected: tuple[str, str | None, str]) -> None:
    config = HubDataset(name=expected[0], config=expected[1], split=expected[2])
    assert find_sources(name) == [config]


@pytest.mark.parametrize(
    ("third", "named"),
    [
        ({"body": "three"}, "owner/name:small:test:3 .*'text'"),
        (ConnectionError("connection\nreset"), r"'owner/name:small:test' .* row 2 \(connection reset\)"),
    ],
)
def test_hub_rows_are_streamed_up_to_what_cannot_be_read(third, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        yield from ({"text": "one"}, {"text": "two"})
        if isinstance(third, Exception):
            raise third
        yield third

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = read_documents("owner/name:small:test")
    found = [next(documents) for _ in range(2)]
    assert [(each.name, each.text) for each in found] == [
        ("owner/name:small:test:1", "one"),
        ("owner/name:small:test:2", "two"),
    ]
    assert asked == [(("owner/name", "small"), {"split": "test", "streaming": True})]
    with refused(DataError, named):
        next(documents)


def test_an_unreachable_hub_says_so() -> None:
    with refused(DataError, "'owner/name:train'"):
        _read("owner/name")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\n")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"b\.txt"):
        _read(tmp_path)


def test_a_document_is_the_same_one_however_its_source_is_written(tmp_path: Path) -> None:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "docs" / "sub" / "a.txt").write_text("one text\n")
    (tmp_path / "lines.jsonl").write_bytes(_lines(["one text"]))
    sources = [tmp_path / "docs", tmp_path / "docs" / "sub", f"{tmp_path}/docs/*/*.txt", tmp_path / "lines.jsonl"]
    documents = [document for source in sources for document in read_documents(source)]
    assert len({document.name for document in documents}) == 3
    assert {document.identity for document in documents} == {"one text"}


def test_the_standard_library_goes_by_its_modules() -> None:
    # The demo's base model was trained on all of it but what these names hold out.
    documents = {document.name: document for document in stdlib_documents()}
    assert all(document.identity == name for name, document in documents.items())
    held_out = {name for name, document in documents.items() if is_held_out(document.identity)}
    assert {"abc.py", "asyncio/events.py"} <= documents.keys() - held_out
    assert {"bz2.py", "calendar.py", "asyncio/subprocess.py"} <= held_out


def test_held_out_depends_on_the_identity_alone() -> None:
    names = [f"a.jsonl:{line}" for line in range(20_000)]
    held_out = [is_held_out(name) for name in names]
    assert abs(sum(held_out) / len(names) - 0.1) < 0.01
    assert held_out == [is_held_out(name, 0.1) for name in names]
    assert not any(is_held_out(name, 0.0) for name in names)
    assert all(is_held_out(name, 1.0) for name in names)
    assert {name for name in names if is_held_out(name, 0.02)} < {name for name in names if is_held_out(name, 0.1)}

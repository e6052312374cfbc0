"""Corpus: what is kept and why, stores that are built once, and stores that are never half-used."""

import json
import multiprocessing
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import build_store, write_store
from tiny_models import BEGIN, END, byte_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from skipwise.data import tokens as tokenizing
from skipwise.data.corpus import Counts, TokenStore
from skipwise.data.documents import is_held_out
from skipwise.data.documents import sources as documents_sources
from skipwise.data.store import StoreWriter, TokenFiles, files, writer
from skipwise.errors import DataError

TOKENIZER = byte_tokenizer()


def _lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def _write_lines(file: Path, texts: list[str]) -> Path:
    file.write_text(_lines(texts), encoding="utf-8")
    return file


TEXTS = ["abcdef", "ab", "", "  \n", "Grüße", "xyz", "0123456789"]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., TokenStore]:
    def build(source: Path | str, tokenizer=TOKENIZER, min_tokens: int = 4, **options) -> TokenStore:
        options = {"cache_dir": tmp_path / "cache", "num_workers": 2, "progress": False} | options
        return build_store(source, tokenizer, min_tokens=min_tokens, **options)

    return build


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _write_lines(tmp_path / "a.jsonl", TEXTS)


def _texts(store: TokenStore) -> list[str]:
    return [str(TOKENIZER.decode(store.document(i))) for i in range(store.num_documents)]


def test_long_documents_are_kept_and_the_others_counted(build, source: Path) -> None:
    store = build(source)
    assert _texts(store) == ["abcdef", "Grüße", "0123456789"]
    assert list(store.names) == ["a.jsonl:1", "a.jsonl:5", "a.jsonl:7"]
    assert store.names[1:] == ["a.jsonl:5", "a.jsonl:7"]
    assert store.counts == Counts(
        seen=7, kept=3, documents=3, dropped_short=2, dropped_empty=2, other_part=0, tokens=23, files_passed_over=0
    )
    assert (store.shortest_tokens, store.min_tokens, store.separator_id) == (6, 4, None)
    with pytest.raises(IndexError, match="document 3"):
        store.document(3)


def test_tokens_are_the_tokenizers_own_in_any_number_of_threads(tmp_path: Path, build, monkeypatch) -> None:
    texts = [f"document {i}: " + "wörd " * (i % 17) for i in range(500)]
    source = _write_lines(tmp_path / "a.jsonl", texts)
    monkeypatch.setattr("skipwise.data.documents.threads._BATCH_DOCUMENTS", 7)
    stores = [build(source, num_workers=workers, cache_dir=tmp_path / str(workers)) for workers in (1, 3)]
    for store in stores:
        for i, text in enumerate(texts):
            np.testing.assert_array_equal(store.document(i), TOKENIZER(text).input_ids)
    assert stores[0].fingerprint == stores[1].fingerprint


def test_documents_open_and_never_close_as_the_model_saw_them(build, source: Path) -> None:
    store = build(source, byte_tokenizer(begin=True, end=True))
    assert store.document(0).tolist() == [BEGIN, *TOKENIZER("abcdef").input_ids]
    assert "<end>" not in _texts(store)[0]


def test_truncation_left_on_a_tokenizer_does_not_count(build, source: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer("abcdef", truncation=True, max_length=2)
    assert build(source, tokenizer).document(0).tolist() == TOKENIZER("abcdef").input_ids
    assert build(source, tokenizer).folder == build(source).folder


def test_token_ids_take_the_smallest_type_that_holds_them(build, source: Path) -> None:
    def store(num_ids: int) -> TokenStore:
        vocabulary = {f"word{i}": i for i in range(num_ids - 1)} | {"?": num_ids - 1}
        engine = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
        return build(source, PreTrainedTokenizerFast(tokenizer_object=engine), min_tokens=1)

    assert store(65_536).document(0).dtype == np.uint16
    assert store(65_537).document(0).dtype == np.uint32


def test_documents_are_views_of_a_read_only_map(build, source: Path) -> None:
    document = build(source).document(0)
    assert not document.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        document[0] = 1


def test_short_documents_join_in_order_with_a_separator(build, source: Path) -> None:
    store = build(source, min_tokens=6, join=True)
    # "ab" and "xyz" are short; with the separator they have six tokens. "Grüße" has seven bytes.
    assert _texts(store) == ["abcdef", "Grüße", "ab<end>xyz", "0123456789"]
    assert list(store.names) == ["a.jsonl:1", "a.jsonl:5", "a.jsonl:2", "a.jsonl:7"]
    assert store.separator_id == END
    assert (store.counts.kept, store.counts.documents, store.counts.dropped_short) == (5, 4, 0)


def test_parts_never_overlap_and_make_up_the_whole(tmp_path: Path, build) -> None:
    source = _write_lines(tmp_path / "a.jsonl", [f"document {i}" for i in range(300)])
    everything, train, held_out = (build(source, part=part) for part in ("all", "train", "held_out"))
    assert sorted([*train.names, *held_out.names]) == sorted(everything.names)
    assert all(is_held_out(text) for text in _texts(held_out))
    assert not any(is_held_out(text) for text in _texts(train))
    assert train.counts.other_part == held_out.counts.kept > 0
    assert build(source, part="held_out", held_out_share=0.5).num_documents > 2 * held_out.num_documents
    joined = [
        text
        for document in _texts(build(source, part="train", join=True, min_tokens=60))
        for text in document.split("<end>")
    ]
    assert set(joined) <= set(_texts(train)), "nor where they are joined"


def test_the_second_start_does_not_tokenize(build, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(source)

    def fail(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tokenizing.Encoder, "encode", fail)
    second = build(source)
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)
    # Neither another window nor the other part nor joining.
    for options in ({"min_tokens": 7}, {"part": "train", "held_out_share": 0.3}, {"join": True}):
        assert build(source, **options).folder == first.folder
    with pytest.raises(AssertionError, match="tokenized again"):
        build(source, byte_tokenizer(begin=True))


def test_the_fingerprint_changes_with_what_is_shown(build, source: Path) -> None:
    stores = [
        build(source),
        build(source, min_tokens=7),
        build(source, join=True),
        build(source, min_tokens=7, join=True),
        build(source, part="held_out", held_out_share=0.6),
        build(source, byte_tokenizer(begin=True)),
    ]
    assert build(source, min_tokens=5).fingerprint == stores[0].fingerprint, "the same documents are long enough"
    source.write_text(source.read_text().replace("abcdef", "abcdeg"))
    stores.append(build(source))
    assert len({store.fingerprint for store in stores}) == len(stores)


def test_a_change_that_leaves_size_and_time_is_noticed(build, source: Path) -> None:
    before, status = build(source), source.stat()
    source.write_text(source.read_text().replace("abcdef", "abcdeg"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    after = build(source)
    assert after.folder != before.folder
    assert _texts(after)[0] == "abcdeg"


def test_the_same_content_is_found_again_elsewhere(tmp_path: Path, build, source: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / source.name
    moved.write_bytes(source.read_bytes())
    assert build(moved).folder == build(source).folder
    renamed = source.rename(tmp_path / "other.jsonl")
    assert build(renamed).folder != build(moved).folder, "names are in the store"
    assert build(renamed).fingerprint == build(moved).fingerprint


def test_large_sources_are_known_by_samples_and_their_place(tmp_path: Path, build, source: Path, monkeypatch) -> None:
    monkeypatch.setattr(documents_sources, "_HASHED_BYTES", 64)
    monkeypatch.setattr(documents_sources, "_SAMPLED_BYTES", 20)
    first, status, lines = build(source), source.stat(), source.read_text()
    assert len(lines) > 64

    def folder_with(text: str, *, later: int = 0) -> Path:
        source.write_text(text)
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + later))
        return build(source).folder

    assert folder_with(lines) == first.folder
    assert folder_with(lines.replace("abcdef", "abcdeg")) != first.folder, "in the first bytes"
    assert folder_with(lines.replace("6789", "6780")) != first.folder, "in the last bytes"
    assert folder_with(lines.replace("xyz", "xyy"), later=1) != first.folder, "by its time"
    assert folder_with(lines.replace("xyz", "xyy")) == first.folder, "what no sample shows, as documented"


FILES = ["tokens", "offsets", "splits", "digests", "origins", "files", "file_offsets", "sentence_ends"]


@pytest.mark.parametrize("name", ["meta.json", *(f"{name}.bin" for name in FILES)])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_store_is_built_again(build, source: Path, name: str, damage: str) -> None:
    folder = build(source).folder
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert before.keys() == {"meta.json", *(f"{name}.bin" for name in FILES)}
    if damage == "gone":
        (folder / name).unlink()
    elif damage == "cut":
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    else:
        (folder / name).write_bytes(bytes([before[name][0] ^ 1]) + before[name][1:])
    with pytest.raises(DataError, match=re.escape(str(folder))):
        TokenFiles(folder).verify()
    assert build(source).folder == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_of_a_large_store_samples_are_verified(build, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 8)
    folder = build(source).folder
    sampled = []
    monkeypatch.setattr(files.random, "sample", lambda blocks, number: sampled.append(number) or blocks[:number])
    TokenFiles(folder).verify()
    assert sampled == [16]
    (folder / "tokens.bin").write_bytes(bytes((folder / "tokens.bin").stat().st_size))
    with pytest.raises(DataError, match=re.escape(str(folder))):
        TokenFiles(folder).verify()
    assert _texts(build(source)) == ["abcdef", "Grüße", "0123456789"]


def test_an_interrupted_build_leaves_nothing(build, source: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(source)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]
    assert _texts(build(source)) == ["abcdef", "Grüße", "0123456789"]


def _build_and_die(source: Path, cache: Path) -> None:
    def die(*_: object, **__: object) -> None:
        os._exit(9)

    StoreWriter.finish = die  # type: ignore[method-assign]
    build_store(source, byte_tokenizer(), min_tokens=4, cache_dir=cache, progress=False)


def test_what_a_killed_build_left_is_never_used(build, source: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(source, tmp_path / "cache"))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert any(file.suffix == ".partial" for file in (tmp_path / "cache").iterdir())
    assert _texts(build(source)) == ["abcdef", "Grüße", "0123456789"]
    assert not any(file.suffix == ".partial" for file in (tmp_path / "cache").iterdir())


def _build_and_tell(source: Path, cache: Path, results) -> None:
    tokenized = []
    encode = tokenizing.Encoder.encode
    tokenizing.Encoder.encode = lambda self, texts: tokenized.append(len(texts)) or encode(self, texts)  # type: ignore
    store = build_store(source, byte_tokenizer(), min_tokens=4, cache_dir=cache, progress=False)
    results.put((store.fingerprint, sum(tokenized)))


def test_processes_that_start_together_build_once(source: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_build_and_tell, args=(source, tmp_path / "cache", results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert sorted(tokenized for _, tokenized in answers) == [0, 0, 5]


class Slow:
    is_fast = False


@pytest.mark.parametrize(
    ("content", "options", "named"),
    [
        (_lines(TEXTS), {"min_tokens": 100}, r" 100 .* 5, a\.jsonl:7, has 10: .*min_tokens"),
        (_lines(TEXTS), {"min_tokens": 100, "join": True}, r" joined; .* a\.jsonl:7, has 10"),
        (_lines(["", " "]), {}, r" 2 .*a\.jsonl:2"),
        (_lines(["a text"]), {"part": "held_out", "held_out_share": 0.0}, r"held_out_share=0\.0"),
        (_lines(["long enough"] * 5) + "{oops\n", {}, r"a\.jsonl:6"),
        (_lines(TEXTS), {"tokenizer": byte_tokenizer(named=False), "join": True}, "end or begin token"),
        (_lines(TEXTS), {"tokenizer": Slow()}, "Slow"),
    ],
)
def test_what_gives_no_documents_is_refused_and_named(tmp_path: Path, build, content, options: dict, named) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=named):
        build(tmp_path / "a.jsonl", **options)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_the_cache_folder_can_be_set_by_the_environment(build, source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "elsewhere"))
    assert build(source, cache_dir=None).folder.parent == tmp_path / "elsewhere"


def test_a_store_travels_to_another_process_by_its_path(build, source: Path) -> None:
    store = build(source)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert _texts(pickle.loads(sent)) == _texts(store)


def test_sentence_ends_are_known_for_every_token(build, source: Path) -> None:
    ends = build(source).sentence_ends
    assert ends.shape == (258,)
    assert {str(TOKENIZER.decode([i])) for i in np.flatnonzero(ends == 1).tolist()} == {".", "!", "?", "\n"}


def test_names_of_all_shapes_come_back(tmp_path: Path) -> None:
    names = ["a.txt", "dir/b.jsonl:1", "dir/b.jsonl:22", "ü.txt", "c:0", "c:07", "d:", ":5", "hub/x:train:10000000000"]
    documents = [[i % 1000] * (i % 3 + 1) for i in range(9000)]
    store = TokenStore(write_store(tmp_path, documents, names=names * 1000))
    assert list(store.names) == names * 1000
    assert all(store.document(i).tolist() == documents[i] for i in range(0, 9000, 7))


def test_a_hub_data_set_is_known_by_its_commit(build, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    class Hub:
        sha = "one"

        def dataset_info(self, name: str) -> "Hub":
            return self

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"text": "abcdef"}, {"text": "ab"}]))
    first = build("owner/name:test")
    assert list(first.names) == ["owner/name:test:1"]
    assert build("owner/name:test").folder == first.folder
    monkeypatch.setattr(Hub, "sha", "two")
    assert build("owner/name:test").folder != first.folder


def test_progress_is_shown_on_stderr_when_asked_for(build, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(source)
    assert capfd.readouterr() == ("", "")
    build(source, byte_tokenizer(begin=True), progress=True)
    out, err = capfd.readouterr()
    assert (out, "Tokenizing: 100%" in err) == ("", True)


def test_the_modules_do_without_torch_and_transformers(fresh_python: Callable[[str], None]) -> None:
    fresh_python("import sys, skipwise.data.items; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)")

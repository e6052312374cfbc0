"""Documents of a run: looked at before anything is loaded, and held out by an end where whole ones do not suffice."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from corpora import build_store
from pyarrow import parquet
from refusals import lines_of
from tiny_runs import WORDS, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise import cli
from skipwise.cli.evaluate_documents import held_out_of
from skipwise.config import RunConfig
from skipwise.data.documents import is_held_out
from skipwise.data.items import TrainingItems
from skipwise.errors import DataError


def _texts(number: int, words: int, held_out: bool = False, seed: int = 0) -> list[str]:
    """Random texts, all held out at a share of 0.2 or none."""
    rng, found = np.random.default_rng(seed), list[str]()
    while len(found) < number:
        text = " ".join(rng.choice(WORDS, size=words))
        if is_held_out(text, 0.2) == held_out:
            found.append(text)
    return found


def _written(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    folder = _written(tmp_path / "docs", _texts(8, 60))
    (folder / "latin.txt").write_bytes(b"\xe4" * 20)
    (folder / "shift-jis.txt").write_bytes("これは日本語で書かれた、とても短い文書です。".encode("cp932"))
    (folder / "lines.jsonl").write_text('{"text": "one text"}\n{"body": "no text"}\n{"text": null}\n')
    for name in ("a.ppt", "b.doc", "c.doc"):
        (folder / name).write_bytes(b"\0")
    return folder


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("something was loaded"))


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("verb", ["extend", "eval", "build-suite"])
def test_all_problems_are_told_before_anything_is_loaded(
    verb: str, settings: dict[str, Any], bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = settings["model"]
    asked = {
        "extend": ["extend", model, "--target", "256", "--output", settings["output"], "--data", str(bad)],
        "eval": ["eval", model, "--task", "perplexity", "--length", "64", "--documents", str(bad)],
        "build-suite": ["eval", "build-suite", str(bad), "--tokenizer", model, "--length", "64"],
    }[verb]
    if verb == "build-suite":
        asked += ["--out", settings["output"]]
    assert cli.main(asked) == 2
    line = lines_of(capsys.readouterr().err)[-1]
    for words in ("1 not UTF-8: ", "latin.txt:1", "1 no text in the field: ", "lines.jsonl:2", "2 .doc, 1 .ppt"):
        assert words in line, words
    assert "--skip-unreadable" in line


@pytest.mark.usefixtures("sound_model")
def test_a_run_goes_on_without_what_cannot_be_read_and_says_so(
    settings: dict[str, Any], bad: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="skipwise"):
        found = run(settings, data={"source": str(bad), "skip_unreadable": True})
    corpus = found.record["corpus"]
    # 8 texts, one that is not UTF-8, and of the lines one with text and one that is null.
    counts = [corpus["counts"][name] for name in ("seen", "dropped_empty", "files_passed_over")]
    assert counts == [11, 1, 3]
    assert corpus["kinds_not_read"] == {".ppt": 1, ".doc": 2}
    assert corpus["read_as"] == {"Shift-JIS": 1}
    told = {kind: (entry["number"], entry["named"]) for kind, entry in corpus["unreadable"].items()}
    assert told == {"encoding": (1, [f"{bad}/latin.txt:1"]), "field": (1, [f"{bad}/lines.jsonl:2"])}
    record = json.loads((found.folder / "skipwise.json").read_text())
    assert record["corpus"] == corpus
    assert any("unreadable and left out: 1 not UTF-8" in line for line in caplog.messages)


@pytest.mark.usefixtures("sound_model")
def test_a_streamed_run_counts_what_it_comes_to(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    texts: list[Any] = [*_texts(6, 60), None, None]
    rows = [None if text is None else text.encode() for text in texts] + [b"\xff" * 9]
    column = pyarrow.array(rows, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), folder / "a.parquet")
    data = {"source": str(folder), "streaming": True, "held_out": 0.0, "skip_unreadable": True}
    corpus = run(settings, data=data).record["corpus"]
    assert corpus["empty"] == 2
    assert {kind: entry["number"] for kind, entry in corpus["unreadable"].items()} == {"encoding": 1}


@pytest.mark.usefixtures("sound_model")
def test_a_file_name_that_is_not_utf_8_goes_through_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    _written(folder, _texts(4, 60))
    (folder / "0.txt").rename(folder / "na\udcefve.txt")
    found = run(settings, data={"source": str(folder)})
    assert found.record["corpus"]["counts"]["seen"] == 4
    assert json.loads((found.folder / "skipwise.json").read_text())["config"]["data"]["source"] == str(folder)
    assert RunConfig.from_yaml(found.folder / "run.yaml").data.source == str(folder)
    assert "caf\\udce9" in (found.folder / "README.md").read_text(encoding="utf-8")


class Manuals:
    """A run on three long texts, of which none is held out as a whole."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.texts = _texts(3, 500)
        self.settings = {**settings, "data": {"source": str(_written(folder, self.texts)), "held_out": 0.1}}
        self.tokenizer = AutoTokenizer.from_pretrained(settings["model"])

    def ids(self, number: int) -> list[int]:
        return self.tokenizer(self.texts[number]).input_ids


@pytest.fixture
def manuals(settings: dict[str, Any], tmp_path: Path) -> Manuals:
    return Manuals(settings, tmp_path / "manuals")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Token ids of every document that is trained on from now on."""
    found: list[list[int]] = []
    own = TrainingItems.__init__

    def seen(items: TrainingItems, store: Any, *how: Any, **more: Any) -> None:
        found.extend(store.document(i).tolist() for i in range(store.num_documents))
        own(items, store, *how, **more)

    monkeypatch.setattr(TrainingItems, "__init__", seen)
    return found


@pytest.mark.usefixtures("sound_model")
def test_three_manuals_have_a_validation_that_is_not_trained_on(
    manuals: Manuals, trained: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    validated: list[list[int]] = []

    def evaluate(model: Any, tokenizer: Any, tasks: Any, lengths: Any, texts: Any, **_: Any) -> list[Any]:
        validated.extend(ids.tolist() for ids in texts)
        return []

    monkeypatch.setattr("skipwise.train.validation.evaluate", evaluate)
    with caplog.at_level(logging.INFO, logger="skipwise"):
        found = run(manuals.settings, validation={"num_documents": 4}, recipe="paper")

    lengths = [len(manuals.ids(number)) for number in range(3)]
    longest = lengths.index(max(lengths))
    tail = round(0.1 * sum(lengths))
    held = manuals.ids(longest)[-tail:]
    assert trained == [manuals.ids(n) if n != longest else manuals.ids(n)[:-tail] for n in range(3)]
    # In pieces as long as the target, which make up the end and nothing else.
    assert validated[: tail // 256] == [piece.tolist() for piece in np.array_split(held, tail // 256)]
    assert [token for piece in validated[: tail // 256] for token in piece] == held

    entry = found.record["corpus"]["held_out_end"]
    assert (entry["document"], entry["tokens"]) == (f"{longest}.txt", tail)
    assert entry["of_tokens"] == lengths[longest]
    said = [line for line in caplog.messages if f"the last {tail:,} of the {lengths[longest]:,} tokens" in line]
    assert len(said) == 1
    assert not any("no validation" in line for line in caplog.messages)


@pytest.mark.usefixtures("sound_model")
def test_it_is_the_same_after_a_stop_and_for_an_evaluation(
    manuals: Manuals, stop_after: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(manuals.settings)
    stop_after(2)
    settings = {**manuals.settings, "output": str(tmp_path / "stopped")}
    stopped = run(settings)
    assert not stopped.finished
    unfinished = held_out_of(str(stopped.folder))
    monkeypatch.setattr("skipwise.train.session.find_held_out_ends", lambda *_: pytest.fail("chosen anew"))
    resumed = run(settings, resume=True)
    assert resumed.record["corpus"] == whole.record["corpus"]
    losses = [[entry["loss"] for entry in each.log if "loss" in entry] for each in (whole, resumed)]
    assert losses[0] == losses[1]

    kept = held_out_of(str(whole.folder))
    assert kept is not None
    assert kept == unfinished
    end = whole.record["corpus"]["held_out_end"]
    how: dict[str, Any] = {"min_tokens": 2, "part": "held_out", "held_out_share": 0.1, "progress": False}
    store = build_store(kept.data.source, manuals.tokenizer, held_out_end=kept.ends[0], **how)
    number = int(end["document"].removesuffix(".txt"))
    assert store.document(0).tolist() == manuals.ids(number)[-end["tokens"] :]
    # Of other documents nothing is meant: the end of one that was trained on is no held-out text.
    others = _written(tmp_path / "others", manuals.texts[:1])
    with pytest.raises(DataError, match="held_out"):
        build_store(others, manuals.tokenizer, held_out_end=kept.ends[0], **how)


@pytest.mark.usefixtures("sound_model")
def test_an_end_is_held_out_of_documents_that_mean_their_control_tokens(
    manuals: Manuals, trained: list[list[int]], tmp_path: Path
) -> None:
    """Their tokens are another store, so that an end which is chosen in that of plain texts would hold nothing out."""
    model = shutil.copytree(manuals.settings["model"], tmp_path / "model")
    # A letter of its alphabet, so that there are as many ids as embeddings.
    manuals.tokenizer.add_special_tokens({"eos_token": manuals.tokenizer.convert_ids_to_tokens(255)})
    manuals.tokenizer.save_pretrained(model)
    data = {**manuals.settings["data"], "control_tokens": "tokens"}
    found = run(manuals.settings, model=str(model), data=data, recipe="paper")
    entry = found.record["corpus"]["held_out_end"]
    assert sum(map(len, trained)) == sum(len(manuals.ids(number)) for number in range(3)) - entry["tokens"]
    assert any("perplexity_256" in line for line in map(str, found.log))


@pytest.mark.usefixtures("sound_model")
def test_a_run_that_was_begun_without_goes_on_without(manuals: Manuals, stop_after: Any, monkeypatch: Any) -> None:
    """As runs of earlier versions were."""
    with monkeypatch.context() as patch:
        patch.setattr("skipwise.train.session.find_held_out_ends", lambda *_: [])
        stop_after(2)
        stopped = run(manuals.settings)
    begun = json.loads((stopped.folder / "begun.json").read_text())
    del begun["held_out_end"]
    (stopped.folder / "begun.json").write_text(json.dumps(begun))
    resumed = run(manuals.settings, resume=True)
    assert resumed.finished
    assert "held_out_end" not in resumed.record["corpus"]


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        ([*_texts(3, 500), *_texts(1, 500, held_out=True)], None),
        ([*_texts(3, 500), *_texts(1, 3, held_out=True)], "the longest"),
        (_texts(1, 500, held_out=True), "0.txt"),
        (_texts(3, 12), None),
    ],
    ids=["enough is held out", "too little is", "all is", "too short to be shared"],
)
def test_whole_documents_come_first(
    texts: list[str], shared: str | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    data = {"source": str(_written(tmp_path / "docs", texts)), "held_out": 0.2}
    entry = run(settings, data=data).record["corpus"].get("held_out_end")
    if shared == "the longest":
        shared = f"{max(range(3), key=lambda number: len(texts[number]))}.txt"
    assert (entry and entry["document"]) == shared


@pytest.mark.usefixtures("sound_model")
def test_calibration_leaves_the_end_alone(manuals: Manuals, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[list[int]] = []

    def calibrated(*arguments: Any, **_: Any) -> tuple[dict[str, Any], str]:
        offered.extend(ids.tolist() for ids in arguments[2])
        return {}, "none"

    monkeypatch.setattr("skipwise.train.delivery.calibrate_run", calibrated)
    monkeypatch.setattr("skipwise.train.steps.require_calibratable", lambda *_: None)
    found = run(manuals.settings, calibrate=True)
    entry = found.record["corpus"]["held_out_end"]
    number = int(entry["document"].removesuffix(".txt"))
    assert sorted(map(len, offered)) == sorted(
        len(manuals.ids(n)) - (entry["tokens"] if n == number else 0) for n in range(3)
    )

"""A run over several sources: shares, replay, resume to the bit, and what is said of it."""

import functools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import STEPS, assert_equal_weights, losses, run
from transformers import AutoTokenizer

from skipwise.cli.evaluate_documents import find_texts, held_out_of
from skipwise.config import RunConfig
from skipwise.config.stages import run_stages
from skipwise.data.corpus import MixedCorpus, open_corpus
from skipwise.data.documents import is_held_out
from skipwise.errors import ConfigError, DataError
from skipwise.records.runs import Run, held_out_ends
from skipwise.train.calibration import calibration_documents
from skipwise.train.curriculum import Curriculum
from skipwise.train.data import check_sources, make_stages
from skipwise.train.drawn import Drawn
from skipwise.train.layout import Layout
from skipwise.window import Window

pytestmark = pytest.mark.usefixtures("sound_model")

# Bytes that only the texts of one source have.
LETTERS = {"lower": "abcdef", "upper": "GHIJKL", "digits": "0123456789"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three folders of texts of their own letters, about 600 bytes each; one has short ones."""
    root, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for (name, letters), (number, size) in zip(LETTERS.items(), ((20, 600), (12, 600), (40, 120)), strict=True):
        (root / name).mkdir()
        for i in range(number):
            (root / name / f"{i}.txt").write_text("".join(rng.choice([*letters], size=size)))
    return {name: str(root / name) for name in LETTERS}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint with a token that separates documents."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("model") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "z"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def mixture(settings: dict[str, Any], model: str, sources: dict[str, str]) -> dict[str, Any]:
    """Half of lower case, 3/10 of upper case and 2/10 of joined digits; a tenth of all is replay."""
    entries = [
        {"source": sources["lower"], "weight": 0.45},
        {"source": sources["upper"], "weight": 0.27},
        {"source": sources["digits"], "weight": 0.18, "join": True},
        {"weight": 0.1, "replay": True},
    ]
    return {**settings, "model": model, "recipe": "paper", "data": {"mixture": entries, "held_out": 0.2}}


def curriculum_of(settings: dict[str, Any], *, steps: int = 20, windows: int = 8, at_a_time: int = 8) -> Curriculum:
    """The items of a run without its model."""
    config = RunConfig.from_mapping(settings)
    corpus = open_corpus(config.data, tokenizer_of(config.model), progress=False)
    stages = run_stages(config, Window(train=32, original=64, target=256), steps)
    layout = Layout(
        stages=[(stage.begin, stage.window.train) for stage in stages],
        num_steps=steps,
        window_tokens=32,
        items_per_step=windows,
        items_at_a_time=at_a_time,
        short_tokens=64 if config.short_share else None,
        short_share=config.short_share,
    )
    made = make_stages(config, corpus, stages, layout)
    return Curriculum(layout, made.stages, made.short)


@functools.cache
def tokenizer_of(model: str) -> Any:
    return AutoTokenizer.from_pretrained(model)


def source_of(ids: np.ndarray, model: str) -> str:
    """The source that token ids are of, told by their letters."""
    text = tokenizer_of(model).decode(ids[:8])
    return next(name for name, letters in LETTERS.items() if {*text} & {*letters})


def test_tokens_are_shared_as_weights_say_also_where_windows_grow(mixture: dict[str, Any], model: str) -> None:
    run = curriculum_of({**mixture, "growth": {"window": "8x", "share": 0.5}}, steps=100)
    items = [item for place in range(len(run)) if (item := run[place]) is not None]
    assert sum(len(item.input_ids) for item in items) == 100 * 8 * 32
    # Windows without skips have 64 tokens, others 32 and then 256.
    for tokens, windows in ((64, 10 * 4), (32, 44 * 8), (256, 46)):
        sources = Counter(source_of(item.input_ids, model) for item in items if len(item.input_ids) == tokens)
        assert sources.total() == windows
        for name, share in {"lower": 0.5, "upper": 0.3, "digits": 0.2}.items():
            assert abs(sources[name] - share * windows) <= len(sources)
    assert all(np.all(np.diff(item.position_ids) == 1) for item in items if len(item.input_ids) == 64)


def test_replay_has_an_order_of_its_own(mixture: dict[str, Any], sources: dict[str, str]) -> None:
    run = curriculum_of(mixture, steps=100)
    told = [run.describe(place) for place in range(len(run)) if run[place] is not None]
    names = (sources["lower"], f"{sources['lower']} (replay)")
    orders = [[each["document"] for each in told if each["source"] == name][:16] for name in names]
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(16)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
def test_items_do_not_depend_on_the_size_of_batches(mixture: dict[str, Any], at_a_time: int) -> None:
    settings = {**mixture, "growth": {"window": "2x", "share": 0.5}}
    settings["data"] = {**mixture["data"], "near_labels": 0.5}

    def steps(at_a_time: int) -> list[list[bytes]]:
        made = curriculum_of(settings, at_a_time=at_a_time)
        items = [made[place] for place in range(len(made))]
        in_bytes = [item and b"".join(each.tobytes() for each in item[:3]) for item in items]
        return [[item for item in in_bytes[step * 8 : step * 8 + 8] if item] for step in range(20)]

    assert steps(at_a_time) == steps(8)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"training": {"dataloader_num_workers": 2}},
    "growth and exercises": {"window": 240, "growth": {"window": 250, "share": 0.5}, "retrieval": 0.5},
    "far labels and two views": {"loss": {"far_extra": 0.5, "distill": 0.5}, "growth": {"window": "2x", "share": 0.5}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_stopped_and_resumed_is_bit_equal_to_uninterrupted(
    mixture: dict[str, Any], kind: str, stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    changes = dict(RUNS[kind])
    entries = [*mixture["data"]["mixture"][:3], {"weight": 0.3, "replay": True}]
    data = {**mixture["data"], "mixture": entries, "retrieval": changes.pop("retrieval", 0.0)}
    given = {**mixture, "data": data}
    kept = {name: value for name, value in changes.items() if name != "training"}
    whole = run(given, output=str(tmp_path / "whole"), **{"window": 32, **kept})
    stop_after(2)
    stopped = run(given, **changes)
    assert (stopped.finished, stopped.steps) == (False, 2)
    resumed = run(given, **changes, resume=True)
    assert resumed.record["resumed_at_step"] == 2
    assert_equal_weights(whole.folder, resumed.folder)
    assert losses(resumed.folder) == losses(whole.folder)
    assert resumed.record["corpus"] == whole.record["corpus"]


def test_what_was_drawn_from_what_is_said_and_stands_in_the_record(
    mixture: dict[str, Any], sources: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    lower, digits = sources["lower"], sources["digits"]
    entries = [{"source": lower, "weight": 2.0}, {"source": digits, "weight": 2.0, "replay": True}]
    data = {"mixture": entries, "held_out": 0.2, "join": True}
    with caplog.at_level(logging.INFO, logger="skipwise"):
        result = run({**mixture, "data": data}, training={"gradient_accumulation_steps": 16})
    # Half of four steps would be short, but the second one is for the widest windows.
    told = result.record["corpus"]["sources"]
    assert [(each["source"], each["replay"], each["share"]) for each in told] == [
        (lower, False, 0.5),
        (f"{digits} (replay)", True, 0.5),
    ]
    assert [(each["windows"], each["tokens"]) for each in told] == [(3 * 16, 3 * 16 * 32), (16, 16 * 32)]
    epochs = 48 / told[0]["documents"]
    assert told[0]["epochs"] == pytest.approx(epochs, abs=1e-4)
    assert epochs > 2
    told = f"rawn from {lower}: 50.0% of the tokens: 48 windows, 1,536 tokens; 3.00 epochs of 16 documents with "
    told += "9,600 tokens; each document is drawn from up to 3 times"
    assert f"d{told}" in caplog.messages
    assert f"- D{told}\n" in (result.folder / "README.md").read_text()
    kept = held_out_of(str(result.folder))
    assert kept is not None
    assert [entry.source for entry in kept.data.mixture] == [lower, digits]


def test_items_that_went_wrong_are_named_with_their_source(
    mixture: dict[str, Any], sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipwise.train.guard.StepGuard._step_loss", lambda *_: float("nan"))
    result = run(mixture, guard={"bad_steps": STEPS + 1})
    bad = json.loads((result.folder / "bad-items.json").read_text())["bad_steps"]
    items = [item for step in bad.values() for item in step["items"]]
    assert len(items) == 2 * STEPS
    assert all((Path(item["source"]) / item["name"]).is_file() for item in items)
    assert {item["source"] for item in items} <= {*sources.values()}


def test_held_out_documents_of_every_source_are_validated_on_each_for_itself(
    mixture: dict[str, Any], sources: dict[str, str]
) -> None:
    result = run(mixture, validation={"num_documents": 1, "lengths": [64, 128]})
    first = next(entry for entry in result.log if "eval_perplexity_128" in entry)
    by_source = [first[f"eval_perplexity_128_{source}"] for source in sources.values()]
    # One document of each, with as many tokens that are scored.
    assert first["eval_perplexity_128"] == pytest.approx(float(np.exp(np.mean(np.log(by_source)))))


def opened(settings: dict[str, Any]) -> MixedCorpus:
    config = RunConfig.from_mapping(settings)
    corpus = open_corpus(config.data, tokenizer_of(config.model), progress=False)
    assert isinstance(corpus, MixedCorpus)
    return corpus


def test_calibration_takes_long_documents_from_all_sources_in_turn(mixture: dict[str, Any], model: str) -> None:
    order = [source_of(ids, model) for ids in calibration_documents(opened(mixture), 256)]
    assert order[:6] == [*LETTERS] * 2
    assert len(order) > 20
    few = opened(mixture).long_documents("train", 4, min_tokens=256)
    assert [source_of(ids, model) for ids in few] == [*LETTERS, "lower"]


def test_growth_is_judged_by_each_sources_own_share(mixture: dict[str, Any], sources: dict[str, str]) -> None:
    corpus = opened(mixture)
    scarce = corpus.scarcest(500)
    counts = {part.name: part.scarcest(500).number for part in corpus.parts}
    # Most often repeated is what has most of the tokens for each document.
    shares = {sources["lower"]: 0.45, sources["upper"]: 0.27, sources["digits"]: 0.18}
    assert scarce.source == max(shares, key=lambda name: shares[name] / counts[name])
    assert (scarce.number, float(scarce.share)) == (counts[scarce.source], shares[scarce.source])
    assert opened({**mixture, "data": {**mixture["data"], "join": False}}).scarcest(700).number == 0


def test_sources_with_too_short_documents_are_named_all_at_once(
    mixture: dict[str, Any], sources: dict[str, str]
) -> None:
    with pytest.raises(DataError) as raised:
        opened(mixture).training(700)
    assert str(raised.value).count("no document has 700 tokens") == 2
    assert all(f"{sources[name]}: no document" in str(raised.value) for name in ("lower", "upper"))


def test_a_source_without_long_documents_is_left_out_of_an_evaluation_which_is_said(
    mixture: dict[str, Any], sources: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    mixed = opened(mixture).documents("train", min_tokens=700)
    assert mixed.names == [sources["digits"]]
    assert [line.split(": no document")[0] for line in caplog.messages] == [
        f"nothing is taken from {sources[name]}" for name in ("lower", "upper")
    ]


def test_what_cannot_be_read_is_told_of_all_sources_at_once(mixture: dict[str, Any], tmp_path: Path) -> None:
    missing = [{"source": str(tmp_path / name), "weight": 1.0} for name in ("one", "other")]
    with pytest.raises(DataError) as raised:
        check_sources(RunConfig.from_mapping({**mixture, "data": {"mixture": missing}}))
    assert all(repr(entry["source"]) in str(raised.value) for entry in missing)
    assert "\n" not in str(raised.value)


def test_a_resumed_run_needs_the_documents_it_was_begun_with(
    mixture: dict[str, Any], sources: dict[str, str], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    texts = np.random.default_rng(5)
    for i in range(8):
        (own / f"{i}.txt").write_text("".join(texts.choice([*"wxy"], size=300)))
    entries = [*mixture["data"]["mixture"][:2], {"source": str(own), "weight": 0.3, "replay": True}]
    settings = {**mixture, "data": {"mixture": entries, "held_out": 0.0}}
    stop_after(2)
    assert not run(settings).finished
    (own / "3.txt").write_text("wwww" * 100)
    with pytest.raises(ConfigError, match="was begun with another corpus"):
        run(settings, resume=True)


def test_files_of_two_sources_are_told_of(
    mixture: dict[str, Any], sources: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    one = f"{sources['lower']}/1.txt"
    entries = [*mixture["data"]["mixture"], {"source": one, "weight": 0.1}]
    entries += [{"source": [sources["lower"], sources["upper"]], "weight": 0.1, "replay": True}]
    entries[3:4] = []
    check_sources(RunConfig.from_mapping({**mixture, "data": {"mixture": entries}}))
    assert caplog.messages == [f"files of {one} are in {sources['lower']}, too, and are drawn for both (1)"]


def test_a_run_too_short_for_a_share_says_so(mixture: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    curriculum_of(mixture, steps=5)
    warned = [record.getMessage().split(": ")[-1] for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["0 windows, 0 tokens, as the run is too short for it"] * 3


def test_a_source_with_nothing_held_out_holds_out_an_end_of_its_own(
    mixture: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    rng, folders = np.random.default_rng(3), []
    for name, letters in list(LETTERS.items())[:2]:
        (tmp_path / name).mkdir()
        texts = ("".join(rng.choice([*letters], size=3000)) for _ in range(100))
        (tmp_path / name / "long.txt").write_text(next(text for text in texts if not is_held_out(text, 0.2)))
        folders.append(str(tmp_path / name))
    settings = {**mixture, "data": {"mixture": [{"source": each, "weight": 1.0} for each in folders], "held_out": 0.2}}
    stop_after(2)
    stopped = run(settings)
    begun = held_out_ends(Run.open(stopped.folder).begun())
    resumed = run(settings, resume=True)
    told = resumed.record["corpus"]["held_out_end"]
    assert [each["tokens"] for each in told] == [600, 600]
    assert begun == held_out_ends(resumed.record["corpus"])
    # An evaluation of one source finds its end, and nothing else of it.
    for folder, ids in zip(folders, ([*LETTERS][:2]), strict=True):
        how = {"all_documents": False, "share": None, "skip_unreadable": False, "progress": False}
        (text,), details = find_texts(str(resumed.folder), folder, **how).of(
            AutoTokenizer.from_pretrained(settings["model"]), [64, 256]
        )
        assert details == {}
        assert (len(text), source_of(text, settings["model"])) == (600, ids)
    first = next(entry for entry in resumed.log if "eval_perplexity_256" in entry)
    assert {f"eval_perplexity_256_{folder}" for folder in folders} <= {*first}


def test_a_source_is_evaluated_as_the_run_has_read_it(
    mixture: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "def"}]
    stories = ["".join(np.random.default_rng(i).choice([*"abcdef"], size=400)) for i in range(40)]
    lines = (json.dumps({"story": story, "messages": messages}) for story in stories)
    (tmp_path / "both.jsonl").write_text("\n".join(lines))
    entry = {"source": str(tmp_path / "both.jsonl"), "weight": 0.5, "format": "text", "field": "story"}
    entries = [mixture["data"]["mixture"][0], {**entry, "control_tokens": "tokens", "join": True}]
    stop_after(1)
    stopped = run({**mixture, "data": {"mixture": entries, "held_out": 0.2}})
    how = {"all_documents": False, "share": None, "skip_unreadable": False, "progress": False}
    found = find_texts(str(stopped.folder), str(tmp_path / "both.jsonl"), **how)
    assert (found.data.field, found.data.control_tokens, found.data.join) == ("story", "tokens", None)
    tokenizer = tokenizer_of(mixture["model"])
    kept = {story for story in stories if is_held_out(story, 0.2)}
    assert {tokenizer.decode(ids) for ids in found.of(tokenizer, [256])[0]} == kept
    run_of = held_out_of(str(stopped.folder))
    assert run_of is not None
    assert run_of.reading(str(tmp_path / "both.jsonl"), None, skip_unreadable=False).format == "text"
    assert run_of.reading("elsewhere", None, skip_unreadable=True).field == "text"
    # The base, which has no run, is measured on the same by flags.
    base = find_texts(mixture["model"], str(tmp_path / "both.jsonl"), "story", "text", **{**how, "share": 0.2})
    assert {tokenizer.decode(ids) for ids in base.of(tokenizer, [256])[0]} == kept


def test_of_few_documents_a_base_is_measured_on_the_end_that_a_run_on_them_holds_out(
    mixture: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    texts = ("".join(rng.choice([*"abcdef"], size=3000)) for _ in range(100))
    long = next(text for text in texts if not is_held_out(text, 0.2))
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "long.txt").write_text(long)
    settings = {**mixture, "data": {"source": str(tmp_path / "few"), "held_out": 0.2}}
    stop_after(1)
    stopped = run(settings)
    how = {"all_documents": False, "share": None, "skip_unreadable": False, "progress": False}
    tokenizer = tokenizer_of(mixture["model"])
    texts = {}
    for model in (mixture["model"], str(stopped.folder)):
        found = find_texts(model, str(tmp_path / "few"), **{**how, "share": 0.2})
        (text,), details = found.of(tokenizer, [64, 256])
        texts[model] = tokenizer.decode(text)
        assert details.get("held_out_end", {}).get("tokens") == (600 if model == mixture["model"] else None)
    assert {*texts.values()} == {long[-600:]}, "a fifth of the only document, for both"
    # All of it, where all is asked for.
    for asked in ({"all_documents": True}, {"share": 1.0}):
        everything = find_texts(mixture["model"], str(tmp_path / "few"), **{**how, **asked})
        (text,), details = everything.of(tokenizer, [64, 256])
        assert (tokenizer.decode(text), details) == (long, {})
    # A run may have trained on any part of what it reads elsewhere.
    (tmp_path / "copied.txt").write_text(long)
    with pytest.raises(DataError, match="held_out"):
        find_texts(str(stopped.folder), str(tmp_path / "copied.txt"), **{**how, "share": 0.2}).of(tokenizer, [64, 256])


def test_a_source_that_is_exhausted_and_repeated_says_how_often() -> None:
    few = {"source": "docs", "replay": False, "share": 0.5, "documents": 10, "of_tokens": 4000}
    once = "50.0% of the tokens: 8 windows, 256 tokens; 0.80 epochs of 10 documents with 4,000 tokens"
    assert Drawn(**few, windows=8, tokens=256, epochs=0.8).told() == once
    told = Drawn(**few, windows=400, tokens=12_800, epochs=40.0).told()
    assert told.endswith("; each document is drawn from up to 40 times, so that the text is repeated 3.2 times")

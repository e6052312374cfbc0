"""Calibration at the end of a run and by its verb: what the folder says, what is refused, what is left alone."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import build_store
from refusals import lines_of
from safetensors.torch import load_file
from tiny_runs import STEPS, run
from transformers import AutoModelForCausalLM

import skipwise.train.calibration as module
from skipwise import cli
from skipwise.calibrate import Calibration, FactorScores, Search, calibrate
from skipwise.config import DataConfig, RunConfig
from skipwise.data.corpus import Corpus, open_corpus
from skipwise.data.documents import is_held_out
from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.model import load_model, read_config, rope_state, save_model
from skipwise.rope import YaRN
from skipwise.train.calibration import calibration_documents
from skipwise.window import Window

# Long enough for a passkey of bytes.
LONG = 320
FORMULA = 0.1 * math.log(LONG / 64) + 1


def chosen(scale: float) -> Calibration:
    """A calibration that chose this."""

    def scores(one: float, found: bool) -> FactorScores:
        return FactorScores(
            scale=one, attention_factor=FORMULA * one, nlls={64: [2.0, 1.0], LONG: [2.0, 1.0]}, found=[found] * 8
        )

    return Calibration(
        kind="yarn",
        trained_factor=FORMULA,
        scale=scale,
        lengths=(64, LONG),
        measured=tuple(scores(one, one == scale) for one in sorted({1.0, scale})),
        documents=("ab" * 32,),
        search=Search(),
        seed=0,
    )


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Takes the search for granted; it has tests of its own."""

    def choose(scale: float) -> None:
        monkeypatch.setattr(module, "calibrate", lambda *_, **__: chosen(scale))
        monkeypatch.setattr(sys.modules["skipwise.calibrate"], "calibrate", lambda *_, **__: chosen(scale))

    return choose


@pytest.fixture
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches in earnest, on little."""
    quick = Search(scales=(0.9, 1.1), num_documents=2, trials=2, refine=False)
    monkeypatch.setattr(module, "calibrate", partial(calibrate, search=quick))


# --- at the end of a run ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sound_model", "quick_search")
@pytest.mark.parametrize("tuning", [{"kind": "full"}, {"kind": "lora", "rank": 2}])
def test_a_run_calibrates_what_it_trained(tuning: dict[str, Any], settings: dict[str, Any]) -> None:
    done = run(settings, target=LONG, calibrate=True, tuning=tuning)
    told = json.loads((done.folder / "skipwise.json").read_text())["calibration"]
    assert told == done.record["calibration"]
    assert [one["scale"] for one in told["factors"]] == [0.9, 1.0, 1.1]
    assert told["lengths"] == [64, 143, LONG]
    state = rope_state(read_config(done.folder))
    assert state.attention_factor == pytest.approx(told["attention_factor"])
    assert (state.trained_factor or state.attention_factor) == pytest.approx(FORMULA)
    assert f"- Attention factor: {told['attention_factor']:.4g}" in (done.folder / "README.md").read_text()
    assert RunConfig.from_yaml(done.folder / "run.yaml").calibrate


@pytest.mark.usefixtures("sound_model")
def test_the_factor_chosen_is_in_what_transformers_loads_and_weights_are_as_trained(
    settings: dict[str, Any], choice: Callable[[float], None], tmp_path: Path
) -> None:
    plain = run(settings, target=LONG, output=str(tmp_path / "plain"))
    choice(1.2)
    done = run(settings, target=LONG, calibrate=True)
    model: Any = AutoModelForCausalLM.from_pretrained(done.folder)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.2 * FORMULA)
    for name, tensor in load_file(plain.folder / "model.safetensors").items():
        assert torch.equal(tensor, load_file(done.folder / "model.safetensors")[name])
    assert "calibration" not in plain.record
    assert "Attention factor" not in (plain.folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("sound_model", "quick_search")
def test_a_resumed_run_calibrates_alike(
    settings: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    whole = run(settings, target=LONG, calibrate=True, output=str(tmp_path / "whole"))
    stop_after(2)
    assert not run(settings, target=LONG, calibrate=True).finished
    with pytest.raises(ConfigError, match="of calibrate;"):
        run(settings, target=LONG, resume=True)
    resumed = run(settings, target=LONG, calibrate=True, resume=True)
    assert resumed.steps == STEPS
    for record in (whole.record, resumed.record):
        record["calibration"].pop("seconds")
    assert resumed.record["calibration"] == whole.record["calibration"]


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("error", [CheckpointError("logits are NaN"), torch.OutOfMemoryError("no memory\nat all")])
def test_a_calibration_that_fails_loses_no_trained_model(
    error: Exception, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(module, "calibrate", fail)
    done = run(settings, target=LONG, calibrate=True)
    assert done.record["calibration"] == {"left_out": " ".join(str(error).split())}
    assert "calibration was left out" in caplog.text
    assert rope_state(read_config(done.folder)).trained_factor is None
    assert "its calibration failed" in (done.folder / "README.md").read_text()


@pytest.mark.usefixtures("sound_model")
def test_what_cannot_be_calibrated_is_refused_before_training(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipwise.train.trainer.SkipwiseTrainer", None)
    with pytest.raises(ConfigError, match=r"'ntk'.*yarn, longrope"):
        run(settings, calibrate=True, interpolation={"kind": "ntk"})
    with pytest.raises(ConfigError, match="128"):
        run(settings, target=128, calibrate=True)
    assert not Path(settings["output"]).exists()


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [0.3, 0.0])
def test_no_document_that_an_evaluation_reads_is_calibrated_on(
    held_out: float, tiny_checkpoint: Path, documents: Path
) -> None:
    tokenizer = load_model(tiny_checkpoint).tokenizer
    data = DataConfig(source=str(documents), held_out=held_out)
    texts = {str(tokenizer.decode(ids)) for ids in calibration_documents(open_corpus(data, tokenizer), 300)}
    share = held_out or 0.1
    assert texts == {text for file in documents.iterdir() if not is_held_out((text := file.read_text()).strip(), share)}
    store = build_store(str(documents), tokenizer, min_tokens=2, part="held_out", held_out_share=share, progress=False)
    assert store.num_documents + len(texts) == 24
    assert not texts & {str(tokenizer.decode(store.document(i))) for i in range(store.num_documents)}


def test_short_documents_are_joined_and_it_is_said(
    tiny_checkpoint: Path, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_model(tiny_checkpoint).tokenizer
    tokenizer.eos_token = "a"
    data = DataConfig(source=str(documents))
    joined = calibration_documents(open_corpus(data, tokenizer), 2000)
    assert joined
    assert all(len(ids) >= 2000 for ids in joined)
    assert "training documents are joined: none has 2000 tokens" in caplog.text
    with pytest.raises(DataError):
        calibration_documents(open_corpus(data, tokenizer), 10**6)


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stretched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint under YaRN that no run left."""
    folder = tmp_path_factory.mktemp("stretched") / "model"
    window = Window(train=64, original=64, target=LONG)
    save_model(*load_model(tiny_checkpoint, interpolation=YaRN(), window=window), folder)
    return folder


@pytest.fixture
def checkpoint(stretched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stretched, tmp_path / "checkpoint"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_verb_writes_the_choice_and_keeps_the_old_config(
    checkpoint: Path, documents: Path, choice: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(checkpoint)
    choice(1.2)
    call = ["calibrate", str(checkpoint), "--documents", str(documents)]
    assert cli.main([*call, "--dry-run"]) == 0
    assert "nothing was written (--dry-run)" in capsys.readouterr().out
    assert contents(checkpoint) == before

    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert "1.2 *" in out
    assert "8 of 8" in out
    table = out[: out.index("attention factor ")].splitlines()
    assert max(len(line.rstrip()) for line in table) <= 80
    assert "of 8 passkeys at 320, 0 to 8 found" in out
    after = contents(checkpoint)
    assert after["config.before-calibration.json"] == before["config.json"]
    assert after["model.safetensors"] == before["model.safetensors"]
    assert json.loads(after["calibration.json"])["scale"] == 1.2
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(1.2 * FORMULA)

    assert cli.main(call) == 2
    assert "is calibrated already: its attention factor is 1.393, 1.2 times" in capsys.readouterr().err
    assert contents(checkpoint) == after
    choice(1.1)
    assert cli.main([*call, "--again", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["scale"]) == (str(checkpoint), 1.1)
    assert rope_state(read_config(checkpoint)).attention_factor == pytest.approx(1.1 * FORMULA)
    assert contents(checkpoint)["config.before-calibration.json"] == before["config.json"]


def test_where_no_factor_is_better_the_config_stays(
    checkpoint: Path, documents: Path, choice: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(checkpoint)
    choice(1.0)
    assert cli.main(["calibrate", str(checkpoint), "--documents", str(documents)]) == 0
    assert f"the config stays as it was; recorded in {checkpoint}" in capsys.readouterr().out
    after = contents(checkpoint)
    assert json.loads(after.pop("calibration.json"))["scale"] == 1.0
    assert after == before


def test_a_copy_leaves_the_checkpoint_alone(
    checkpoint: Path, documents: Path, choice: Callable[[float], None], tmp_path: Path
) -> None:
    (checkpoint / "checkpoint-3").mkdir()
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    choice(1.2)
    output = tmp_path / "deep" / "copy"
    call = ["calibrate", str(checkpoint), "--documents", str(documents), "--output", str(output)]
    assert cli.main(call) == 0
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()} == before
    assert {path.name for path in output.iterdir()} == {*before, "calibration.json"}
    assert rope_state(read_config(output)).attention_scale == pytest.approx(1.2)
    assert list(output.parent.iterdir()) == [output]
    assert cli.main(call) == 2, "the folder is taken"


@pytest.mark.usefixtures("sound_model")
def test_a_run_is_calibrated_afterwards_on_its_own_documents(
    settings: dict[str, Any], choice: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(settings, target=LONG)
    choice(1.2)
    asked: list[DataConfig] = []

    def documents(corpus: Corpus, *arguments: Any, **keywords: Any) -> Any:
        asked.append(corpus.data)
        return calibration_documents(corpus, *arguments, **keywords)

    monkeypatch.setattr(module, "calibration_documents", documents)
    assert cli.main(["calibrate", str(done.folder)]) == 0
    assert (asked[0].source, asked[0].held_out) == (settings["data"]["source"], 0.2)
    record = json.loads((done.folder / "skipwise.json").read_text())
    assert record.pop("calibration")["scale"] == 1.2
    assert record == json.loads(json.dumps(done.record))
    card = (done.folder / "README.md").read_text().splitlines()
    interpolation = next(i for i, line in enumerate(card) if line.startswith("- Interpolation:"))
    assert card[interpolation + 1].startswith("- Attention factor: 1.393, 1.2 times the trained 1.161")
    choice(1.0)
    assert cli.main(["calibrate", str(done.folder), "--again"]) == 0
    card = (done.folder / "README.md").read_text()
    assert card.count("- Attention factor:") == 1
    assert "- Attention factor: 1.161, as trained" in card


def test_the_whole_search_from_the_command_line(
    checkpoint: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--factors 0.5,1.5 --tolerance 0.1 --num-documents 2 --trials 1 --length 100,320 --seed 3 --json"
    assert cli.main(["calibrate", str(checkpoint), "--documents", str(documents), *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {0.5, 1.0, 1.5} <= {one["scale"] for one in told["factors"]}
    assert (told["lengths"], told["seed"], len(told["documents_sha256"])) == ([100, 320], 3, 2)
    assert (told["settings"]["tolerance"], told["settings"]["trials"]) == (0.1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BASE"], "interpolation is 'none'"),
        (["no/such-model"], "give a folder with a config.json"),
        (["MODEL", "--factors", "1.1,x"], "--factors is '1.1,x'"),
        (["MODEL", "--factors", "0"], "scales are [0.0, 1.0]"),
        (["MODEL", "--length", "1k"], "the model's window is 320"),
        (["MODEL", "--output", "TAKEN"], "which exists already"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tiny_checkpoint: Path,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = contents(checkpoint)
    places = {"BASE": str(tiny_checkpoint), "MODEL": str(checkpoint), "TAKEN": str(tmp_path)}
    line = [places.get(argument, argument) for argument in arguments]
    assert cli.main(["calibrate", *line, "--documents", str(documents)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert lines_of(err)[-1].startswith("skipwise: ")
    assert contents(checkpoint) == before

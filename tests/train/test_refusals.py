"""What `extend` refuses: one line, before the work, and nothing is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tiny_runs import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipwise.config import RunConfig
from skipwise.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PositionError,
    SkipwiseError,
    UnsupportedModelError,
)
from skipwise.model import load_model
from skipwise.train import extend
from skipwise.train.trainer import SkipwiseTrainer


def test_a_model_that_isolates_the_chunks_is_refused_before_training(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_isolating(*arguments: Any, **keywords: Any) -> Any:
        loaded = load_model(*arguments, **keywords)
        decoder: Any = loaded.model.base_model
        own = decoder.forward
        decoder.forward = lambda *args, **kwargs: own(*args, **{**kwargs, "attention_mask": None})
        return loaded

    monkeypatch.setattr("skipwise.train.preparation.load_model", load_isolating)
    monkeypatch.setattr(SkipwiseTrainer, "train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(UnsupportedModelError, match="reach"):
        run(settings)
    # So that the next try, with another attention, finds the folder free.
    assert not Path(settings["output"]).exists()


REFUSALS: dict[str, tuple[type[SkipwiseError], dict[str, Any], str]] = {
    "unknown name": (ConfigError, {"training": {"learning_rat": 1}}, "'training.learning_rat'.*'learning_rate'"),
    "epochs": (ConfigError, {"training": {"num_train_epochs": 3}}, "training.max_steps"),
    "said elsewhere": (ConfigError, {"training": {"output_dir": "x"}}, "'training.output_dir'.*output"),
    "no steps": (ConfigError, {"training": {"max_steps": 0}}, "'training.max_steps' is 0.* 1 "),
    "no windows": (ConfigError, {"training": {"per_device_train_batch_size": 0}}, "batch_size' is 0.* 1 "),
    "bad value": (ConfigError, {"training": {"lr_scheduler_type": "lineal"}}, "lineal"),
    "unknown tracker": (ConfigError, {"training": {"report_to": "notebook"}}, "notebook"),
    "target too small": (ConfigError, {"target": 48}, "48.* 64"),
    "window too long": (PositionError, {"window": 300}, "train=300"),
    "growth too long": (PositionError, {"growth": {"window": 300}}, "train=300"),
    "validation too long": (ConfigError, {"validation": {"lengths": [512]}}, "validation.lengths.*512.*256"),
    "no document": (DataError, {"data": {"source": "/no/such/folder"}}, "/no/such/folder"),
    "short documents": (DataError, {"data": {"min_tokens": 10_000}}, "10000"),
    "no room for a key": (ConfigError, {"data": {"retrieval": 0.5}}, "data.retrieval.* 32 "),
    "no exercises in it": (
        ConfigError,
        {"data": {"retrieval": 0.5, "retrieval_language": "jp"}},
        "language is 'jp'.*Japanese",
    ),
    "no model": (CheckpointError, {"model": "/no/such/model"}, "/no/such/model"),
    "more chunks than tokens": (PositionError, {"sampler": {"kind": "pose", "chunks": 33}}, "33.* 32"),
    "more chunks than grown tokens": (
        PositionError,
        {"sampler": {"kind": "pose", "chunks": 32}, "growth": {"window": 16}},
        "chunks is 32.* 16",
    ),
    "no data set": (DataError, {"data": {"source": "no-such-name"}}, "'no-such-name'"),
    "no layer": (ConfigError, {"tuning": {"kind": "lora", "target_modules": ["q_prj"]}}, "'q_prj'.*'q_proj'"),
    "no attention": (ConfigError, {"attention": "fooo"}, "'fooo'.*sdpa"),
    "no group": (ConfigError, {"parallel": {"context": 2}}, "'parallel.context' is 2"),
    "bad steps of a run that is not resumed": (ConfigError, {"skip_bad_items": True}, "--resume"),
    "nothing to resume": (ConfigError, {"resume": True}, "--resume"),
}


# What depends on the tokens of documents; all else is refused before weights are read.
LATE = ("short documents", "no room for a key")


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("what", REFUSALS)
def test_refused_in_one_line_and_the_folder_stays_free(
    what: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if what not in LATE:
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    kind, changes, named = REFUSALS[what]
    with refused(kind, named):
        run(settings, **changes)
    assert not Path(settings["output"]).exists()


def test_a_tokenizer_that_does_not_go_with_the_run_is_refused_before_weights_are_read(
    settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["river"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"256 .* 256"):
        run(settings, model=str(folder))
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    (folder / "vocab.json").write_text('{"a</w>": 0, "<unk>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(DataError, match="CTRLTokenizer"):
        run(settings, model=str(folder))
    assert not Path(settings["output"]).exists()


def test_a_folder_that_is_taken_is_left_alone(settings: dict[str, Any]) -> None:
    folder = Path(settings["output"])
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"{folder}.*--output"):
        run(settings)
    with pytest.raises(ConfigError, match="--resume"):
        run(settings, resume=True)
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_taken_is_refused_before_torch_loads(
    settings: dict[str, Any], fresh_python: Callable[[str], None]
) -> None:
    folder = Path(settings["output"])
    folder.mkdir()
    (folder / "run.yaml").write_text("")
    (folder / "begun.json").write_text("[1]")
    command = ["extend", settings["model"], "--target", "256", "--data", settings["data"]["source"]]
    command += ["--output", settings["output"]]
    fresh_python(
        f"""
import contextlib, io, sys, skipwise.train
from skipwise.cli import main
for flags, word in (([], "not empty"), (["--launch", "ddp"], "not empty"), (["--resume"], "begun.json")):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([*{command}, *flags]) == 2
    assert word in said.getvalue() and said.getvalue().count("skipwise: ") == 1, said.getvalue()
    assert not {{"torch", "transformers", "accelerate"}} & {{*sys.modules}}, flags
"""
    )


def test_a_folder_that_cannot_be_made(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("file/run", "file/runs/run", "file"):
        with pytest.raises(CheckpointError, match=r"file' .*--output"):
            run(settings, output=str(tmp_path / below))


@pytest.mark.usefixtures("sound_model")
def test_what_cannot_be_resumed(
    settings: dict[str, Any], stop_after: Callable[[int], None], documents: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(documents, own)
    settings["data"]["source"] = str(own)
    settings["recipe"] = "paper"
    stop_after(1)
    run(settings)
    with pytest.raises(ConfigError, match="of sampler, seed;"):
        extend(RunConfig.from_mapping({**settings, "seed": 1, "sampler": "randpos"}), resume=True)
    (own / "0.txt").write_text("changed since " * 50)
    with pytest.raises(ConfigError, match="corpus"):
        run(settings, resume=True)
    shutil.copy(documents / "0.txt", own)
    assert run(settings, resume=True).finished
    with pytest.raises(ConfigError, match="finished"):
        run(settings, resume=True)


@pytest.mark.usefixtures("sound_model")
def test_a_loss_that_is_no_number_stops_the_run(settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"nan at step 4.*\(2, 3, 4\)"):
        run(settings, training={"learning_rate": 1e30, "max_grad_norm": 0.0})

"""The verb extend: flags over YAML, Ctrl-C and how to go on, and its result in use."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import skipwise.train
from skipwise import cli
from skipwise.config import RunConfig
from skipwise.train import ExtendResult


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RunConfig]:
    """The run that a command line asks for, without running it."""
    runs: list[tuple[RunConfig, bool]] = []

    def extend(config: RunConfig, *, resume: bool = False, skip_bad_items: bool = False) -> ExtendResult:
        runs.append((config, resume))
        record = {"seconds": 1.0, "peak_bytes": 2**30, "resumed_at_step": None}
        return ExtendResult(folder=tmp_path, finished=True, steps=1, verdicts=[], log=[], record=record)

    monkeypatch.setattr(skipwise.train, "extend", extend)

    def run(*arguments: str, resume: bool = False) -> RunConfig:
        assert cli.main(["extend", *arguments]) == 0
        config, resumed = runs.pop()
        assert resumed == resume
        return config

    return run


def test_flags_former_flags_and_settings_say_what_the_file_says(planned: Any, tmp_path: Path) -> None:
    tree = {
        "model": "some/model",
        "target": "32k",
        "window": "1k",
        "output": "out",
        "sampler": {"kind": "pose", "skips": "flat", "chunks": 3},
        "data": {"source": ["a", "b"]},
        "tuning": {"kind": "lora"},
        "training": {"max_steps": 7, "learning_rate": 1e-4, "report_to": ["wandb"], "run_name": "a=b", "bf16": True},
        "trust_remote_code": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    by_file = planned("--config", str(tmp_path / "run.yaml"), "--resume", resume=True)
    line = (
        "some/model --target 32k --window 1k --output out --skips flat --chunks 3 --data a --data b --tuning lora "
        "--steps 7 --set training.learning_rate=1E-4 --set training.report_to=[wandb] --set training.run_name=a=b "
        "--set training.bf16=true --trust-remote-code"
    )
    assert planned(*line.split()) == by_file == RunConfig.from_mapping(tree)


def test_flags_lie_over_the_file_and_set_over_both(planned: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: a\ntarget: 32k\nsampler: randpos\ntuning: lora\ndata: {source: x, join: true}\n"
        "training: {learning_rate: 3e-4, bf16: true}\n"
    )
    file = ["--config", str(tmp_path / "run.yaml")]
    run = planned(*file)
    assert run.training == {"learning_rate": 3e-4, "bf16": True}
    assert run.sampler == {"kind": "randpos"}

    run = planned("b", *file, "--data", "y", "--steps", "5", "--set", "tuning.rank=8", "--set", "training.max_steps=6")
    assert (run.model, run.target) == ("b", 32768)
    assert (run.data.source, run.data.join) == ("y", True)
    assert run.tuning.model_dump()["rank"] == 8
    assert run.training == {"learning_rate": 3e-4, "bf16": True, "max_steps": 6}

    assert planned(*file, "--sampler", "pose", "--skips", "flat").sampler == {"kind": "pose", "skips": "flat"}
    assert planned(*file, "--set", "sampler=plain").sampler == {"kind": "plain"}
    assert planned("a", "--target", "1k", "--skips", "flat").sampler == {"kind": "pose", "skips": "flat"}

    (tmp_path / "run.yaml").write_text("model: a\ntarget: 32k\nsampler: {kind: pose, chunks: 3}\n")
    assert planned(*file, "--set", "sampler.skips=flat").sampler == {"kind": "pose", "chunks": 3, "skips": "flat"}
    assert planned(*file, "--set", "sampler=randpos").sampler == {"kind": "randpos"}


@pytest.fixture
def command(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any, sound_model: None) -> Callable[..., list[str]]:
    """A run of two steps, in a folder whose name a shell would split."""
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    documents = tmp_path / "documents"
    documents.mkdir()
    for i in range(12):
        (documents / f"{i}.txt").write_text(f"text number {i} " * 30)
    words = f"--target 256 --window 32 --data {documents} --steps 2 --learning-rate 1e-3 --batch 1"
    quiet = "--set training.gradient_accumulation_steps=1 --set training.disable_tqdm=true --set data.held_out=0.3"
    return lambda *more: ["extend", str(tiny_checkpoint), *words.split(), *quiet.split(), *more]


def test_a_run_its_json_and_its_text(command: Any, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "a run"
    assert cli.main(command("--output", str(folder), "--json")) == 0
    out, _ = capsys.readouterr()
    record = json.loads(out)
    assert out.count("\n") == 1
    assert (record["folder"], record["finished"], record["steps"]) == (str(folder), True, 2)
    assert record["window"]["target"] == 256
    assert any("eval_perplexity_256" in entry for entry in record["log"])

    assert cli.main(["generate", str(folder), "--prompt", "text number", "--max-new-tokens", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["window_tokens"] == 256
    assert cli.main(["generate", str(folder), "--prompt", "x" * 252, "--max-new-tokens", "5"]) == 2
    assert "long mode holds 256" in capsys.readouterr().err

    assert cli.main(command("--output", str(folder))) == 2
    assert "not empty" in capsys.readouterr().err


def test_ctrl_c_before_the_first_step_does_not_claim_to_have_saved_one(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from skipwise.train.trainer import SkipwiseTrainer

    own = SkipwiseTrainer.evaluate

    def interrupted(trainer: SkipwiseTrainer) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return own(trainer)

    monkeypatch.setattr(SkipwiseTrainer, "evaluate", lambda trainer, **_: interrupted(trainer))
    assert cli.main(command("--output", str(tmp_path / "run"))) == 130
    assert "stopped before the first step. Continue with: skipwise extend --config" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_saves_and_says_how_to_go_on(
    flags: list[str],
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from skipwise.train.trainer import SkipwiseTrainer

    own = SkipwiseTrainer.training_step

    def interrupted(trainer: SkipwiseTrainer, *arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return own(trainer, *arguments, **keywords)

    folder = tmp_path / "a run"
    monkeypatch.setattr(SkipwiseTrainer, "training_step", interrupted)
    assert cli.main(command("--output", str(folder), *flags)) == 130
    monkeypatch.setattr(SkipwiseTrainer, "training_step", own)
    out, err = capsys.readouterr()
    assert (folder / "checkpoint-1" / "model.safetensors").exists()
    if flags:
        assert json.loads(out) == {"folder": str(folder), "finished": False, "steps": 1}

    line = err.strip().splitlines()[-1]
    assert line.startswith("stopped after step 1, saved. Continue with: skipwise extend ")
    program, *again = shlex.split(line.partition("Continue with: ")[2])
    assert program == "skipwise"
    assert cli.main(again) == 0
    out = capsys.readouterr().out
    assert "extended to 256 tokens" in out
    hint = shlex.split(out.strip().splitlines()[-1].removeprefix("try it: "))
    assert hint[:3] == ["skipwise", "generate", str(folder)]
    assert cli.main(again) == 2
    assert "is finished" in capsys.readouterr().err

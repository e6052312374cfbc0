import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import skipwise
from skipwise import cli
from skipwise.errors import ConfigError, DataError
from skipwise.records.verdict import Verdict
from skipwise.rope import YaRN

VERBS = [command.name or getattr(command.callback, "__name__", "") for command in cli.build_app().registered_commands]


@pytest.fixture(autouse=True)
def wide_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def run_failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with one more verb, `stumble`, that raises what it is given."""

    def run(error: BaseException, *before: str) -> int:
        def stumble() -> None:
            raise error

        class Verb:
            @staticmethod
            def register(app: typer.Typer) -> None:
                app.command()(stumble)

        monkeypatch.setattr(cli, "VERBS", (Verb, *cli.VERBS))
        return cli.main([*before, "stumble"])

    return run


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err.rstrip("\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"skipwise {skipwise.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_and_speaks_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: skipwise {verb}" in out
    assert "--json" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctro"], ["'doctro'", "'doctor'", "see 'skipwise --help'"]),
        (["doctor", "m", "--target"], ["--target", "see 'skipwise doctor --help'"]),
        (["eval", "benchmarks", "m", "--out"], ["--out", "see 'skipwise eval benchmarks --help'"]),
        (["generate", "m", "--cache", "3"], ["Invalid value for '--cache': '3' is not one of 'dynamic', 'static'"]),
        (["doctor", "m", "--taget", "1k"], ["--taget", "--target", "see 'skipwise doctor --help'"]),
        (["doctor", "m"], ["'m'", "no checkpoint folder", "--target"]),
        (["doctor", "/no/such"], ["'/no/such'", "no such folder exists"]),
        (["doctor", "m", "--interpolation", "yarn"], ["'target' is missing"]),
        (["doctor"], ["'model' is missing"]),
        (["doctor", "--config", "/no/such.yaml"], ["/no/such.yaml", "cannot be read"]),
        (["doctor", "m", "--target", "1k", "--dtype", "int8"], ["'dtype'", "'int8'", "'bfloat16'"]),
        (["doctor", "m", "--target", "32kb"], ["'--target'", "'32kb'", "32k"]),
        (["--no-such"], ["--no-such"]),
        (["generate", "m"], ["--prompt TEXT or --prompt-file FILE", "neither"]),
        (["generate", "m", "--prompt", "a", "--file", "b"], ["both"]),
        (
            ["generate", "m", "--file", "/no/such/file"],
            ["--prompt-file is '/no/such/file'; it cannot be read", "--prompt TEXT"],
        ),
        (["generate", "m", "--file", "/"], ["--prompt-file is '/'; it cannot be read", "--prompt TEXT"]),
        (["coverage", "--plot", "/no/such/x.svg"], ["--plot is '/no/such/x.svg'", "give a path in a folder"]),
    ],
)
def test_a_mistake_gets_one_line_and_exit_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    line = only_line(capsys)
    assert line.startswith("skipwise: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "error", [ConfigError("rank is 0;\n  give at least 1"), DataError("x"), PermissionError(13, "no")]
)
def test_an_error_that_the_user_can_mend_is_one_line(
    error: Exception, run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error) == 2
    assert only_line(capsys) == "skipwise: " + " ".join(str(error).split())


def test_debug_shows_the_traceback_of_a_mistake_too(
    run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_failing(DataError("x"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SKIPWISE_DEBUG", "1")
    assert run_failing(DataError("x")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_is_no_verdict(
    run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(ZeroDivisionError("division by zero")) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("skipwise: unexpected ZeroDivisionError")


def test_an_interrupt_is_130_and_one_line(run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(KeyboardInterrupt()) == 130
    assert only_line(capsys) == "skipwise: interrupted"


def test_a_negative_verdict_is_1_and_silent(
    run_failing: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(typer.Exit(1)) == 1
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_verdict() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-m", "skipwise", "--version"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_generate_streams_the_text(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(tiny_checkpoint), "--prompt", "def main", "--max-new-tokens", "8"]) == 0
    streamed = capsys.readouterr().out
    assert cli.main(["generate", str(tiny_checkpoint), "--prompt", "def main", "--max-new-tokens", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert streamed == record["text"] + "\n"
    assert (record["prompt_tokens"], record["new_tokens"], record["window_tokens"]) == (8, 8, 64)


def test_generate_fills_the_window_and_not_one_token_more(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("x" * 60)
    arguments = ["generate", str(tiny_checkpoint), "--file", str(prompt), "--json", "--max-new-tokens"]
    assert cli.main([*arguments, "4"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 4
    assert cli.main([*arguments, "5"]) == 2
    line = only_line(capsys)
    assert "60 tokens" in line
    assert "64 tokens" in line


def test_generate_draws_the_same_from_the_same_seed(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*more: str) -> str:
        arguments = ["generate", str(tiny_checkpoint), "--prompt", "a", "--max-new-tokens", "16", "--json", *more]
        assert cli.main(arguments) == 0
        return json.loads(capsys.readouterr().out)["text"]

    assert text("--temperature", "1", "--seed", "3") == text("--temperature", "1", "--seed", "3")
    assert text("--temperature", "1", "--seed", "3") != text("--temperature", "1", "--seed", "4")
    assert text("--seed", "3") == text("--seed", "4")


def test_doctor_prints_one_verdict_a_line_and_is_content_with_a_llama(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(tiny_checkpoint), "--target", "256", "--train", "32", "--json", "--dilution"]) == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"name", "status", "detail", "cure"} == set(verdicts[0])
    assert all(verdict["status"] in {"pass", "note"} for verdict in verdicts), verdicts
    assert "dilution" in {verdict["name"] for verdict in verdicts}
    assert cli.main(["doctor", str(tiny_checkpoint), "--target", "256", "--train", "32", "--dilution"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[verdict["status"], verdict["name"]] for verdict in verdicts]


def test_doctor_exits_1_when_a_probe_fails(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("skipwise.doctor")
    failure = module.Verdict(name="mask", status="fail", detail="chunks cannot see each other", cure="use sdpa")
    monkeypatch.setattr(module, "doctor", lambda *_args, **_settings: [failure])
    assert cli.main(["doctor", str(tiny_checkpoint), "--target", "256"]) == 1
    assert capsys.readouterr().out == failure.line + "\n"


@pytest.fixture
def probed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """What `doctor` and `extend` have probed when they are given the same run: as a file, as flags, or both."""
    calls: list[dict[str, Any]] = []

    def probe(model: Any, window: Any, interpolation: Any, **how: Any) -> list[Verdict]:
        how["tokenizer"] = type(how["tokenizer"])
        settings = {"dtype": model.dtype, "attention": model.config._attn_implementation, "config": model.config}
        calls.append({**how, **settings, "window": window, "interpolation": interpolation})
        return [Verdict(name="mask", status="fail", detail="enough seen", cure="none")]

    monkeypatch.setattr(importlib.import_module("skipwise.doctor"), "doctor", probe)
    monkeypatch.setattr(importlib.import_module("skipwise.train.preparation"), "doctor", probe)

    def run(text: str, *flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
        file = tmp_path / "run.yaml"
        file.write_text(f"model: {tiny_checkpoint}\noutput: {tmp_path / 'run'}\n{text}")
        assert cli.main(["doctor", "--config", str(file), *flags]) == 1
        assert cli.main(["extend", "--config", str(file), *flags]) == 2  # An UnsupportedModelError.
        assert "enough seen" in capsys.readouterr().err
        by_doctor, by_extend = calls
        calls.clear()
        for call in (by_doctor, by_extend):
            call["config"] = call["config"].to_dict()
        return by_doctor, by_extend

    return run


RUN = """
target: 512
window: 32
interpolation: {kind: yarn, beta_fast: 16}
dilution: true
dtype: bfloat16
attention: eager
training: {gradient_checkpointing: false, bf16: true, use_cpu: true}
seed: 7
"""


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("target: 256", []),
        (RUN, []),
        (RUN, ["--target", "1k", "--interpolation", "ntk", "--attention", "sdpa", "--seed", "8", "--window", "16"]),
    ],
)
def test_doctor_probes_what_extend_trains(text: str, flags: list[str], probed: Callable[..., Any]) -> None:
    by_doctor, by_extend = probed(text, *flags)
    assert by_doctor == by_extend


def test_doctor_takes_settings_of_the_run_and_flags_over_them(probed: Callable[..., Any]) -> None:
    probe, _ = probed("target: 256")
    assert (probe["dtype"], probe["gradient_checkpointing"], probe["check_dilution"]) == (torch.float32, True, True)
    probe, _ = probed("target: 256\nrecipe: paper")
    assert (probe["dtype"], probe["gradient_checkpointing"], probe["check_dilution"]) == (torch.float32, True, False)
    probe, _ = probed(RUN)
    assert (probe["dtype"], probe["gradient_checkpointing"], probe["check_dilution"]) == (torch.bfloat16, False, True)
    assert probe["interpolation"] == YaRN(beta_fast=16)
    assert probe["window"] == skipwise.Window(train=32, original=64, target=512)
    assert (probe["attention"], probe["seed"], probe["mixed_precision"]) == ("eager", 7, torch.bfloat16)


def test_flags_of_doctor_alone(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(importlib.import_module("skipwise.doctor"), "doctor", lambda *_, **how: calls.append(how) or [])
    (tmp_path / "run.yaml").write_text(f"model: {tiny_checkpoint}\n{RUN}")
    for arguments in (
        ["--config", str(tmp_path / "run.yaml"), "--checkpointing", "--no-dilution"],
        [str(tiny_checkpoint), "--target", "256", "--no-checkpointing", "--dilution"],
    ):
        assert cli.main(["doctor", *arguments]) == 0
    assert [call["gradient_checkpointing"] for call in calls] == [True, False]
    assert [call["check_dilution"] for call in calls] == [False, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "32"], ["32 tokens", "already handles 64"]),
        (["--target", "256", "--interpolation", "yran"], ["'yran'", "'yarn'"]),
        (["--target", "256", "--train", "1k"], ["train=1024", "target=256"]),
    ],
)
def test_doctor_refuses_lengths_and_kinds_that_cannot_be(
    tiny_checkpoint: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(tiny_checkpoint), *options]) == 2
    line = only_line(capsys)
    assert all(word in line for word in words), line

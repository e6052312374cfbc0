"""The command: its help, one line for every mistake, exit codes, former flags, and the verbs generate and doctor."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers  # noqa: F401 - what a verb prints before it loads this is in test_startup.py
import typer
import typer.main
from refusals import lines_of

import skipwise
from skipwise import cli, pages
from skipwise.cli.former_flags import FORMER, as_settings
from skipwise.cli.options import print_table, settings_over
from skipwise.config import RunConfig
from skipwise.errors import ConfigError, DataError
from skipwise.pages import read_on
from skipwise.records.verdict import Verdict
from skipwise.rope import NTK, YaRN

COMMANDS = getattr(typer.main.get_command(cli.build_app()), "commands")  # noqa: B009 - for pyright
FLAGS = {
    "plan": "calibrate checkpointing context count global-batch json kv-bits length library-loss "
    "machine micro-batch no-checkpointing original out price rank requests sharding share steps "
    "target trust-remote-code weight-bits window write-config",
    "doctor": "base config corpus data fix json out set slice target trust-remote-code",
    "coverage": "chunks json original plot sampler samples seed skips target train",
    "extend": "config data json launch max-restarts nnodes nproc output rdzv recipe resume set "
    "skip-bad-items target trust-remote-code tuning verbose",
    "calibrate": "again attention cache documents dry-run dtype factors field json length no-cache "
    "num-documents output seed skip-unreadable tolerance trials trust-remote-code",
    "calibrate rope": "attention candidates documents dtype field json judged kind out seed skip-unreadable "
    "target trials trust-remote-code",
    "eval": "all-checkpoints all-documents allow-beyond attention base cache documents dtype field format "
    "held-out-share interpolation json language length no-cache out rule samples scorer seed set "
    "skip-unreadable suite target task trust-remote-code verdict weights",
    "eval build-suite": "field held-out items json kinds language length out seed skip-unreadable tokenizer "
    "trust-remote-code",
    "eval benchmarks": "attention batch-size benchmark dtype json limit out samples seed tasks-folder "
    "trust-remote-code",
    "compare": "arms data json output resume retry-failed set suite target",
    "pilot": "data json machine output price schedule set target time",
    "report": "card csv json markdown operations original out samples title",
    "export": "base dtype engine json long-tokens merge-with-base out public push rank to trust-remote-code",
    "generate": "adapter ask attention base cache chunk control-tokens dtype file json max-new-tokens mode "
    "no-stream prompt prompt-file seed stats stop stream temperature top-p trust-remote-code weights",
    "serve": "attention audit base cache chat-template dtype engine grace host json keys llama-cpp-args long-slots "
    "max-new-tokens measure name no-measure port short-slots tls-cert tls-key trust-remote-code turns vllm-args "
    "vllm-memory waiting weights",
    "keys create": "expires json keys role",
    "keys": "json keys",
    "keys list": "json keys",
    "keys revoke": "json keys",
    "keys role": "anew json keys max-context models requests-per-minute tokens-per-minute",
    "demo": "json output seed",
}
"""The flags of each verb that are declared; with `LEADS`, all that a script may have."""


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

        monkeypatch.setattr(cli, "VERBS", {**cli.VERBS, "stumble": stumble})
        return cli.main([*before, "stumble"])

    return run


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = lines_of(err)
    return line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"skipwise {skipwise.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in FLAGS)


def test_no_flag_is_lost() -> None:
    found = {
        verb: {flag for option in command.params for flag in [*option.opts, *option.secondary_opts] if flag[:2] == "--"}
        for verb, command in COMMANDS.items()
    }
    assert found == {verb: {f"--{name}" for name in names.split()} for verb, names in FLAGS.items()}
    former = {verb: {flag.split("=")[0].split()[0] for flag in flags} for verb, flags in LEADS.items()}
    assert former == {verb: set(flags) for verb, flags in FORMER.items()}


# For each former flag with a value: where it leads, and the value there.
LEADS: dict[str, dict[str, tuple[str, Any]]] = {
    "extend": {
        "--window 1k": ("window", 1024),
        "--original 010": ("original", 10),
        "--interpolation ntk": ("interpolation", {"kind": "ntk"}),
        "--attention eager": ("attention", "eager"),
        "--seed 3": ("seed", 3),
        "--sampler cream": ("sampler", {"kind": "cream"}),
        "--skips simplex": ("sampler", {"kind": "pose", "skips": "simplex"}),
        "--chunks=3": ("sampler", {"kind": "pose", "chunks": 3}),
        "--steps 7": ("training", {"max_steps": 7}),
        "--learning-rate 1e-4": ("training", {"learning_rate": 0.0001}),
        "--batch 2": ("training", {"per_device_train_batch_size": 2}),
        "--calibrate": ("calibrate", True),
        "--skip-unreadable": ("data.skip_unreadable", True),
    },
    "doctor": {
        "--window 64": ("window", 64),
        "--train 2k": ("window", 2048),
        "--original 1.5k": ("original", 1536),
        "--interpolation linear": ("interpolation", {"kind": "linear"}),
        "--attention sdpa": ("attention", "sdpa"),
        "--dtype auto": ("dtype", "auto"),
        "--checkpointing": ("training", {"gradient_checkpointing": True}),
        "--no-checkpointing": ("training", {"gradient_checkpointing": False}),
        "--dilution": ("dilution", True),
        "--no-dilution": ("dilution", False),
        "--seed 5": ("seed", 5),
    },
    "compare": {
        "--reference full": ("reference", "full"),
        "--seeds 0,1": ("seeds", [0, 1]),
        "--steps 9": ("training.max_steps", 9),
        "--learning-rate 0.01": ("training.learning_rate", 0.01),
        "--length 1k,300": ("evaluation.lengths", [1024, 300]),
        "--costs 2k": ("costs.targets", [2048]),
    },
    "eval": {
        "--num-documents 3": ("num_documents", 3),
        "--trials 4": ("trials", 4),
        "--depths 2": ("num_depths", 2),
        "--haystack documents": ("haystack", "documents"),
    },
}


@pytest.mark.parametrize(("verb", "flag"), [(verb, flag) for verb, flags in LEADS.items() for flag in flags])
def test_a_former_flag_is_the_setting_that_it_was(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, value = LEADS[verb][flag]
    words = as_settings(["model", *flag.split()], FORMER[verb])
    assert words[::2] == ["--set", "model"]
    told = flag.replace("=", " ").split()[0]
    assert capsys.readouterr().err == f"skipwise: {told} can be written as --set {shlex.quote(words[1])}\n"
    found: Any = settings_over({}, {"model": "m", "target": 4096}, [words[1]])
    if verb in ("extend", "doctor"):
        found = RunConfig.from_mapping(found).model_dump()
    for part in name.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("given", "read"),
    [
        # A --set overrides a flag wherever it stands; the last of the same flag holds; a kind comes before its fields.
        ("--set seed=1 --seed 2 m", "--set seed=2 --set seed=1 m"),
        ("--seed 2 m --seed=3", "--set seed=3 m"),
        ("--skips flat --sampler pose", "--set sampler=pose --set sampler.skips=flat"),
        ("m -- --seed 3", "m -- --seed 3"),
        ("--dilution --no-dilution", "--set dilution=false"),
        ("--no-dilution --dilution", "--set dilution=true"),
    ],
)
def test_former_flags_among_others(given: str, read: str) -> None:
    assert as_settings(given.split(), {**FORMER["extend"], **FORMER["doctor"]}) == read.split()


def test_values_that_yaml_reads_otherwise_stay_what_they_were() -> None:
    for text in ("1", "no", "a: b", "#x", "[", '"', "\u00e4"):
        (_, assignment) = as_settings(["--attention", text], FORMER["extend"])
        assert settings_over({}, {}, [assignment]) == {"attention": text}


@pytest.mark.parametrize("verb", FLAGS)
def test_every_verb_speaks_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


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
        (["doctor", "m", "--target", "1k", "--set", "dtype=int8"], ["'dtype'", "'int8'", "'bfloat16'"]),
        (["doctor", "embedded", "--target", "32"], ["32 tokens", "already handles 256"]),
        (["doctor", "embedded", "--target", "1k", "--set", "interpolation=yran"], ["'yran'", "'yarn'"]),
        (["doctor", "embedded", "--target", "1k", "--set", "window=2k"], ["train=2048", "target=1024"]),
        (["extend"], ["'model' is missing"]),
        (["extend", "m"], ["'target' is missing"]),
        (["extend", "m", "--target", "many"], ["'--target'", "'many'", "32k"]),
        (["extend", "m", "--target", "1k", "--set", "sampler={kind: randpos, skips: flat}"], ["skips"]),
        (["extend", "m", "--target", "1k", "--tuning", "lore"], ["lore", "'lora'"]),
        (["extend", "m", "--target", "1k", "--set", "join"], ["'join'", "NAME=VALUE"]),
        (["extend", "m", "--target", "1k", "--set", "data..join=1"], ["NAME=VALUE"]),
        (["extend", "m", "--target", "1k", "--set", "data.join=["], ["not YAML"]),
        (["extend", "m", "--target", "1k", "--set", "data.jion=true"], ["'data.jion' is unknown", "'join'"]),
        (["extend", "m", "--target", "1k", "--set", "data=x"], ["'data'", "'x'"]),
        (["extend", "--config", "/no/such.yaml"], ["/no/such.yaml", "cannot be read"]),
        (["extend", "/no/such/model", "--target", "1k"], ["/no/such/model"]),
        (["extend", "m", "--steps", "many"], ["'--steps'", "'many' is not a whole number", "skipwise extend --help"]),
        (["extend", "m", "--window", "1q"], ["'--window'", "length is '1q'"]),
        (["extend", "m", "--chunks"], ["'--chunks'", "no value is given"]),
        (["extend", "m", "--calibrate=yes"], ["'--calibrate'", "takes no value"]),
        (["compare", "m", "--seeds", "0,x"], ["'--seeds'", "'0,x'", "0,1,2"]),
        (["compare", "m", "--length", "2k,x"], ["'--length'", "'x'"]),
        (["compare", "m", "--target", "1k", "--set", "data=5"], ["'data' is 5"]),
        (["compare", "m", "--target", "1k", "--set", "data.source=5"], ["'data.source' is 5"]),
        (["compare", "m", "--target", "1k", "--set", "evaluation=5", "--suite", "s"], ["'evaluation' is 5"]),
        (["eval", "embedded", "--task", "passkey", "--length", "64x"], ["'--length'", "length is '64x'"]),
        (["eval", "embedded", "--task", "pass", "--length", "64"], ["'pass'; known are"]),
        (["eval", "embedded", "--task", "passkey"], ["no length is given"]),
        (["eval", "embedded", "--task", "sliding", "--length", "64", "--set", "trials=5"], ["trials is set to 5"]),
        (["eval", "embedded", "--task", "sliding", "--length", "64", "--set", "passkey.trials=5"], ["passkey.trials"]),
        (["eval", "embedded", "--task", "passkey", "--length", "512"], ["window is 256"]),
        (["eval", "m", "--length", "64", "--target", "1k"], ["--interpolation and --target"]),
        (["--no-such"], ["--no-such"]),
        (["generate", "m"], ["--prompt TEXT or --prompt-file FILE", "neither"]),
        (["generate", "m", "--prompt", "a", "--file", "b"], ["both"]),
        (["generate", "m", "--file", "/no/such/file"], ["--prompt-file is '/no/such/file'", "--prompt TEXT"]),
        (["generate", "m", "--file", __file__.replace("test_cli.py", "no.pdf")], ["cannot be read"]),
        (["calibrate", "m", "--factors", "1,x"], ["--factors is '1,x'", "0.9,1.1,1.2"]),
        (["coverage", "--sampler", "pos"], ["did you mean 'pose'"]),
        (["coverage", "--skips", "flatt"], ["did you mean 'flat'"]),
        (["coverage", "--chunks", "two"], ["--chunks is 'two'"]),
        (["coverage", "--sampler", "randpos", "--chunks", "3"], ["settings of pose"]),
        (["coverage", "--target", "long"], ["length is 'long'"]),
        (["coverage", "--plot", "/no/such/x.svg"], ["--plot is '/no/such/x.svg'", "no folder '/no/such'"]),
    ],
)
def test_a_mistake_gets_one_line_and_exit_2(arguments: list[str], words: list[str], capsys: Any) -> None:
    assert cli.main([*arguments[0].split(), *arguments[1:]]) == 2
    line = only_line(capsys)
    assert line.startswith("skipwise: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("rank is 0;\n  give at least 1"), 2, ["skipwise: rank is 0; give at least 1"]),
        (DataError("x"), 2, ["skipwise: x", "read on: https://x.org/messages/unreadable-documents.html"]),
        (
            DataError("x", page="out-of-memory"),
            2,
            ["skipwise: x", "read on: https://x.org/messages/out-of-memory.html"],
        ),
        (PermissionError(13, "no"), 2, ["skipwise: [Errno 13] no"]),
        (KeyboardInterrupt(), 130, ["skipwise: interrupted"]),
        (typer.Exit(1), 1, []),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException,
    code: int,
    told: list[str],
    run_failing: Callable[..., int],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "_documentation", lambda: "https://x.org/")
    assert run_failing(error) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", told)


def test_debug_and_bugs_show_the_traceback(run_failing: Any, capsys: Any, monkeypatch: Any) -> None:
    assert run_failing(DataError("x"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    assert run_failing(ZeroDivisionError("division by zero")) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("skipwise: unexpected ZeroDivisionError")
    monkeypatch.setenv("SKIPWISE_DEBUG", "1")
    assert run_failing(DataError("x")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_verdict() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-m", "skipwise", "--version"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_generate_streams_the_text_that_it_records(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generated(*more: str) -> str:
        arguments = ["generate", str(tiny_checkpoint), "--prompt", "def main", "--max-new-tokens", "8", *more]
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    record = json.loads(generated("--json"))
    assert generated() == record["text"] + "\n"
    assert (record["prompt_tokens"], record["new_tokens"], record["window_tokens"]) == (8, 8, 64)
    drawn = [generated("--temperature", "1", "--seed", seed) for seed in "334"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_doctor_prints_one_verdict_a_line_and_is_content_with_a_llama(tiny_checkpoint: Path, capsys: Any) -> None:
    assert cli.main(["doctor", str(tiny_checkpoint), "--target", "256", "--train", "32", "--json", "--dilution"]) == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"name", "status", "detail", "cure", "page"} == set(verdicts[0])
    assert all(f"messages/{verdict['name']}" in verdict["page"] for verdict in verdicts)
    assert all(verdict["status"] in {"pass", "note"} for verdict in verdicts), verdicts
    assert "dilution" in {verdict["name"] for verdict in verdicts}
    assert cli.main(["doctor", str(tiny_checkpoint), "--target", "256", "--train", "32", "--dilution"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[: len(verdicts)]] == [[one["status"], one["name"]] for one in verdicts]
    assert lines[len(verdicts) :] == [read_on(one["name"]) for one in verdicts if one["status"] == "note"]


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
PROBED = ("dtype", "gradient_checkpointing", "check_dilution", "attention", "seed", "mixed_precision", "train", "kind")


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("target: 256", [], (torch.float32, True, True, "sdpa", 0, None, 64, YaRN())),
        ("target: 256\nrecipe: paper", [], (torch.float32, True, False, "sdpa", 0, None, 64, YaRN())),
        (RUN, [], (torch.bfloat16, False, True, "eager", 7, torch.bfloat16, 32, YaRN(beta_fast=16))),
        (
            RUN,
            ["--target", "1k", "--interpolation", "ntk", "--attention", "sdpa", "--seed", "8", "--window", "16"],
            (torch.bfloat16, False, True, "sdpa", 8, torch.bfloat16, 16, NTK()),
        ),
    ],
)
def test_doctor_probes_what_extend_trains(
    text: str,
    flags: list[str],
    expected: tuple[Any, ...],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, Any]] = []
    failure = Verdict(name="mask", status="fail", detail="enough seen", cure="none")

    def probe(model: Any, window: Any, interpolation: Any, **how: Any) -> list[Verdict]:
        config = model.config.to_dict()
        settings = {"dtype": model.dtype, "attention": model.config._attn_implementation, "config": config}
        how |= {"tokenizer": type(how["tokenizer"]), "window": window, "train": window.train, "kind": interpolation}
        calls.append({**how, **settings})
        return [failure]

    monkeypatch.setattr(importlib.import_module("skipwise.train.preflight"), "doctor", probe)
    monkeypatch.setattr(importlib.import_module("skipwise.train.preparation"), "doctor", probe)
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {tiny_checkpoint}\noutput: {tmp_path / 'run'}\n{text}")
    assert cli.main(["doctor", "--config", str(file), *flags]) == 1
    assert capsys.readouterr().out == f"{failure.line}\n{read_on('mask')}\n"
    assert cli.main(["extend", "--config", str(file), *flags]) == 2  # An UnsupportedModelError.
    assert "enough seen" in capsys.readouterr().err
    by_doctor, by_extend = calls
    assert by_doctor == by_extend
    assert tuple(by_doctor[name] for name in PROBED) == expected


def test_tables_are_never_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a narrow terminal, and in pipes, which rich takes to have 80 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("short_window_regression", "log_perplexity_ratio scaled only", "0.0412345", "0.012345 to 0.098765")] * 2
    print_table(("task", "measure", "value", "95% interval"), rows, title="Regression")
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "Regression"
    assert header.split() == ["task", "measure", "value", "95%", "interval"]
    assert [" ".join(line.split()) for line in lines] == [" ".join(row) for row in rows]

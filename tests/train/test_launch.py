"""Runs in several processes started by one command: each engine reads its own settings, torchrun its command line."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers
from forked import launched, start
from refusals import lines_of, refused
from tiny_runs import assert_equal_weights
from torch.distributed.run import config_from_args, get_args_parser

from skipwise import cli
from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.launch import ENGINES, Launch


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_reads_its_settings(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig  # pyright: ignore[reportMissingImports]

    settings = Launch(engine=f"zero{stage}", processes=2).write({"training": {"learning_rate": 1e-3}}, tmp_path)[
        "training"
    ]
    assert settings["learning_rate"] == 1e-3
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=3, **settings
    )
    filled = arguments.hf_deepspeed_config
    filled.trainer_config_finalize(arguments, None, 10)
    read: Any = DeepSpeedConfig(filled.config)
    assert read.zero_optimization_stage == stage
    assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (2, 3)
    assert read.zero_config.gather_16bit_weights_on_model_save == (stage == 3)


def test_one_engine_takes_the_place_of_another(tmp_path: Path) -> None:
    before = {"model": "m", "training": {"deepspeed": {}, "max_steps": 3}, "parallel": {"context": 2}}
    shards = Launch(engine="fsdp2", processes=2).write(before, tmp_path)
    assert shards == {"model": "m", "training": {"max_steps": 3}, "parallel": {"context": 2, "shard": True}}
    whole = Launch(engine="ddp", processes=2).write(shards, tmp_path)
    assert whole == {**shards, "parallel": {"context": 2, "shard": False}}


def test_torchrun_reads_the_command() -> None:
    command = Launch(engine="ddp", processes=8, machines=4, rendezvous="node0", max_restarts=2).command(["extend"])
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    config, run, arguments = config_from_args(get_args_parser().parse_args(command[3:]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (4, 4, 8, 2)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "node0:29400")
    assert run == sys.executable
    assert arguments[-3:] == ["-m", "skipwise", "extend"]
    alone = Launch(engine="ddp", processes=2)
    config, _, _ = config_from_args(get_args_parser().parse_args(alone.command([])[3:]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert alone.environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"engine": "fsdp"}, "--launch is 'fsdp'.* ddp, fsdp2, zero2, zero3"),
        ({"processes": 0}, "--nproc is 0.* 1 "),
        ({"machines": 0}, "--nnodes is 0.* 1 "),
        ({"max_restarts": -1}, "--max-restarts is -1.* 0 "),
        ({"machines": 2}, "--rdzv HOST"),
        ({"machines": 2, "rendezvous": "node0:"}, "--rdzv is 'node0:'.* HOST:PORT"),
    ],
)
def test_what_cannot_be_launched(how: dict[str, Any], named: str) -> None:
    with refused(ConfigError, named):
        Launch(**{"engine": "ddp", "processes": 2, **how})


def test_the_verb_has_the_agent_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("skipwise.cli.extend._agent", lambda *given: started.append(given) or 3)
    monkeypatch.setattr("skipwise.train.extend", lambda *_, **__: pytest.fail("it was trained in this process"))
    output = tmp_path / "out"
    flags = ["embedded", "--target", "4k", "--set", "training.use_cpu=true", "--output", str(output)]
    assert cli.main(["extend", *flags, "--launch", "ddp", "--nproc", "2", "--resume"]) == 3
    ((command, environment),) = started
    assert command[-4:] == ["extend", "--config", str(output / "launch" / "run.yaml"), "--resume"]
    assert environment["SKIPWISE_LAUNCHED"] == "--launch ddp --nproc 2"
    assert RunConfig.from_yaml(command[-2]).training == {"use_cpu": True}
    assert "starting: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--set=parallel.shard=true"], "parallel.shard"),
        (["--launch", "fsdp2", "--nproc", "2", "--set=calibrate=true"], "'calibrate'"),
        (["--launch", "fsdp2", "--nproc", "2", "--set=training.load_best_model_at_end=true"], "load_best_model_at_end"),
        (["--nproc", "2"], "--nproc"),
        (["--nnodes", "2"], "--nnodes"),
        (["--launch", "zero4"], "--launch is 'zero4'"),
        (["--launch", "ddp", "--data", "/no/such"], "/no/such"),
        (["--launch", "ddp", "--set", "window=8k"], "train=8192"),
        (["--launch", "ddp", "--nproc", "3", "--set=parallel.context=2"], "3 processes"),
        (["--launch", "ddp", "--output", "."], "'.'"),
    ],
)
def test_mistakes_get_one_line(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["extend", "embedded", "--target", "4k", "--set", "training.use_cpu=true", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(lines_of(err)), named in err) == ("", 1, True)


def test_a_missing_package_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["extend", "embedded", "--target", "4k", "--launch", "zero3"]) == 2
    assert "skipwise[deepspeed]" in capsys.readouterr().err


def test_engines_are_those_of_the_help() -> None:
    from skipwise.cli.extend import extend

    told = extend.__annotations__["launch"].__metadata__[0].help
    assert all(name in told for name in ENGINES)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_what_only_the_processes_find_has_no_traceback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    command = ["extend", tiny_checkpoint, "--target", 256]
    command += ["--data", str(tmp_path / "short.txt"), "--set", "data.held_out=0.0", "--set", "training.use_cpu=true"]
    command += ["--output", str(tmp_path / "run"), "--launch", "ddp", "--nproc", "2"]
    done = start("-m skipwise", *command)
    assert done.wait() == 2, done.stderr
    assert "skipwise: no document has" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process to kill by Linux's /proc")
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_killed_process_is_started_anew_and_the_run_goes_on(
    engine: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for i in range(12):
        (documents / f"{i}.txt").write_text(f"text number {i} " * 30)

    def arguments(output: str) -> list[str]:
        settings = {"data.held_out": 0.0, "training.gradient_accumulation_steps": 2}
        settings |= {"training.save_steps": 2, "validation.every_steps": 0, "training.learning_rate": 1e-3}
        settings["parallel.shard"] = str(engine == "fsdp2").lower()
        flags = ["--target", "256", "--window", "32", "--data", str(documents), "--steps", "40"]
        for name, value in settings.items():
            flags += ["--set", f"{name}={value}"]
        return ["extend", str(tiny_checkpoint), *flags, "--output", str(tmp_path / output)]

    cache = str(tmp_path / "cache")
    launched("-m skipwise", *arguments("whole"), processes=2, SKIPWISE_CACHE=cache)
    launch = ["--launch", engine, "--nproc", "2", "--max-restarts", "1"]
    run = start("-m skipwise", *arguments("killed"), *launch, SKIPWISE_CACHE=cache)
    (agent,) = run.processes
    while run.returncode is None and not (tmp_path / "killed" / "checkpoint-4").exists():
        time.sleep(0.02)
    (second,) = [pid for pid in children(agent.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)
    assert run.wait() == 0, run.stdout + run.stderr
    records = [json.loads((tmp_path / name / "skipwise.json").read_text()) for name in ("whole", "killed")]
    assert records[0]["resumed_at_step"] is None
    assert 4 <= records[1]["resumed_at_step"] < 40
    assert_equal_weights(tmp_path / "whole", tmp_path / "killed")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

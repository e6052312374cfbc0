"""The files under examples/: each run fits where it says, each job starts skipwise as skipwise is started."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from skipwise import cli
from skipwise.config import LoraTuning, QloraTuning, RunConfig, Tuning
from skipwise.config.stages import run_stages
from skipwise.memory import Sharding
from skipwise.plan import Approach, Job, TrainingEstimate, Utilisation, plan
from skipwise.plan.machines import MACHINES
from skipwise.plan.profiles import Profiles
from skipwise.plan.shape import model_shape
from skipwise.plan.training import TrainingPlanner

FOLDER = Path(__file__).parents[2] / "examples"
RUNS = {"one-24gb-gpu": ("rtx-4090", 1, "diluted"), "node-8x80gb": ("a100-80", 8, "growing")}


def test_the_run_in_four_bits_fits_where_it_says() -> None:
    run = RunConfig.from_yaml(FOLDER / "one-24gb-gpu-qlora.yaml")
    assert isinstance(run.tuning, QloraTuning)
    at_a_time = run.training["per_device_train_batch_size"]
    assert at_a_time * run.training["gradient_accumulation_steps"] == 64
    planner = TrainingPlanner(Profiles(model_shape("llama-2-7b")), MACHINES["rtx-4090"], Utilisation())

    def takes(tuning: Tuning) -> TrainingEstimate:
        approach = Approach(name="run", window_tokens=run.window or 0, tuning=tuning, diluted=run.dilution)
        return planner.estimate(approach, Job(), Sharding(), at_a_time)

    assert run.dilution
    assert takes(run.tuning).fits
    fields = run.tuning.model_dump(exclude={"kind", "quant", "double_quant"})
    assert not takes(LoraTuning(**fields)).fits


@pytest.mark.parametrize("name", RUNS)
def test_a_run_fits_where_it_says(name: str) -> None:
    machine, count, recipe = RUNS[name]
    run = RunConfig.from_yaml(FOLDER / f"{name}.yaml")
    training = run.training
    at_a_time = training["per_device_train_batch_size"]
    assert at_a_time * count * training.get("gradient_accumulation_steps", 64 // (at_a_time * count)) == 64
    lora = run.tuning if isinstance(run.tuning, LoraTuning) else LoraTuning()
    found = plan(
        "llama-2-7b", target=run.target, window=run.window, machine=machine, count=count, lora=lora,
        sharding="fsdp" if count > 1 else None, job=Job(steps=1000, global_batch=64, micro_batch=at_a_time),
    )  # fmt: skip
    advised = RunConfig.from_mapping(found.advice.config)
    assert run.recipe == recipe
    # What `extend` takes by itself: windows that grow as far as there is memory.
    assert (advised.recipe, advised.tuning.kind) == ("growing", run.tuning.kind)
    window = run.resolve_window(4096)
    widest = max(stage.window.train for stage in run_stages(advised, window, 1000))
    assert widest == (8192 if recipe == "diluted" else 8 * window.train)
    assert advised.dtype == run.dtype
    assert advised.training["per_device_train_batch_size"] == at_a_time


def started(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `skipwise` becomes on a machine of eight cards, when it is called like this in this folder."""
    calls: list[Any] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    # The model is on a hub, and the documents are the user's.
    monkeypatch.setattr("skipwise.train.check_run", lambda run, **_: None)
    monkeypatch.setattr("skipwise.cli.extend._agent", lambda command, _: calls.append(command) or 0)
    assert cli.main(command) == 0
    return calls[0]


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in which programs of a cluster are small scripts."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("begun", [False, True])
def test_slurm_starts_an_agent_on_each_node(begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER, tmp_path / "examples")
    environment = stand_ins(tmp_path, scontrol='printf "n17\\nn18\\n"', srun='printf "%s\\n" "$@"')
    environment |= {"SLURM_JOB_NODELIST": "n[17-20]", "SLURM_NNODES": "4"}
    if begun:
        (tmp_path / "runs" / "llama-2-7b-128k").mkdir(parents=True)
        shutil.copy(FOLDER / "node-8x80gb.yaml", tmp_path / "runs" / "llama-2-7b-128k" / "run.yaml")
    done = subprocess.run(
        ["bash", "examples/slurm.sbatch"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    program, *command = done.stdout.split()
    assert program == "skipwise"
    agent = started(command, tmp_path, monkeypatch)
    assert "--nnodes 4 --rdzv-backend c10d --rdzv-endpoint n17:29400" in " ".join(agent)
    assert ("--resume" in agent) == begun
    settings = RunConfig.from_yaml(tmp_path / agent[agent.index("--config") + 1])
    assert settings.parallel.shard


def test_kubernetes_starts_an_agent_in_each_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    shutil.copy(FOLDER / "node-8x80gb.yaml", tmp_path)
    environment = stand_ins(tmp_path, skipwise='printf "%s\\n" "$@"')
    done = subprocess.run(
        [*container["command"], *container["args"]], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    agent = started(done.stdout.split(), tmp_path, monkeypatch)
    pods = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == pods == int(agent[agent.index("--nnodes") + 1])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(agent[agent.index("--nproc-per-node") + 1])
    # The first pod's name in the service, which finds its pods by their label.
    place = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29400"
    assert agent[agent.index("--rdzv-endpoint") + 1] == place
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes

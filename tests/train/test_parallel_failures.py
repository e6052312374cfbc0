"""Several processes of which one runs out of memory, or has a loss that is no number under DeepSpeed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_documents

# One process's first batch of more windows than fit has no memory; or one of its losses is no number.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from skipwise.config import RunConfig
from skipwise.errors import SkipwiseError
from skipwise.launch import Launch
from skipwise.train import extend
from skipwise.train.trainer import SkipwiseTrainer

settings = json.loads(Path(sys.argv[1]).read_text())
engine, fitting, tokens, spoilt = (settings.pop(name) for name in ("engine", "fitting", "tokens", "spoilt"))
own_step, own_loss = SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss

def training_step(trainer, model, inputs, *more):
    if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > fitting:
        raise torch.OutOfMemoryError("as if there were no more")
    if inputs["input_ids"].numel() > tokens:
        raise torch.OutOfMemoryError("as if there were no more")
    return own_step(trainer, model, inputs, *more)

def compute_loss(trainer, *arguments, **keywords):
    bad = spoilt == trainer.state.global_step + 1 and os.environ["RANK"] == "1" and "resume" not in sys.argv
    return own_loss(trainer, *arguments, **keywords) * (float("nan") if bad else 1)

SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss = training_step, compute_loss
if engine != "ddp":
    launch = Launch(engine=engine, processes=2)
    settings["training"] = launch.write(settings["training"], Path(settings["output"], "launch"))
try:
    extend(RunConfig.from_mapping(settings), resume="resume" in sys.argv, skip_bad_items="resume" in sys.argv)
except SkipwiseError as error:
    print(error, file=sys.stderr)
    os._exit(2)
"""


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "documents").mkdir()
    return write_documents(tmp_path / "documents")


def trained(
    tmp_path: Path,
    settings: dict[str, Any],
    *,
    processes: int = 2,
    restarts: int = 0,
    engine: str = "ddp",
    fitting: int = 100,
    tokens: int = 10**6,
    spoilt: int = 0,
    resume: bool = False,
) -> "subprocess.CompletedProcess[str]":
    script, file = tmp_path / "script.py", tmp_path / "settings.json"
    script.write_text(SCRIPT)
    file.write_text(json.dumps({**settings, "engine": engine, "fitting": fitting, "tokens": tokens, "spoilt": spoilt}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*torchrun, "--max-restarts", str(restarts), str(script), str(file), *(["resume"] if resume else [])],
        env={
            **os.environ,
            "SKIPWISE_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )


def settings_of(model: Path, documents: Path, output: Path, **training: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "recipe": "paper",
        "target": 256,
        "window": 32,
        "output": str(output),
        "data": {"source": str(documents), "held_out": 0.0},
        "validation": {"every_steps": 0},
        "training": {"max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0, "use_cpu": True, "disable_tqdm": True}
        | training,
    }


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "skipwise.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_one_of_two_without_memory_has_all_started_anew_with_fewer_at_a_time(
    tiny_checkpoint: Path, documents: Path, tmp_path: Path
) -> None:
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    alone = settings_of(tiny_checkpoint, documents, tmp_path / "alone", per_device_train_batch_size=8)
    alone["training"]["gradient_accumulation_steps"] = 1
    assert trained(tmp_path, alone, processes=1).returncode == 0
    settings = settings_of(tiny_checkpoint, documents, tmp_path / "two", **batch)
    done = trained(tmp_path, settings, restarts=1, fitting=2)
    assert done.returncode == 0, done.stderr
    assert "there is no memory for 4 windows at a time" in done.stderr
    assert json.loads((tmp_path / "two" / "begun.json").read_text())["most_at_a_time"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


@pytest.mark.slow
def test_who_names_no_recipe_has_windows_that_grow_as_far_as_one_of_two_has_memory(
    tiny_checkpoint: Path, documents: Path, tmp_path: Path
) -> None:
    """Of a step of one window of 256 tokens one process has it; both are started anew with windows of 128."""
    alone = settings_of(tiny_checkpoint, documents, tmp_path / "alone", gradient_accumulation_steps=8)
    alone |= {"recipe": "growing", "growth": [{"window": "4x", "share": 0.7}]}
    settings = settings_of(tiny_checkpoint, documents, tmp_path / "two", gradient_accumulation_steps=4)
    settings.pop("recipe")
    for each in (alone, settings):
        each["data"]["retrieval"] = 0.0
    done = trained(tmp_path, settings, restarts=1, tokens=128)
    assert done.returncode == 0, done.stderr
    assert "there is no memory for a single window of 256 tokens" in done.stderr
    record = json.loads((tmp_path / "two" / "skipwise.json").read_text())
    assert (record["config"]["recipe"], record["widest_tokens"]) == ("growing", 128)
    assert record["reasons"][0].startswith("recipe: growing, which measured best")
    assert trained(tmp_path, alone, processes=1).returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


@pytest.mark.slow
def test_under_deepspeed_the_first_bad_step_ends_the_run(
    tiny_checkpoint: Path, documents: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    settings = settings_of(
        tiny_checkpoint, documents, tmp_path / "run", gradient_accumulation_steps=2, save_steps=1, save_total_limit=4
    )
    done = trained(tmp_path, settings, engine="zero2", spoilt=3)
    assert done.returncode != 0
    assert "at step 3, and DeepSpeed has taken the step: their items are in" in done.stderr
    bad = json.loads((tmp_path / "run" / "bad-items.json").read_text())["bad_steps"]
    # Both batches of the second process, which has every other one.
    assert [item["place"] for item in bad["3"]["items"]] == [9, 11]
    resumed = trained(tmp_path, settings, engine="zero2", resume=True)
    assert resumed.returncode == 0, resumed.stderr
    record = json.loads((tmp_path / "run" / "skipwise.json").read_text())
    assert (record["resumed_at_step"], record["skipped_items"]) == (2, [9, 11])

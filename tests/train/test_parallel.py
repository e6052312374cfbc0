"""Several processes on one machine: one run, one folder, the same items whatever their number, stopped and resumed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

SCRIPT = """
import os, signal, sys
from skipwise.config import RunConfig
from skipwise.train import extend
from skipwise.train.trainer import SkipwiseTrainer

model, documents, output, stop = sys.argv[1:]
own = SkipwiseTrainer.training_step

def training_step(trainer, *arguments, **keywords):
    if stop == "stop" and os.environ["RANK"] == "1" and trainer.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
        globals()["stop"] = "stopped"
    return own(trainer, *arguments, **keywords)

def compute_loss(trainer, *arguments, **keywords):
    spoilt = os.environ["RANK"] == "1" and trainer.state.global_step == 2
    return own_loss(trainer, *arguments, **keywords) * (float("nan") if spoilt else 1)

own_loss = SkipwiseTrainer.compute_loss
SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss = training_step, compute_loss
training = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "save_strategy": "no",
            "use_cpu": True, "disable_tqdm": True}
config = RunConfig.from_mapping({"model": model, "recipe": "paper", "target": 256, "window": 32, "output": output,
                                 "data": {"source": documents, "held_out": 0.0}, "training": training})
result = extend(config, resume=stop == "resume")
# Both stop, though one alone was asked to.
assert (result.finished, result.steps) == ((False, 2) if sys.argv[4] == "stop" else (True, 3)), result
"""


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"text number {i} " * 30)
    return folder


@pytest.mark.slow
def test_processes_stop_together_and_resume_to_the_same_bits(
    tiny_checkpoint: Path, documents: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(output: str, stop: str) -> Path:
        subprocess.run(
            [*TORCHRUN, "2", str(script), str(tiny_checkpoint), str(documents), str(tmp_path / output), stop],
            env={**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache")},
            check=True,
        )
        return tmp_path / output

    whole = run("whole", "no")
    stopped = run("stopped", "stop")
    assert not (stopped / "skipwise.json").exists()
    assert (stopped / "checkpoint-2" / "trainer_state.json").exists()
    resumed = run("stopped", "resume")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # A loss that is no number in one of them is nobody's lesson; the first one writes down the items of all.
    bad = json.loads((whole / "bad-items.json").read_text())["bad_steps"]
    assert {step: [item["place"] for item in told["items"]] for step, told in bad.items()} == {"3": [9, 11]}
    assert bad == json.loads((resumed / "skipwise.json").read_text())["bad_steps"]


@pytest.mark.slow
def test_one_process_speaks_and_the_others_write_files(tiny_checkpoint: Path, documents: Path, tmp_path: Path) -> None:
    command = [*TORCHRUN, "2", "-m", "skipwise", "extend", str(tiny_checkpoint), "--target", "256", "--window", "32"]
    command += [
        "--data",
        str(documents),
        "--steps",
        "3",
        "--output",
        str(tmp_path / "run"),
        "--set",
        "data.held_out=0.0",
    ]
    command += ["--set", "training.use_cpu=true", "--set", "training.gradient_accumulation_steps=2"]
    done = subprocess.run(
        command, env={**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("extended to 256 tokens") == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    told = r"step 2 of 3: loss \d+\.\d{4}, [\d,]+ tokens a second, [\d.]+ [MG]iB, [\d.]+ m?s left"
    assert re.fullmatch(told, lines[1]), lines[1]
    assert done.stderr.count("  reach  ") == 1, "the preflight is told once"
    assert "pass  reach" in (tmp_path / "run" / "logs" / "rank-1.txt").read_text()


WORLD = """
import json, os, sys
from skipwise.config import RunConfig
from skipwise.train import extend
from skipwise.train.curriculum import Curriculum

model, documents, output, accumulation, last, seen, how = sys.argv[1:]
own = Curriculum.__getitem__

def getitem(curriculum, place):
    with open(f"{seen}-{os.environ['RANK']}", "a") as file:
        file.write(f"{place}\\n")
    return own(curriculum, place)

Curriculum.__getitem__ = getitem
training = {"max_steps": 4, "gradient_accumulation_steps": int(accumulation), "learning_rate": 1e-3, "warmup_steps": 0,
            "save_steps": 2, "use_cpu": True, "disable_tqdm": True}
config = RunConfig.from_mapping({"model": model, "recipe": "paper", "target": 256, "window": 32, "output": output,
                                 "data": {"source": documents, "held_out": 0.0}, "training": training,
                                 "validation": {"every_steps": 0}, **json.loads(how)})
result = extend(config, resume=last == "resume")
if os.environ["RANK"] == "0":
    print(json.dumps([entry["loss"] for entry in result.log if "loss" in entry]))
"""


# Of eight windows two and then one that have grown: some processes have none of them.
GROWING = {
    "sampler": {"skips": "flat", "text": "aligned"},
    "dilution": True,
    "growth": [{"window": "4x", "share": 0.75}, {"window": "8x", "share": 0.25}],
    "keep_tokens": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, GROWING], ids=["short windows", "windows that grow"])
def test_the_same_is_trained_whatever_the_number_of_processes(
    how: dict[str, Any], tiny_checkpoint: Path, documents: Path, tmp_path: Path
) -> None:
    """Eight windows a step by 1, 2 and 4 processes, and a run begun by 2 that 4 go on with."""
    script = tmp_path / "script.py"
    script.write_text(WORLD)

    def run(output: str, processes: int, last: str = "no") -> tuple[list[float], list[int]]:
        seen = tmp_path / f"seen-{output}-{processes}"
        arguments = [tiny_checkpoint, documents, tmp_path / output, 8 // processes, last, seen, json.dumps(how)]
        done = subprocess.run(
            [*TORCHRUN, str(processes), str(script), *map(str, arguments)],
            env={**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        places = [line for rank in range(processes) for line in Path(f"{seen}-{rank}").read_text().split()]
        return json.loads(done.stdout.splitlines()[-1]), sorted(map(int, places))

    alone, items = run("one", 1)
    assert items == list(range(32))
    for processes in (2, 4):
        losses, places = run(f"whole-{processes}", processes)
        assert losses == pytest.approx(alone, rel=1e-4)
        assert places == items, "each once, by one of them"
    # As if it had been killed after the second step.
    run("moved", 2)
    moved = tmp_path / "moved"
    for left in ("skipwise.json", "model.safetensors"):
        (moved / left).unlink()
    shutil.rmtree(moved / "checkpoint-4")
    losses, places = run("moved", 4, "resume")
    assert losses == pytest.approx(alone, rel=1e-4)
    assert places == items[16:], "none again, and none left out"


ENGINES = """
import atexit, json, os, sys
import torch
# Registered first, so called last: a group that is still open may abort the process, now and then.
atexit.register(lambda: torch.distributed.is_initialized() and os._exit(9))
from skipwise.config import RunConfig
from skipwise.launch import Launch
from skipwise.train import extend

model, documents, output, engine, processes, kind, last = sys.argv[1:]
training = {"max_steps": 4, "gradient_accumulation_steps": 4 // int(processes), "learning_rate": 1e-3,
            "warmup_steps": 0, "save_steps": 2, "use_cpu": True, "disable_tqdm": True}
launch = Launch(engine=engine, processes=int(processes))
config = RunConfig.from_mapping({"model": model, "recipe": "paper", "target": 256, "window": 32, "output": output,
                                 "data": {"source": documents, "held_out": 0.3}, "tuning": kind,
                                 "validation": {"every_steps": 0, "num_documents": 3, "lengths": [32, 64]},
                                 "training": launch.write(training, __import__("pathlib").Path(output, "launch"))})
result = extend(config, resume=last == "resume")
assert result.finished
"""


def logged(folder: Path) -> list[list[float]]:
    """Losses, gradient norms and validation perplexities of a run."""
    log = json.loads((folder / "skipwise.json").read_text())["log"]
    names = ("loss", "grad_norm", "eval_perplexity_32", "eval_perplexity_64")
    return [[entry[name] for entry in log if name in entry] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_engines_train_what_one_process_trains(
    kind: str, tiny_checkpoint: Path, checkpoint_of_blocks: Path, documents: Path, tmp_path: Path
) -> None:
    """DDP and ZeRO by two processes on CPUs; FSDP has no such mode in accelerate (see test_sharding)."""
    pytest.importorskip("deepspeed")
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(ENGINES)

    def run(output: str, engine: str, processes: int, last: str = "no") -> Path:
        checkpoint = checkpoint_of_blocks if kind == "qlora" else tiny_checkpoint
        arguments = [checkpoint, documents, tmp_path / output, engine, processes, kind, last]
        subprocess.run(
            [*TORCHRUN, str(processes), str(script), *map(str, arguments)],
            env={**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        return tmp_path / output

    alone = run("alone", "ddp", 1)
    weights = load_file(alone / "model.safetensors")
    split = tmp_path / "zero3"
    for engine in ("ddp", "zero2", "zero3"):
        split = run(engine, engine, 2)
        for expected, found in zip(logged(alone), logged(split), strict=True):
            assert expected
            assert found == pytest.approx(expected, rel=1e-4)
        gathered = load_file(split / "model.safetensors")
        assert gathered.keys() == weights.keys()
        for name, weight in weights.items():
            assert (gathered[name] - weight).abs().max() < 1e-5 * (1 + weight.abs().max()), name
    if kind != "full":
        return
    # As if it had been killed after the second step.
    whole = (split / "model.safetensors").read_bytes()
    for left in ("skipwise.json", "model.safetensors"):
        (split / left).unlink()
    shutil.rmtree(split / "checkpoint-4")
    assert (run("zero3", "zero3", 2, "resume") / "model.safetensors").read_bytes() == whole

"""Runs whose documents are streamed: stopped and gone on with, without bad items, and by several processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from tiny_runs import STEPS, run

from skipwise.train.trainer import SkipwiseTrainer

KEPT = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": STEPS}


@pytest.fixture(scope="module")
def shards(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts of the tiny runs in four Parquet files."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [file.read_text() for file in sorted(documents.glob("*.txt"))]
    for shard in range(4):
        parquet.write_table(pyarrow.table({"text": texts[shard::4]}), folder / f"{shard}.parquet")
    return folder


@pytest.fixture
def streamed(settings: dict[str, Any], shards: Path) -> dict[str, Any]:
    data = {"source": str(shards), "held_out": 0.2, "streaming": True, "buffer": 3}
    return {**settings, "data": data}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    "changes", [{}, {"growth": {"window": 64, "share": 0.5}}, {"data": {"retrieval": 0.5}, "window": 200}]
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    changes: dict[str, Any], streamed: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    whole = run(streamed, **changes)
    assert whole.record["corpus"] == {
        "fingerprint": whole.record["corpus"]["fingerprint"],
        "shards": 4,
        "kinds_not_read": {},
        "unreadable": {},
        "empty": 0,
    }
    stop_after(2)
    assert not run(streamed, output=str(tmp_path / "again"), **changes).finished
    again = run(streamed, output=str(tmp_path / "again"), resume=True, **changes)
    assert again.finished
    assert same(whole.folder, again.folder)
    losses = [[entry["loss"] for entry in result.log if "loss" in entry] for result in (whole, again)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("sound_model")
def test_it_validates_on_what_it_does_not_train_on(streamed: dict[str, Any]) -> None:
    log = run(streamed, validation={"num_documents": 2, "lengths": [64]}).log
    assert len([entry for entry in log if "eval_perplexity_64" in entry]) == 2


@pytest.mark.usefixtures("sound_model")
def test_bad_items_are_told_and_done_without(streamed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    streamed["recipe"] = "paper"  # Whose steps have as many windows from the first to the last.
    trained: list[tuple[int, bytes]] = []
    step, loss = SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss
    spoilt = [2]

    def training_step(trainer: SkipwiseTrainer, model: Any, inputs: Any, *more: Any) -> torch.Tensor:
        trained.append((inputs["places"].item(), inputs["input_ids"].numpy().tobytes()))
        return step(trainer, model, inputs, *more)

    def compute_loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
        return loss(*arguments, **keywords) * (float("nan") if trained[-1][0] in spoilt else 1.0)

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    monkeypatch.setattr(SkipwiseTrainer, "compute_loss", compute_loss)
    with pytest.raises(Exception, match="--skip-bad-items"):
        run({**streamed, "guard": {"bad_steps": 1}}, training=KEPT)
    folder = Path(streamed["output"])
    (item,) = json.loads((folder / "bad-items.json").read_text())["bad_steps"]["2"]["items"]
    assert set(item) == {"place", "epoch", "shard", "row", "loss"}
    text = parquet.read_table(sorted(Path(streamed["data"]["source"]).glob("*"))[item["shard"]])["text"]
    bad = dict(trained)[2]
    trained.clear()
    assert run({**streamed, "guard": {"bad_steps": 1}}, training=KEPT, resume=True, skip_bad_items=True).finished
    assert [place for place, _ in trained] == [2 + 2 * STEPS, 3, 4, 5, 6, 7]
    assert trained[0][1] != bad
    assert item["row"] < len(text)


WORLD = """
import json, os, sys
from skipwise.config import RunConfig
from skipwise.train import extend

model, shards, output, accumulation, last = sys.argv[1:]
training = {"max_steps": 6, "gradient_accumulation_steps": int(accumulation), "learning_rate": 1e-3, "warmup_steps": 0,
            "save_steps": 3, "use_cpu": True, "disable_tqdm": True}
config = RunConfig.from_mapping({"model": model, "target": 256, "window": 32, "output": output,
                                 "data": {"source": shards, "held_out": 0.0, "streaming": True, "buffer": 3},
                                 "training": training, "validation": {"every_steps": 0}})
result = extend(config, resume=last == "resume")
if os.environ["RANK"] == "0":
    print(json.dumps([entry["loss"] for entry in result.log if "loss" in entry]))
"""


@pytest.mark.slow
def test_the_same_is_streamed_whatever_the_number_of_processes(
    tiny_checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    """Four windows a step by one process and by two, and a run begun by two that one goes on with."""
    script = tmp_path / "script.py"
    script.write_text(WORLD)

    def losses(output: str, processes: int, last: str = "no") -> list[float]:
        arguments = [tiny_checkpoint, shards, tmp_path / output, 4 // processes, last]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*launcher, str(script), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    alone = losses("one", 1)
    assert losses("two", 2) == pytest.approx(alone, rel=1e-4)
    moved = tmp_path / "two"
    places = [json.loads((moved / "checkpoint-3" / f"stream-{rank}.json").read_text()) for rank in (0, 1)]
    assert [sorted(each) for each in places] == [["0", "2"], ["1", "3"]]
    # As if it had been killed after the fourth step.
    for left in ("skipwise.json", "model.safetensors"):
        (moved / left).unlink()
    shutil.rmtree(moved / "checkpoint-6")
    assert losses("two", 1, "resume") == pytest.approx(alone, rel=1e-4)

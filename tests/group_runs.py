"""Runs of `extend` by several processes of one group, as their records tell of them."""

import atexit
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, start
from tiny_runs import record_of, weights

import skipwise.train.validation
from skipwise.config import RunConfig
from skipwise.errors import SkipwiseError
from skipwise.launch import Launch
from skipwise.train import extend
from skipwise.train.curriculum import Curriculum
from skipwise.train.trainer import SkipwiseTrainer


def begun(processes: int, settings: dict[str, Any], **how: Any) -> Forked:
    """A run by so many processes; for what may be changed of it see `train`."""
    return start(train, settings, how, processes=processes)


def trained(processes: int, settings: dict[str, Any], **how: Any) -> Path:
    """Folder of such a run when all has gone well."""
    run = begun(processes, settings, **how)
    assert run.wait() == 0, run.stderr
    return Path(settings["output"])


def assert_trained_alike(one: Path, other: Path) -> None:
    """Losses, gradient norms, validation and weights are the same up to rounding."""
    logs = record_of(one)["log"], record_of(other)["log"]
    names = {name for entry in logs[0] for name in entry if name in ("loss", "grad_norm") or "perplexity" in name}
    assert "loss" in names
    for name in names:
        expected, found = ([entry[name] for entry in log if name in entry] for log in logs)
        assert found == pytest.approx(expected, rel=1e-4), name
    ours, others = weights(one), weights(other)
    assert sorted(ours) == sorted(others), sorted(set(ours) ^ set(others))
    for name, weight in ours.items():
        assert (others[name] - weight).abs().max() < 1e-5 * (1 + weight.abs().max()), name


def as_if_killed(folder: Path, step: int) -> None:
    """Takes away what a finished run has left after its checkpoint of the step."""
    for left in (folder / "skipwise.json", *folder.glob("model*.safetensors*")):
        left.unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)


def train(settings: dict[str, Any], how: dict[str, Any]) -> None:
    """Trains in this process of a group, of which the second can be spoilt.

    Args:
        settings: those of a run.
        how: `engine` of `skipwise.launch`; `resume` and `skip_bad_items` as of `extend`; `seen`, a file for the places
            of items, one for each process; for the second process, `stopped`, the step in which it gets a Ctrl-C, or
            `stopped_validating`, the number of its validations before that in which it gets one;
            `spoilt`, a step whose losses are no numbers, and `fitting`, the windows at a time that it has memory for;
            `tokens`, what each process has memory for; `room`, bytes of memory that the
            system leaves each, by a control group.
    """
    if "room" in how:
        group = Path("/sys/fs/cgroup/memory", f"skipwise-{os.getpid()}")
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(how["room"]))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    # Registered first, so called last: a group that is still open may abort the process, now and then.
    atexit.register(lambda: torch.distributed.is_initialized() and os._exit(9))
    rank, second = os.environ["RANK"], os.environ["RANK"] == "1"
    own_item, own_step, own_loss = Curriculum.__getitem__, SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss

    def item(curriculum: Any, place: int) -> Any:
        with Path(f"{how['seen']}-{rank}").open("a") as file:
            file.write(f"{place}\n")
        return own_item(curriculum, place)

    def step(trainer: Any, model: Any, inputs: Any, *more: Any) -> Any:
        if second and trainer.state.global_step + 1 == how.get("stopped"):
            del how["stopped"]
            os.kill(os.getpid(), signal.SIGINT)
        if second and len(inputs["input_ids"]) > how.get("fitting", 1000):
            raise torch.OutOfMemoryError("as if there were no more")
        if inputs["input_ids"].numel() > how.get("tokens", 10**6):
            raise torch.OutOfMemoryError("as if there were no more")
        return own_step(trainer, model, inputs, *more)

    def loss(trainer: Any, model: Any, inputs: Any, *more: Any, **keywords: Any) -> Any:
        if (parts := trainer.get_cp_size()) > 1:
            windows = {settings["window"], settings["growth"]["window"]}
            assert inputs["input_ids"].shape[1] * parts in windows, "nobody has a whole window"
        spoilt = second and trainer.state.global_step + 1 == how.get("spoilt")
        return own_loss(trainer, model, inputs, *more, **keywords) * (float("nan") if spoilt else 1)

    own_evaluate = skipwise.train.validation.evaluate

    def evaluate(*given: Any, **keywords: Any) -> Any:
        if second and "stopped_validating" in how:
            if how["stopped_validating"] == 0:
                os.kill(os.getpid(), signal.SIGINT)
            how["stopped_validating"] -= 1
        return own_evaluate(*given, **keywords)

    skipwise.train.validation.evaluate = evaluate
    if "seen" in how:
        Curriculum.__getitem__ = item  # pyright: ignore
    SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss = step, loss  # pyright: ignore
    if engine := how.get("engine"):
        launch = Launch(engine=engine, processes=int(os.environ["WORLD_SIZE"]))
        settings = launch.write(settings, Path(settings["output"], "launch"))
    try:
        options = {name: how.get(name, False) for name in ("resume", "skip_bad_items")}
        extend(RunConfig.from_mapping(settings), **options)
    except SkipwiseError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)

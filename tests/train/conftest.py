"""A run of a few steps on the tiny checkpoint, and ways to stop it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import settings_of, write_documents

from skipwise.train.trainer import SkipwiseTrainer


@pytest.fixture(scope="module", autouse=True)
def run_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store for tokens of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def settings(tiny_checkpoint: Path, documents: Path, tmp_path: Path) -> dict[str, Any]:
    return settings_of(tiny_checkpoint, documents, tmp_path / "run")


@pytest.fixture
def group_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of runs by several processes, four steps, which train the same whatever the number of processes."""
    # Who names no recipe has windows that grow in one process alone.
    changed = {"recipe": "paper", "data": {**settings["data"], "held_out": 0.0}, "validation": {"every_steps": 0}}
    training = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2, "use_cpu": True}
    return {**settings, **changed, "training": {**settings["training"], **training}}


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, bytes]]]:
    """Multiplies the loss of the items at some places; returns the list of all places trained, with their token ids."""

    def spoil(places: set[int], factor: float) -> list[tuple[int, bytes]]:
        trained: list[tuple[int, bytes]] = []
        step, loss = SkipwiseTrainer.training_step, SkipwiseTrainer.compute_loss

        def training_step(trainer: SkipwiseTrainer, model: Any, inputs: Any, *more: Any) -> torch.Tensor:
            ids = [row.numpy().tobytes() for row in inputs["input_ids"]]
            trained.extend(zip(inputs["places"].tolist(), ids, strict=True))
            return step(trainer, model, inputs, *more)

        def compute_loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
            return loss(*arguments, **keywords) * (factor if trained[-1][0] in places else 1.0)

        monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
        monkeypatch.setattr(SkipwiseTrainer, "compute_loss", compute_loss)
        return trained

    return spoil


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process a SIGINT while a step is trained, as Ctrl-C does; 0 sends no more."""
    at = [0]
    own = SkipwiseTrainer.training_step

    def training_step(trainer: SkipwiseTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if trainer.state.global_step + 1 == at[0]:
            at[0] = 0
            os.kill(os.getpid(), signal.SIGINT)
        return own(trainer, *arguments, **keywords)

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    return lambda step: at.__setitem__(0, step)

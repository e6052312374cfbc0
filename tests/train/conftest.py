"""A run of a few steps on the tiny checkpoint, and ways to stop it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import STEPS, TARGET, write_documents

from skipwise.doctor import Verdict
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
    """A run of a few steps of two windows."""
    return {
        "model": str(tiny_checkpoint),
        "target": TARGET,
        "window": 32,
        "output": str(tmp_path / "run"),
        "data": {"source": str(documents), "held_out": 0.2},
        "validation": {"num_documents": 1, "every_steps": 0},
        "training": {
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }


@pytest.fixture
def sound_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the preflight for granted where a test is about something else; it has tests of its own."""
    passed = Verdict(name="reach", status="pass", detail="taken for granted")
    monkeypatch.setattr("skipwise.train.preparation.doctor", lambda *_, **__: [passed])


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

"""Documents and runs of a few steps, for the tests of training and comparing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import skipwise.train.preparation
from skipwise.config import RunConfig
from skipwise.doctor import Verdict
from skipwise.train import ExtendResult, extend

TARGET, STEPS = 256, 4


def settings_of(model: Path, documents: Path, output: Path) -> dict[str, Any]:
    """A run of a few steps of two windows."""
    return {
        "model": str(model),
        "target": TARGET,
        "window": 32,
        "output": str(output),
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


@contextmanager
def preflight_taken_for_granted() -> Iterator[None]:
    """For tests of something else: it costs more than their steps, and has tests of its own."""
    passed = Verdict(name="reach", status="pass", detail="taken for granted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skipwise.train.preparation, "doctor", lambda *_, **__: [passed])
        yield


def run(
    settings: dict[str, Any],
    *,
    resume: bool = False,
    skip_bad_items: bool = False,
    own_sampler: Any = None,
    **changes: Any,
) -> ExtendResult:
    """Extends with some settings changed; `training`, `data` and `validation` are changed entry by entry."""
    merged = dict(settings)
    for name, value in changes.items():
        merged[name] = {**settings[name], **value} if name in ("training", "data", "validation") else value
    run_config = RunConfig.from_mapping(merged)
    return extend(run_config, resume=resume, skip_bad_items=skip_bad_items, sampler=own_sampler)


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "skipwise.json").read_text())


def losses(folder: Path) -> list[float]:
    """Of every step of a finished run."""
    return [entry["loss"] for entry in record_of(folder)["log"] if "loss" in entry]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """Of a checkpoint in one file or in several."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_equal_weights(one: Path | str, other: Path | str) -> None:
    """To the bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


WORDS = ["the", "river", "is", "wide", "and", "low", "hills", "roll", "on", "there", "and", "home", "again"]


def write_documents(folder: Path) -> Path:
    """Writes 24 texts of 120 words, of about 570 bytes each, drawn from 13 words."""
    rng = np.random.default_rng(0)
    for i in range(24):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, size=120)))
    return folder

"""Runs of `extend` on the tiny checkpoint, with low-rank additions and in full, for the tests of inference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import preflight_taken_for_granted, run, settings_of, write_documents

from skipwise.inference.engine import Generation, GenerationRequest
from skipwise.inference.generate import LocalEngine
from skipwise.inference.modes import TwoModes

ORIGINAL = 64
TUNINGS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4},
    "lora with norms and embeddings": {"kind": "lora", "rank": 4, "train_norms": True, "train_embeddings": True},
    "full": {"kind": "full"},
}


@dataclass(frozen=True)
class Run:
    base: Path
    folder: Path


@pytest.fixture(scope="session")
def train(
    tiny_checkpoint: Path, checkpoint_of_blocks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, dict[str, Any]], Run]:
    """Makes a finished run of a name with a tuning, to 256 tokens from 64."""
    root = tmp_path_factory.mktemp("runs")
    (root / "documents").mkdir()
    documents = write_documents(root / "documents")

    def make(name: str, tuning: dict[str, Any]) -> Run:
        base = checkpoint_of_blocks if tuning["kind"] == "qlora" else tiny_checkpoint
        settings = settings_of(base, documents, root / name.replace(" ", "-"))
        with pytest.MonkeyPatch.context() as patch, preflight_taken_for_granted():
            patch.setenv("SKIPWISE_CACHE", str(root / "cache"))
            return Run(
                base=base, folder=run(settings, tuning=tuning, training={"gradient_accumulation_steps": 1}).folder
            )

    return make


@pytest.fixture(scope="session")
def runs(train: Callable[[str, dict[str, Any]], Run]) -> dict[str, Run]:
    """A finished run for each tuning."""
    return {name: train(name, tuning) for name, tuning in TUNINGS.items()}


@pytest.fixture(scope="session")
def four_bit_run(train: Callable[[str, dict[str, Any]], Run]) -> Run:
    """A finished run with low-rank additions to weights in 4 bits."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")
    return train("qlora", {"kind": "qlora", "rank": 4})


@pytest.fixture(scope="session")
def modes(runs: dict[str, Run]) -> TwoModes:
    """Both modes of the run with low-rank additions, norms and embeddings."""
    return TwoModes.load(runs["lora with norms and embeddings"].folder)


def random_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def finish(generation: Generation) -> list[int]:
    """All tokens that are still to come."""
    tokens = []
    while not generation.is_done:
        tokens += generation.step()
    return tokens


def answer(engine: LocalEngine, prompt: Sequence[int], new: int = 8, **how: Any) -> list[int]:
    with engine.start(GenerationRequest(prompt_ids=prompt, max_new_tokens=new, **how)) as generation:
        return finish(generation)


def tensor_bytes(modes: TwoModes) -> int:
    """Bytes of all parameters and buffers, those that the modes share counted once."""
    models = [modes.model(mode) for mode in modes.modes]
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())

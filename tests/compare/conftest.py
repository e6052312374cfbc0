"""A comparison of a few steps on the tiny checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import settings_of, write_documents

import skipwise.compare.running
import skipwise.train
from skipwise.compare import worker


@pytest.fixture(scope="module", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store for tokens of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def settings(tiny_checkpoint: Path, documents: Path, tmp_path: Path) -> dict[str, Any]:
    """Four steps of 256 tokens, from a window of 64 to 256 tokens."""
    shared = settings_of(tiny_checkpoint, documents, tmp_path / "compared")
    training = {**shared["training"], "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    del training["save_strategy"]
    return {
        **shared,
        "data": {"source": str(documents), "held_out": 0.3},
        "validation": {"num_documents": 1},
        "arms": ["base", "interpolation-only", "pose"],
        "evaluation": {"tasks": [{"kind": "perplexity", "scored_tokens": 16, "num_documents": 4}]},
        "training": training,
    }


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, sound_model: None) -> list[str]:
    """Runs jobs in this process, and takes the preflight for granted; the names of the jobs that ran, in order."""
    ran: list[str] = []

    def run(job_file: Path) -> int:
        ran.append("/".join(job_file.parts[-3:-1]))
        return worker.main(job_file)

    monkeypatch.setattr(skipwise.compare.running, "_run_process", run)
    return ran

"""Settings for all tests (no network, few threads, quiet libraries) and the tiny checkpoint that most of them use."""

import os

# Before anything imports torch or a hub library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.pop("SKIPWISE_DEBUG", None)

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Times differ too much between machines for a deadline, and a red test must be red again on the next run.
settings.register_profile("skipwise", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("skipwise")


@pytest.fixture(scope="module", autouse=True)
def little_garbage_to_look_through() -> None:
    """Excludes imported modules from garbage collection, which libraries trigger at the end of each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of window 64 and a tokenizer of one token per byte."""
    return _save_checkpoint(tmp_path_factory.mktemp("tiny_checkpoint"), hidden_size=32)


@pytest.fixture(scope="session")
def checkpoint_of_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, twice as wide: each row is a whole block of 64 weights, as bitsandbytes needs on some CPUs."""
    return _save_checkpoint(tmp_path_factory.mktemp("checkpoint_of_blocks"), hidden_size=64)


def _save_checkpoint(folder: Path, hidden_size: int) -> Path:
    from tiny_models import NO_SPECIAL, save_tiny, tiny_config  # Loads transformers, which few tests of verbs need.

    config = tiny_config("llama", vocab_size=256, hidden_size=hidden_size, intermediate_size=64, **NO_SPECIAL)
    return save_tiny(folder, config)


@pytest.fixture(scope="session")
def fresh_python() -> Callable[[str], None]:
    """Runs code in a new interpreter and fails with its stderr if it fails."""

    def run(code: str) -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def sound_model() -> Iterator[None]:
    """Skips the preflight, which has its own tests."""
    from tiny_runs import preflight_taken_for_granted

    with preflight_taken_for_granted():
        yield

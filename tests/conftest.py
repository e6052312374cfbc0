"""Settings of every test: no network, few threads, quiet libraries; and one tiny checkpoint."""

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
    """Leaves what has been imported out of later searches for garbage: libraries have one at the end of each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of window 64 and a tokenizer of one token per byte."""
    return _save_tiny(tmp_path_factory.mktemp("tiny_checkpoint"), hidden_size=32)


@pytest.fixture(scope="session")
def checkpoint_of_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twice as wide: rows are whole blocks of 64 weights, as bitsandbytes needs them on some CPUs."""
    return _save_tiny(tmp_path_factory.mktemp("checkpoint_of_blocks"), hidden_size=64)


def _save_tiny(folder: Path, hidden_size: int) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fresh_python() -> Callable[[str], None]:
    """Runs code in an interpreter that has imported nothing yet; what it prints on stderr is the failure's message."""

    def run(code: str) -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def sound_model() -> Iterator[None]:
    """Takes the preflight for granted."""
    from tiny_runs import preflight_taken_for_granted

    with preflight_taken_for_granted():
        yield

"""Traces of few layers and slices equal traces of whole steps on torch's own fake tensors."""

from typing import Any

import pytest
import torch
from full_trace import full_prefill, full_step
from tiny_models import EXPERTS, PLANNED, tiny_config

from skipwise.config import FullTuning, LoraTuning, QloraTuning, Tuning
from skipwise.errors import UnsupportedModelError
from skipwise.plan.trace import Step, Tracer

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
LORA, QLORA = LoraTuning(rank=4), QloraTuning(rank=4)
CONFIGS: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "llama", "num_key_value_heads": 4},
    "grouped, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "biases": {"model_type": "qwen2", "num_key_value_heads": 1},
    "sliding": {"model_type": "mistral", "sliding_window": 128},
    "sliding and full, capped": {"model_type": "gemma2", "head_dim": 16},
    "sliding and full, normed heads": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 32},
    "parallel, layer norms": {"model_type": "gpt_neox"},
    "scaled": {"model_type": "granite", "logits_scaling": 4.0},
    "latent": {"model_type": "phi3", "num_key_value_heads": 4},
}


def config_of(name: str) -> Any:
    settings: dict[str, Any] = PLANNED | {"num_hidden_layers": 6} | CONFIGS[name]
    return tiny_config(**settings)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of 300 tokens then takes nine slices, and that of 30 one."""
    monkeypatch.setattr("skipwise.loss._CHUNK_BYTES", 2**16)


def test_a_step_of_few_slices_equals_the_whole_one() -> None:
    step = Step(window_tokens=150, batch=2, tuning=LORA, dtype=BFLOAT16, autocast=BFLOAT16)
    config = config_of("grouped, tied")
    assert Tracer(config).step(step).further == full_step(config, step, gradients_held=True)


CASES: list[dict[str, Any]] = [
    {"window_tokens": 30},
    {"window_tokens": 150, "checkpointing": False},
    {"window_tokens": 30, "batch": 2},
    {"window_tokens": 150, "batch": 3, "diluted": True},
    {"window_tokens": 150, "batch": 2, "library_loss": True},
    {"window_tokens": 150, "batch": 2, "dtype": FLOAT32, "autocast": None},
    {"window_tokens": 150, "batch": 2, "dtype": BFLOAT16},
]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [FullTuning(), LORA, QLORA], ids=lambda tuning: tuning.kind)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_equals_the_whole_one(name: str, tuning: Tuning) -> None:
    config = config_of(name)
    tracer = Tracer(config)
    for case in CASES:
        dtype = FLOAT32 if tuning.kind == "full" else BFLOAT16
        step = Step(**{"tuning": tuning, "dtype": dtype, "autocast": BFLOAT16, **case})
        assert list(tracer.step(step)) == [full_step(config, step, gradients_held=held) for held in (False, True)], case


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefill_equals_the_whole_one(name: str) -> None:
    config = config_of(name)
    for length, chunk in ((300, 300), (300, 128)):
        found = Tracer(config).prefill(length, chunk_tokens=chunk, dtype=BFLOAT16)
        assert found == full_prefill(config, length, chunk, BFLOAT16)


def test_a_router_that_reads_values_is_refused() -> None:
    config = tiny_config("mixtral", **EXPERTS)
    with pytest.raises(UnsupportedModelError, match="MixtralForCausalLM"):
        Tracer(config).step(Step(window_tokens=16))

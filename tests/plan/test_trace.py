"""Traces without data, compared with a ledger over real tensors of a deeper model."""

from typing import Any

import pytest
import torch
from full_trace import really_held
from tiny_models import PLANNED, tiny_config
from transformers import AutoModelForCausalLM, DynamicCache

from skipwise.config import FullTuning, LoraTuning
from skipwise.hollow import Ledger
from skipwise.plan.trace import Step, Tracer

LAYERS, WINDOW = PLANNED["num_hidden_layers"], 256


def config_of(kind: str) -> Any:
    return tiny_config(kind, **PLANNED)


FULL, LORA, FLOAT32, BFLOAT16 = FullTuning(), LoraTuning(rank=4), torch.float32, torch.bfloat16


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "tuning", "dtype", "autocast", "checkpointing"),
    [
        ("llama", FULL, FLOAT32, None, False),
        ("llama", LORA, BFLOAT16, BFLOAT16, True),
        # A mask of all pairs of its own, and layers of two kinds.
        ("gemma2", FULL, FLOAT32, None, True),
        *(
            slow(kind, tuning, dtype, autocast, checkpointing)
            for kind in ("llama", "gemma2")
            for tuning, dtype, autocast in (
                (FULL, FLOAT32, None),
                (FULL, FLOAT32, BFLOAT16),
                # What is split over processes comes together in 16 bits.
                (FULL, BFLOAT16, BFLOAT16),
                (LORA, FLOAT32, None),
                (LORA, BFLOAT16, BFLOAT16),
            )
            for checkpointing in (False, True)
        ),
    ],
)
def test_a_step_holds_what_a_real_one_holds(
    kind: str, tuning: Any, dtype: torch.dtype, autocast: Any, checkpointing: bool
) -> None:
    config = config_of(kind)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    profiles = Tracer(config).step(
        Step(window_tokens=WINDOW, checkpointing=checkpointing, tuning=tuning, dtype=dtype, autocast=autocast)
    )
    measured = really_held(model, tuning, WINDOW, checkpointing=checkpointing, autocast=autocast)
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    predicted = [profile.peak(LAYERS, gradients) for profile in profiles]
    assert predicted == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("chunk", [None, 64])
def test_a_prefill_holds_what_a_real_one_holds(chunk: int | None) -> None:
    config = config_of("llama")
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    cache, ledger = DynamicCache(config=config), Ledger()
    for parameter in model.parameters():
        ledger.add(parameter)
    with torch.no_grad(), ledger:
        before = ledger.live.all
        for piece in torch.randint(3, 500, (1, WINDOW)).split(chunk or WINDOW, dim=1):
            at = cache.get_seq_length()
            positions = torch.arange(at, at + piece.shape[1])[None]
            model(input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    measured = ledger.peak.all - before
    predicted = Tracer(config).prefill(WINDOW, chunk_tokens=chunk).held(LAYERS)
    assert predicted == pytest.approx(measured, rel=0.03)

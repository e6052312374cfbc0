"""Planned bytes of 4-bit weights, compared with those of bitsandbytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")

import torch
from bitsandbytes.nn import Linear4bit
from full_trace import really_held
from tiny_models import ODD, save_tiny, tiny_config

from skipwise.config import QloraTuning
from skipwise.memory import four_bit_bytes
from skipwise.model import four_bits, load_model, read_config
from skipwise.plan.machines import MACHINES, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.shape import model_shape
from skipwise.plan.trace import Step, Tracer
from skipwise.plan.training import Approach, TrainingPlanner

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny", "odd", "embedded"])
def source(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> str:
    if request.param != "odd":
        return str(tiny_checkpoint) if request.param == "tiny" else "embedded"
    return str(save_tiny(tmp_path, tiny_config("llama", **ODD)))


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """Of the memory behind them, counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def scale_tensors(layer: Linear4bit) -> list[torch.Tensor]:
    """All tensors of its quantization state, including the state of its scales."""
    states = [layer.quant_state, layer.quant_state.state2]  # type: ignore[union-attr]
    return [each for state in states if state for each in vars(state).values() if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_model_takes_the_bytes_that_are_planned(
    source: str, quant: str, double_quant: bool, dtype: torch.dtype
) -> None:
    tuning = QloraTuning(rank=2, quant=quant, double_quant=double_quant)  # type: ignore[arg-type]
    model = load_model(source, dtype=dtype, quantization=four_bits(tuning, CPU, compute=dtype)).model
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers
    profiles = Profiles(model_shape(source))
    planned = profiles.parameters(tuning)
    assert planned.quantized == sum(layer.in_features * layer.out_features for layer in layers)
    assert planned.packed_bytes == bytes_of([layer.weight for layer in layers])
    assert planned.scale_bytes == bytes_of([each for layer in layers for each in scale_tensors(layer)])
    # The whole frozen model, with embeddings, head, norms and biases in their dtype.
    machine = replace(MACHINES["h100"], bits=8 * dtype.itemsize)
    planner = TrainingPlanner(profiles, machine, Utilisation())
    state = planner.state(Approach(name="qlora", window_tokens=1, tuning=tuning))
    real = bytes_of([*model.parameters(), *(each for layer in layers for each in scale_tensors(layer))])
    assert state.parameters == real + 4 * planned.trained


def test_a_large_weight_takes_the_bits_of_the_paper() -> None:
    numbers = 2**30
    assert 8 * four_bit_bytes(numbers) / numbers == pytest.approx(4.127, abs=1e-3)
    assert 8 * four_bit_bytes(numbers, double_quant=False) / numbers == pytest.approx(4.5, abs=1e-3)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_trace_in_four_bits_equals_a_real_step(
    checkpointing: bool, autocast: torch.dtype | None, tiny_checkpoint: Path
) -> None:
    tuning, window = QloraTuning(rank=2), 16
    dtype = autocast or torch.float32
    model: Any = load_model(tiny_checkpoint, dtype=dtype, quantization=four_bits(tuning, CPU, compute=dtype)).model
    held = really_held(model, tuning, window, checkpointing=checkpointing, autocast=autocast)
    profile = (
        Tracer(read_config(str(tiny_checkpoint)))
        .step(Step(window_tokens=window, tuning=tuning, checkpointing=checkpointing, dtype=dtype, autocast=autocast))
        .further
    )
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert profile.peak(2, gradients) == held[1]

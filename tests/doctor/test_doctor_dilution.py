"""The preflight of diluted attention: its mask, and what training does backwards under it."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from doctor_models import (
    WINDOW,
    extended,
)
from transformers import (
    PreTrainedModel,
)

from skipwise.doctor import Verdict, doctor
from skipwise.rope import YaRN

# By its path, as `skipwise.doctor` may be the function of that name.
checkpoint_probes = importlib.import_module("skipwise.doctor.checkpoint")
layer_probe = importlib.import_module("skipwise.doctor.layers")


def diluted(family: str, attention: str = "sdpa", change: Callable[[PreTrainedModel], Any] = id, **how: Any) -> Verdict:
    model = extended(family, attention=attention)
    change(model)
    verdicts = doctor(model, WINDOW, YaRN(), check_dilution=True, check_reload=False, **how)
    assert [verdict.name for verdict in verdicts if verdict.status == "fail"] in ([], ["dilution"])
    assert all(parameter.grad is None for parameter in model.parameters())
    return next(verdict for verdict in verdicts if verdict.name == "dilution")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "neox", "mixtral"])
def test_a_diluted_mask_is_green_where_attention_takes_it(family: str, attention: str) -> None:
    assert diluted(family, attention).status == "pass"


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_a_diluted_mask_is_green_with_checkpointing_and_mixed_precision(precision: torch.dtype | None) -> None:
    assert diluted("llama", gradient_checkpointing=True, mixed_precision=precision).status == "pass"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_a_backward_pass_that_a_diluted_mask_breaks_is_red(factor: float, checkpointing: bool) -> None:
    def break_backwards(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        mask = kwargs["attention_mask"]
        # A mask of ones is none or boolean by now; that of diluted attention has weights.
        if mask is not None and mask.is_floating_point() and (mask > 0).any() and output[0].requires_grad:
            output[0].register_hook(lambda gradient: gradient * factor)

    def change(model: PreTrainedModel) -> None:
        for layer in range(2):
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            attention.register_forward_hook(break_backwards, with_kwargs=True)

    assert diluted("llama", gradient_checkpointing=checkpointing).status == "pass"
    verdict = diluted("llama", change=change, gradient_checkpointing=checkpointing)
    assert verdict.status == "fail", verdict.line
    assert "at chunk one" in verdict.detail


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_diluted_mask_is_red_where_layers_are_local(family: str) -> None:
    verdict = diluted(family, attention="eager")
    assert verdict.status == "fail"
    assert "last 16 tokens" in verdict.detail
    assert verdict.cure == "train this model without dilution (--recipe paper)"


def test_a_mask_whose_weights_are_ignored_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = importlib.import_module("skipwise.doctor.bench")
    inputs = bench.training_inputs
    monkeypatch.setattr(bench, "training_inputs", lambda ids, positions, *_: inputs(ids, positions))
    assert diluted("llama").status == "fail"

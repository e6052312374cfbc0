"""The preflight passes sound models of many classes, also with a diluted mask, and restores their state."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_models import FAMILIES, WINDOW, build, checkpoint_probes, config_of, examine, extended, failures, lines
from safetensors.torch import load_file, save_file
from tiny_models import family_config, save_tiny
from transformers import PreTrainedModel

from skipwise.doctor import Verdict, doctor
from skipwise.model import load_model, save_model, with_rope
from skipwise.rope import NTK, DynamicNTK, Interpolation, Linear, LongRoPE, YaRN
from skipwise.window import Window

PROVED = {"reach", "layers", "causal", "shift", "positions", "rows", "tables", "loss", "reload"}
HALF = {"dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("built", "trained"),
    [
        ({}, {"gradient_checkpointing": True}),
        ({"attention": "eager"}, {}),
        (HALF, {}),
        *(({}, {"gradient_checkpointing": True, "mixed_precision": p}) for p in (torch.bfloat16, torch.float16)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_pass(family: str, built: dict[str, Any], trained: dict[str, Any]) -> None:
    if family == "gemma2":  # Caps its attention scores, which sdpa cannot.
        built = {**built, "attention": "eager"}
    verdicts = examine(extended(family, **built), **trained)
    assert not failures(verdicts), lines(verdicts)
    assert {name for name, verdict in verdicts.items() if verdict.status == "pass"} == PROVED
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_pass_computes_in_mixed_precision(checkpointing: bool) -> None:
    model, seen = extended(), set[tuple[torch.dtype, torch.dtype]]()

    def note(module: Any, _: Any, output: torch.Tensor) -> None:
        seen.add((module.weight.dtype, output.dtype))

    for layer in range(2):
        model.get_submodule(f"model.layers.{layer}.mlp.down_proj").register_forward_hook(note)
    how: dict[str, Any] = {"gradient_checkpointing": checkpointing, "check_dilution": True}
    examine(model, **how)
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    examine(model, mixed_precision=torch.bfloat16, **how)
    assert seen == {(torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("interpolation", [NTK(), DynamicNTK(), Linear(), LongRoPE(), YaRN(attention_factor_scale=1.1)])
def test_sound_models_pass_under_every_interpolation(interpolation: Interpolation) -> None:
    verdicts = examine(extended(interpolation=interpolation), interpolation)
    assert not failures(verdicts), lines(verdicts)


def test_a_table_that_follows_the_length_is_a_note_where_the_shift_changes_it() -> None:
    window = Window(train=64, original=400, target=512)
    model = build(config_of(max_position_embeddings=400))
    verdicts = examine(with_rope(model, LongRoPE(), window), LongRoPE(), window)
    assert not failures(verdicts), lines(verdicts)
    assert verdicts["shift"].status == "note"
    assert "follows" in verdicts["shift"].detail


def test_a_whole_checkpoint_is_saved_and_loaded(tiny_checkpoint: Path) -> None:
    loaded = load_model(tiny_checkpoint, interpolation=YaRN(), window=WINDOW)
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer)
    assert not failures(verdicts), lines(verdicts)
    assert "whole checkpoint" in verdicts["reload"].detail


def test_gptj_passes_as_the_model_it_is_loaded_as(tmp_path: Path) -> None:
    save_tiny(tmp_path, family_config("gptj", initializer_range=0.3), attn_implementation="eager")
    loaded = load_model(tmp_path, interpolation=YaRN(), window=WINDOW)
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer)
    assert not failures(verdicts), lines(verdicts)


def test_of_a_large_model_some_layers_are_saved_and_on_a_full_disk_the_config_alone(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_checkpoint, interpolation=YaRN(), window=WINDOW)
    monkeypatch.setattr(checkpoint_probes, "_RELOAD_LIMIT_BYTES", 1000)
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer)
    assert verdicts["reload"].status == "pass"
    assert "1 of 2 layers" in verdicts["reload"].detail
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint_probes.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer)
    assert verdicts["reload"].status == "pass"
    assert "config alone (weights are" in verdicts["reload"].detail
    assert "GB free" in verdicts["reload"].detail
    assert "reload" not in examine(loaded.model, check_reload=False)


@pytest.mark.parametrize("limit_bytes", [10**9, 1000])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_weights_that_are_saved_as_others_are_red_at_every_size(
    with_tokenizer: bool, limit_bytes: int, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As checkpoints in float8 once were: quantized anew while they were saved, with no word of it in the config."""
    name = "model.layers.0.mlp.up_proj.weight"

    def save_packed(*arguments: Any, **how: Any) -> None:
        save_model(*arguments, **how)
        file = Path(arguments[2]) / "model.safetensors"
        weights = load_file(file)
        weights[name] = (weights[name] * 1000).to(torch.float8_e4m3fn)
        save_file(weights, file, {"format": "pt"})

    monkeypatch.setattr(checkpoint_probes, "save_model", save_packed)
    monkeypatch.setattr(checkpoint_probes, "_RELOAD_LIMIT_BYTES", limit_bytes)
    loaded = load_model(tiny_checkpoint, interpolation=YaRN(), window=WINDOW)
    verdicts = examine(loaded.model, tokenizer=loaded.tokenizer if with_tokenizer else None)
    assert failures(verdicts) == {"reload"}, lines(verdicts)
    assert f"1 weights differ, {name} by" in verdicts["reload"].detail


def test_everything_is_as_before_afterwards() -> None:
    model = extended(interpolation=LongRoPE())
    model.train()
    model.get_submodule("model.layers.1").eval()
    model.lm_head.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    attributes = [set(vars(module)) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rng = torch.get_rng_state()

    examine(model, LongRoPE(), gradient_checkpointing=True)

    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), rng)


def diluted(family: str, attention: str = "sdpa", change: Callable[[PreTrainedModel], Any] = id, **how: Any) -> Verdict:
    model = extended(family, attention=attention)
    change(model)
    verdicts = doctor(model, WINDOW, YaRN(), check_dilution=True, check_reload=False, **how)
    assert [verdict.name for verdict in verdicts if verdict.status == "fail"] in ([], ["dilution"])
    assert all(parameter.grad is None for parameter in model.parameters())
    return next(verdict for verdict in verdicts if verdict.name == "dilution")


@pytest.mark.parametrize(
    ("family", "attention", "how"),
    [
        *((family, attention, {}) for family in ("llama", "gpt_neox", "mixtral") for attention in ("eager", "sdpa")),
        *(
            ("llama", "sdpa", {"gradient_checkpointing": True, "mixed_precision": precision})
            for precision in (None, torch.bfloat16, torch.float16)
        ),
    ],
)
def test_a_diluted_mask_is_green_where_attention_takes_it(family: str, attention: str, how: dict[str, Any]) -> None:
    assert diluted(family, attention, **how).status == "pass"


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


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
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

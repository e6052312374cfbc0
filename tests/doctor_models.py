"""Small models of many classes, extended, and what the preflight says of them."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from tiny_models import SHARP, family_config, tiny_config, tiny_model
from transformers import PreTrainedConfig, PreTrainedModel

from skipwise.doctor import Verdict, doctor
from skipwise.model import with_rope
from skipwise.rope import Interpolation, Linear, YaRN
from skipwise.window import Window

# By its path, as `skipwise.doctor` may be the function of that name.
checkpoint_probes = importlib.import_module("skipwise.doctor.checkpoint")
layer_probe = importlib.import_module("skipwise.doctor.layers")

WINDOW = Window(train=64, original=64, target=512)
# By family, what differs from `tiny_models.FAMILIES`. Of the global layers of Gemma 4 a quarter of each head turns.
LOCAL: dict[str, Any] = {"sliding_window": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_dropout": 0.1},
    "gpt_neox": {"attention_dropout": 0.1, "hidden_dropout": 0.1},
    "gemma2": LOCAL,
    "gemma3_text": LOCAL,
    "gemma4_text": LOCAL,
    "mixtral": {"router_jitter_noise": 0.1},
}


def config_of(family: str = "llama", **changes: Any) -> PreTrainedConfig:
    return family_config(family, **SHARP | FAMILIES[family] | changes)


def build(config: PreTrainedConfig, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny_model(config, seed=1, attn_implementation=attention, dtype=dtype)


def extended(
    family: str = "llama", interpolation: Interpolation | None = None, window: Window = WINDOW, **how: Any
) -> PreTrainedModel:
    config = config_of(family)
    return with_rope(build(config, **how), interpolation or usual(config), window)


def usual(config: PreTrainedConfig) -> Interpolation:
    """YaRN, and what transformers has instead where it has no YaRN."""
    return Linear() if config.model_type == "gemma4_text" else YaRN()


def examine(
    model: PreTrainedModel, interpolation: Interpolation | None = None, window: Window = WINDOW, **options: Any
) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in doctor(model, window, interpolation or usual(model.config), **options)}


def failures(verdicts: dict[str, Verdict]) -> set[str]:
    for verdict in verdicts.values():
        assert "\n" not in verdict.line
        assert (verdict.status == "fail") <= bool(verdict.cure), "a failed verdict says what to do"
    return {name for name, verdict in verdicts.items() if verdict.status == "fail"}


def lines(verdicts: dict[str, Verdict]) -> str:
    return "\n".join(verdict.line for verdict in verdicts.values())


def change_decoder_inputs(
    model: PreTrainedModel, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> PreTrainedModel:
    """Makes the model treat the arguments of its decoder differently, as another version or backend might."""
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | change(kwargs)), with_kwargs=True
    )
    return model


def buffer_changed(path: str, change: Callable[[torch.Tensor], Any], family: str = "llama") -> PreTrainedModel:
    model = extended(family)
    change(model.get_buffer(path))
    return model


def without_attention_factor() -> PreTrainedModel:
    model = extended()
    vars(model.get_submodule("model.rotary_emb"))["attention_scaling"] = 1.0
    return model


def with_absolute_positions() -> PreTrainedModel:
    model, seen = extended(), dict[str, Any]()
    change_decoder_inputs(model, lambda inputs: seen.update(inputs) or {})
    model.get_input_embeddings().register_forward_hook(
        lambda _, __, embeddings: embeddings + torch.sin(0.01 * seen["position_ids"])[..., None]  # pyright: ignore
    )
    return model


def positions_changed(change: Callable[[torch.Tensor], Any], window: Window = WINDOW) -> PreTrainedModel:
    def changed(inputs: dict[str, Any]) -> dict[str, Any]:
        positions = inputs.get("position_ids")
        return {} if positions is None else {"position_ids": change(positions)}

    return change_decoder_inputs(extended(window=window), changed)


def refuse(_: Any) -> dict[str, Any]:
    raise RuntimeError("kernel not built\nfor this device")


FAR = Window(train=64, original=64, target=32768)
TURNING = "model.rotary_emb.full_attention_inv_freq"
LOCAL_TABLE = "model.rotary_emb.sliding_attention_inv_freq"
EVERYTHING = torch.ones(1, 1, 32, 32, dtype=torch.bool)
# A model with a fault; what fails; and what the first of these says.
FAULTS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...], str]] = {
    "positions ignored": (lambda: positions_changed(lambda _: None), ("positions", "reload"), "ignores position_ids"),
    "positions in 16 bits": (
        lambda: positions_changed(lambda p: p.bfloat16().long(), FAR),
        ("positions", "reload", "shift"),
        "in 16 bits",
    ),
    "rows share positions": (lambda: positions_changed(lambda p: p[:1].expand_as(p)), ("rows",), "share positions"),
    "absolute positions": (with_absolute_positions, ("shift", "reload"), "absolute positions"),
    "the future is seen": (
        lambda: change_decoder_inputs(extended(), lambda _: {"attention_mask": EVERYTHING}),
        ("causal", "reload"),
        "future",
    ),
    "local layers scaled": (
        lambda: buffer_changed(LOCAL_TABLE, lambda table: table.div_(8), "gemma3_text"),
        ("tables", "reload"),
        "sliding_attention",
    ),
    "a still pair turns": (
        lambda: buffer_changed(TURNING, lambda table: table[-1:].add_(0.1), "gemma4_text"),
        ("tables", "reload"),
        "off by",
    ),
    "not a number": (
        lambda: buffer_changed("model.rotary_emb.inv_freq", lambda table: table[-1:].fill_(float("nan"))),
        ("tables", "reload", "reach", "causal", "positions", "rows", "loss"),
        "off by inf",
    ),
    "attention factor dropped": (without_attention_factor, ("tables", "reload"), "attention factor 1, should be 1.20"),
    "tables in bfloat16": (lambda: extended().bfloat16(), ("tables", "reload"), "to 16 bits"),
    "local layers only": (
        lambda: with_rope(build(tiny_config("mistral", **SHARP, sliding_window=16)), YaRN(), WINDOW),
        ("local",),
        "at most 16 tokens",
    ),
    "passes that fail": (
        lambda: change_decoder_inputs(extended(), refuse),
        ("reach", "layers", "mask", "causal", "shift", "positions", "rows", "tables", "loss", "reload"),
        "kernel not built",
    ),
}

"""Small models of many classes, extended, and what the preflight says of them."""

import importlib
from typing import Any

import torch
from tiny_models import SHARP, family_config, tiny_model
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

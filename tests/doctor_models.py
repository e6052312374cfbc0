"""Small models of many classes, extended, and what the preflight says of them."""

import importlib
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from skipwise.doctor import Verdict, doctor
from skipwise.model import with_rope
from skipwise.rope import Interpolation, Linear, YaRN
from skipwise.window import Window

# By its path, as `skipwise.doctor` may be the function of that name.
checkpoint_probes = importlib.import_module("skipwise.doctor.checkpoint")
layer_probe = importlib.import_module("skipwise.doctor.layers")

WINDOW = Window(train=64, original=64, target=512)
SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    # Large enough that attention is far from uniform, as it is in a trained model.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LOCAL_AND_GLOBAL: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
WIDE_HEADS: dict[str, Any] = {"global_head_dim": 32}
HALF_ROTATED: dict[str, Any] = {"rotary_pct": 0.5}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, attention_dropout=0.1),
    "neox": GPTNeoXConfig(**SHAPE, **HALF_ROTATED, attention_dropout=0.1, hidden_dropout=0.1),
    "gemma2": Gemma2Config(**SHAPE, **LOCAL_AND_GLOBAL),
    "gemma3": Gemma3TextConfig(**SHAPE, **LOCAL_AND_GLOBAL),
    # Heads of the global layers are wider, and only a quarter of each turns.
    "gemma4": Gemma4TextConfig(
        **SHAPE,
        **LOCAL_AND_GLOBAL,
        **WIDE_HEADS,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=256,
    ),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1),
}


def build(config: PreTrainedConfig, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


def extended(
    family: str = "llama", interpolation: Interpolation | None = None, window: Window = WINDOW, **how: Any
) -> PreTrainedModel:
    return with_rope(build(FAMILIES[family], **how), interpolation or usual(FAMILIES[family]), window)


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

"""The shape of a model, from its config and its modules on the meta device; no weights are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, DynamicCache, PreTrainedConfig

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.memory import LayerShape, ParameterCounts
from skipwise.model import (
    StoredWeights,
    original_window,
    read_config,
    rope_state,
    stored_weights,
    without_weights,
)
from skipwise.model.extend import told_config
from skipwise.model.gptj import as_loaded
from skipwise.names import did_you_mean
from skipwise.plan.cards import MODEL_CARDS

_EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts")
_EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What planning knows of a model.

    Attributes:
        name: as the user gave it.
        config: transformers' config.
        counts: parameters by kind.
        layers: attention and cache of each decoder layer.
        original_tokens: window that the model was pre-trained for.
        largest_layer: parameters of the largest decoder layer.
        outside_layers: parameters outside decoder layers: embedding, head, last norm.
        told_original: the original window, in tokens, if the user gave it; else None.
        stored: how the checkpoint's weights are quantized; None if they are not.
    """

    name: str
    config: PreTrainedConfig
    counts: ParameterCounts
    layers: Sequence[LayerShape]
    original_tokens: int
    largest_layer: int
    outside_layers: int
    told_original: int | None = None
    stored: StoredWeights | None = None

    @property
    def text(self) -> Any:
        """The text model's part of the config."""
        return self.config.get_text_config(decoder=True)

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layers; where the config does not say it, four times the hidden size."""
        return getattr(self.text, "intermediate_size", None) or 4 * self.text.hidden_size

    @property
    def kv_bytes_a_token(self) -> dict[str, int]:
        """Bytes that one more token adds to a 16-bit cache, by kind of layer; to sliding ones until they are full."""
        found: dict[str, int] = {}
        for layer in self.layers:
            kind = "whole" if layer.window_tokens is None else f"sliding, {layer.window_tokens} tokens"
            found[kind] = found.get(kind, 0) + 2 * layer.cached_values(latent=True)
        return found


def model_shape(source: str, *, original: int | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Reads the shape of a model.

    Args:
        source: a name of `MODEL_CARDS`, a folder, a hub name, or a GGUF file.
        original: as for `load_model`.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        CheckpointError, UnsupportedModelError, ConfigError: as `load_model`.
    """
    if source in MODEL_CARDS and not Path(source).exists():
        settings = dict(MODEL_CARDS[source].config)
        config = told_config(as_loaded(AutoConfig.for_model(settings.pop("model_type"), **settings)), original)
    else:
        try:
            config = read_config(source, original=original, trust_remote_code=trust_remote_code)
        except CheckpointError as error:
            # A bare name may be a misspelt card.
            if "/" in source or source.endswith(".gguf"):
                raise
            hint = did_you_mean(source, MODEL_CARDS) or "or "
            message = f"{error}; {hint}give a built-in card: {', '.join(MODEL_CARDS)}"
            raise CheckpointError(message, page=error.page) from error
    shape = shape_of(config, name=source, trust_remote_code=trust_remote_code)
    return replace(shape, told_original=original, stored=stored_weights(source, config))


def shape_of(config: PreTrainedConfig, *, name: str = "model", trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model that a config describes."""
    skeleton = without_weights(config, trust_remote_code=trust_remote_code)
    counts = count_parameters(skeleton)
    sizes = [sum(p.numel() for p in block.parameters()) for block in decoder_blocks(skeleton)]
    return ModelShape(
        name=name,
        config=config,
        counts=counts,
        layers=layer_shapes(config),
        original_tokens=original_window(config),
        largest_layer=max(sizes),
        outside_layers=counts.total - sum(sizes),
    )


def count_parameters(model: Any) -> ParameterCounts:
    """Counts a transformers model's parameters by kind, on any device; tied parameters count once."""
    counts: dict[str, int] = dict.fromkeys(("embedding", "head", "attention", "mlp", "experts", "norms", "other"), 0)
    inputs = {id(p) for p in model.get_input_embeddings().parameters()}
    head_module = model.get_output_embeddings()
    head = set() if head_module is None else {id(p) for p in head_module.parameters()} - inputs
    blocks = {id(p) for block in decoder_blocks(model) for p in block.parameters()}
    num_experts, per_token = experts_of(model.config)
    for name, parameter in model.named_parameters():
        counts[_kind(name, parameter, inputs, head, blocks, num_experts)] += parameter.numel()
    active = counts["experts"] * per_token // num_experts if num_experts else 0
    return ParameterCounts(**counts, active_experts=active)


def experts_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Experts per layer, and how many of them process each token; zeros for a model without experts."""
    text = config.get_text_config(decoder=True)
    num_experts = next((n for key in _EXPERT_COUNTS if isinstance(n := getattr(text, key, None), int) and n > 1), 0)
    per_token = next((n for key in _EXPERTS_A_TOKEN if isinstance(n := getattr(text, key, None), int)), 0)
    return (num_experts, per_token) if num_experts and per_token else (0, 0)


def layer_shapes(config: PreTrainedConfig) -> list[LayerShape]:
    """Attention and cache of each layer; transformers' own cache says which layers slide and which keep nothing.

    Raises:
        UnsupportedModelError: a layer caches something other than keys and values.
    """
    text: Any = config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    last_owner = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", 0) or 0)
    shapes = []
    for index in range(text.num_hidden_layers):
        layer = cache.layers[index] if index < len(cache.layers) else None
        kind = type(layer).__name__
        if not any(word in kind for word in ("DynamicLayer", "SlidingWindowLayer", "Dummy")) and layer is not None:
            raise UnsupportedModelError(
                f"layer {index} keeps a {kind} instead of keys and values, and only caches of attention can be planned"
            )
        window = getattr(layer, "sliding_window", None)
        shapes.append(_layer(_own(config, index), window, index < last_owner and "Dummy" not in kind))
    return shapes


def _own(config: PreTrainedConfig, index: int) -> Any:
    """The config of one layer, for models whose layers differ."""
    text: Any = config.get_text_config(decoder=True)
    each = getattr(text, "per_layer_config", None)
    return each[index] if each is not None and len(each) > index else text


def _layer(config: Any, window: int | None, owns_cache: bool) -> LayerShape:
    heads, latent_dim = config.num_attention_heads, None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    key_dim = value_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "kv_lora_rank", None) and getattr(config, "qk_nope_head_dim", None):
        kv_heads, latent_dim = heads, config.kv_lora_rank + config.qk_rope_head_dim
        key_dim, value_dim = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    return LayerShape(
        query_heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        latent_dim=latent_dim,
        window_tokens=window,
        owns_cache=owns_cache,
    )


def decoder_blocks(model: Any) -> Sequence[nn.Module]:
    """The decoder's layers: of the module lists with the right length, the one with most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [each for each in lists if len(each) == wanted]
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of {wanted} layers")
    return list(max(found, key=lambda each: sum(math.prod(p.shape) for p in each.parameters())))


def _kind(name: str, parameter: Any, inputs: set[int], head: set[int], blocks: set[int], num_experts: int) -> str:
    if id(parameter) in inputs:
        return "embedding"
    if id(parameter) in head:
        return "head"
    parts = name.lower().split(".")
    if any("norm" in part or part.startswith("ln") for part in parts):
        return "norms"
    if id(parameter) not in blocks:
        return "other"
    if any("attn" in part or "attention" in part for part in parts):
        return "attention"
    if num_experts and "experts" in parts and "shared" not in name:
        return "experts"
    if any("router" in part or (part == "gate" and num_experts) for part in parts):
        return "other"
    return "mlp"


def require_longer(shape: ModelShape, target_tokens: int) -> None:
    """Refuses a target that the model reaches already.

    Raises:
        ConfigError: names the window that the model has.
    """
    maximum = rope_state(shape.config).maximum
    given = f"the target is {target_tokens} tokens and"
    if target_tokens <= shape.original_tokens:
        raise ConfigError(
            f"{given} the original window of {shape.name} is {shape.original_tokens}: nothing is to be extended; give "
            "a larger --target",
            page="target-not-longer",
        )
    if target_tokens < maximum:
        raise ConfigError(
            f"{given} {shape.name} has been extended to {maximum} already; give a larger --target",
            page="target-not-longer",
        )

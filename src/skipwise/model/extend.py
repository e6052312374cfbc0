"""Change a model's interpolation: write a new config, and build a new model around the existing parameters."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.model._transformers import copy_kernels
from skipwise.model.quantized import is_four_bit
from skipwise.model.rotary import text_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import (
    Interpolation,
    LongRoPE,
    RopeState,
    read_rope,
    with_attention_scale,
    with_original,
    write_rope,
)
from skipwise.window import Window


def rope_state(config: PreTrainedConfig) -> RopeState:
    """The rotary settings of the config's decoder."""
    return read_rope(common_names(text_config(config)))


def original_window(config: PreTrainedConfig) -> int:
    """The window that the model was pre-trained for, in tokens, even if the model has been extended since."""
    return rope_state(config).original


def longest_input(config: PreTrainedConfig) -> int:
    """The longest input that the model handles, in tokens.

    For a model without rotary positions this is `max_position_embeddings`.
    """
    try:
        return rope_state(config).maximum
    except (ConfigError, UnsupportedModelError):
        return text_config(config).max_position_embeddings


# What a scaled model was trained with, and must be scaled with again.
_KEPT = ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor")


def scaled_by(config: PreTrainedConfig, target_tokens: int) -> dict[str, Any] | None:
    """Settings of the interpolation that a model is scaled by already: extending it again must be of the same kind.

    Where its factor is not the ratio of its windows, it grows with the target, as `write_rope` asks for; divisors that
    were searched are stretched.

    Returns:
        Its kind and fields; None for a model that is not scaled.
    """
    state = rope_state(config)
    if not state.scaled:
        return None
    settings = {"kind": state.kind, **{name: state.parameters[name] for name in _KEPT if name in state.parameters}}
    if state.was_searched and isinstance(state.interpolation, LongRoPE):
        longer = state.interpolation.stretched(state.spec, state.window, max(target_tokens, state.maximum))
        return settings | {name: list(getattr(longer, name)) for name in ("short_factor", "long_factor")}
    nominal = state.maximum / state.original
    if state.kind in ("linear", "llama3", "yarn") and nominal > 1 and abs(state.factor / nominal - 1) > 1e-6:
        settings["factor"] = state.factor * target_tokens / state.maximum
    return settings


def with_rope(model: PreTrainedModel, interpolation: Interpolation, window: Window) -> PreTrainedModel:
    """Builds a model with another interpolation around the same parameter tensors.

    Args:
        model: a plain model, neither quantized nor wrapped by an adapter library.
        interpolation: how the rotary table is stretched. If the model is already extended, the interpolation must be of
            the same kind; it is computed from the base model again.
        window: the lengths that the interpolation is for.

    Returns:
        A model of the same class, mode, device and dtype. Both models share their parameters: training one changes the
        other. Hooks, compiled forwards and gradient checkpointing stay with the old model.

    Raises:
        ConfigError: the model is wrapped or quantized, or its config cannot hold this interpolation.
    """
    return _rebuilt(model, lambda config: extended_config(config, interpolation, window))


def with_scaled_attention(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    """Builds a model with `scale` times its trained attention factor around the same parameters.

    Args:
        model: as for `with_rope`.
        scale: multiplies the factor on cos and sin; attention logits change by its square. It is relative to the
            attention factor that the model was trained with, so repeated calls do not accumulate.

    Raises:
        ConfigError: as for `with_rope`, or the config cannot hold an attention factor for the model's interpolation.
    """
    return _rebuilt(model, lambda config: scaled_config(config, scale))


def _rebuilt(model: PreTrainedModel, change: Callable[[PreTrainedConfig], PreTrainedConfig]) -> PreTrainedModel:
    """Builds the model again from a changed config, around the same parameters."""
    if hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
        raise ConfigError(
            "the model has an adapter or quantized weights and cannot be built from another config; merge the adapter "
            "or dequantize the weights first",
            page="quantized-checkpoint",
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with quiet_transformers():
        return built_around(type(model), change(model.config), parameters, model)


def told_config(config: PreTrainedConfig, original: int | None) -> PreTrainedConfig:
    """Records the user's value for the base model's pre-training window, in tokens, in the config.

    Raises:
        ConfigError: the config records another original window.
    """
    return config if original is None else _rewritten(config, lambda decoder: with_original(decoder, original))


def extended_config(config: PreTrainedConfig, interpolation: Interpolation, window: Window) -> PreTrainedConfig:
    """Returns a new config of the same class with the interpolation written in. `config` is not changed."""
    return _rewritten(config, lambda decoder: write_rope(decoder, interpolation, window))


def scaled_config(config: PreTrainedConfig, scale: float) -> PreTrainedConfig:
    """Returns a new config of the same class with `scale` times the trained attention factor."""
    return _rewritten(config, lambda decoder: with_attention_scale(decoder, scale))


def with_first_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Returns a copy of the config that describes only the first `num_layers` layers of the decoder."""
    # Not as `_rewritten`, since Gemma 4's class would give the last layer another kind.
    cut = copy.deepcopy(config)
    text: Any = text_config(cut)
    whole, by_index = text.num_hidden_layers, text.to_dict().get("per_layer_config")
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, name, value[:num_layers])
    if shared := getattr(text, "num_kv_shared_layers", None):
        # The last num_kv_shared_layers layers of Gemma 3n and 4 use the keys and values of earlier layers.
        text.num_kv_shared_layers = max(0, num_layers - (whole - shared))
    text.num_hidden_layers = num_layers
    if by_index:
        text.per_layer_config = {index: own for index, own in by_index.items() if int(index) < num_layers}
    return cut


def _rewritten(config: PreTrainedConfig, write: Callable[[Mapping[str, Any]], dict[str, Any]]) -> PreTrainedConfig:
    """Returns a new config of the same class, with `write` applied to the decoder's part as a mapping."""
    decoder, key = text_config(config), decoder_key(config)
    written = write(common_names(decoder))
    if written.get("head_dim", ...) is None:
        # Mixtral's config has None and means this value, but transformers' YaRN code multiplies head_dim.
        written["head_dim"] = written["hidden_size"] // written["num_attention_heads"]
    written = {decoder.attribute_map.get(name, name): value for name, value in written.items()}
    new = type(config).from_dict({**config.to_dict(), key: written} if key else written)
    for old, copied in ((config, new), *((getattr(config, part), getattr(new, part)) for part in config.sub_configs)):
        if old is None:  # Gemma 4 without an audio tower
            continue
        copy_kernels(old, copied)
    return new


def decoder_key(config: PreTrainedConfig) -> str | None:
    """The key of the decoder's sub-config in a multimodal config, or None if the config itself is the decoder's."""
    decoder = text_config(config)
    return None if decoder is config else next(key for key in config.sub_configs if getattr(config, key) is decoder)


def common_names(config: PreTrainedConfig) -> Mapping[str, Any]:
    """The config as a mapping, with family-specific names (`n_positions`) replaced by the common names."""
    common = {own: name for name, own in config.attribute_map.items()}
    return {common.get(name, name): value for name, value in config.to_dict().items()}


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replaces a parameter or buffer of a model by its name."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)


def without_parameters(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Builds a model whose parameters are on the meta device, and whose computed buffers are real, on the CPU."""
    with _default_dtype(dtype), init_empty_weights(include_buffers=False), no_init_weights():
        return model_class(config)


def built_around(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    parameters: Mapping[str, nn.Parameter],
    like: PreTrainedModel,
) -> PreTrainedModel:
    """Builds a model from a config around existing parameters. Rotary tables and other computed buffers are new.

    Args:
        model_class: class to build.
        config: contains the interpolation.
        parameters: all parameters by name; tied parameters appear under each of their names.
        like: the new model takes its device, dtype, mode and persistent buffers from this one.

    Raises:
        ConfigError: the names or shapes of `parameters` differ from those of the built model.
    """
    model = without_parameters(model_class, config, like.dtype)
    for name, module in like.named_modules():
        if is_four_bit(module):
            # A 4-bit layer also has state outside its parameters.
            model.set_submodule(name, module)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    if wanted != {name: parameter.shape for name, parameter in parameters.items()}:
        raise ConfigError(
            f"{type(like).__name__} has other parameters than its config describes; give a plain, unwrapped model"
        )
    computed = {name for name, _ in like.named_non_persistent_buffers()}
    stored = {name: buffer for name, buffer in like.named_buffers() if name not in computed}
    for name, tensor in (*parameters.items(), *stored.items()):
        put_tensor(model, name, tensor)
    model.generation_config = like.generation_config
    model.to(like.device)  # pyright: ignore[reportArgumentType]
    return model.train(like.training)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype inside the context, as the library does while it loads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

"""Where configs of the two eras keep a rotary embedding, and under which names.

    transformers 5   rope_parameters = {"rope_type", "rope_theta", "factor", ...}, or one such dict for each layer type
    transformers 4   rope_scaling = {"type" or "rope_type", "factor", ...} or null, with rope_theta beside it

transformers 5 takes `rope_scaling` over `rope_parameters` where it finds both, so the two must say the same.
"""

import copy
from collections.abc import Mapping
from typing import Any

from skipwise.errors import ConfigError, UnsupportedModelError

# Layers that see the whole context. The others (sliding windows) never meet a long distance and keep their own base.
GLOBAL_LAYERS = "full_attention"

# 4-era names that differ from rope_theta and partial_rotary_factor.
_THETA_NAME = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
_PARTIAL_NAME = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Models whose 4-era config has a second base, for the sliding layers, and whose rope_scaling is for the global ones.
_LOCAL_THETA_NAME = {"gemma3_text": "rope_local_base_freq", "gemma3n_text": "rope_local_base_freq"}
# Models whose 4-era code takes a rope_scaling of exactly these entries, and works out the rest from the two lengths.
_LEGACY_ENTRIES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor")
)

# Published configs of these models may leave out the base or the rotated share, which then has this value.
_THETA_LEFT_OUT: dict[str, float] = dict.fromkeys(("llama", "mistral", "gpt_neox", "gptj", "codegen"), 10_000.0)
_PARTIAL_LEFT_OUT = {"gpt_neox": 0.25, "stablelm": 0.25, "phi": 0.5, "persimmon": 0.5, "glm": 0.5, "nemotron": 0.5}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model: the config itself, or its part in a model that also sees or hears."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def with_text_part(config: Mapping[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config with this language model in the place of its own."""
    return text if text_part(config) is config else {**copy.deepcopy(dict(config)), "text_config": text}


def parameters_by_layer(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of each layer type, or None where all layers share them.

    Raises:
        UnsupportedModelError: when no layer type is known to see the whole context.
    """
    parameters = text.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in parameters.values()):
        if GLOBAL_LAYERS not in parameters:
            raise UnsupportedModelError(
                f"rope_parameters are kept for {', '.join(parameters)}, and it is not known which of these layers "
                f"see the whole context; only models that call them {GLOBAL_LAYERS} can be extended"
            )
        return copy.deepcopy(dict(parameters))
    if local_name := _LOCAL_THETA_NAME.get(_model_type(text)):
        # A 4-era config of such a model, in today's form.
        return {"sliding_attention": {"rope_type": "default", "rope_theta": text.get(local_name, 10_000.0)}}
    return None


def global_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the layers that see the whole context, with `rope_type` and `rope_theta`, whatever the era.

    Raises:
        ConfigError: when the base is missing and a reader would fall back to one of its own.
        UnsupportedModelError: as `parameters_by_layer`.
    """
    by_layer = parameters_by_layer(text)
    legacy = text.get("rope_scaling") or {}
    if by_layer is not None:
        parameters = {**(by_layer.get(GLOBAL_LAYERS) or {}), **legacy}
    else:
        parameters = dict(legacy or text.get("rope_parameters") or {})
    parameters = copy.deepcopy(parameters)
    old_type = parameters.pop("type", "default")
    parameters["rope_type"] = parameters.get("rope_type") or old_type
    parameters["rope_theta"] = _theta(text, parameters)
    partial_name = _PARTIAL_NAME.get(_model_type(text), "partial_rotary_factor")
    partial = parameters.get("partial_rotary_factor", text.get(partial_name))
    if partial is None:
        partial = _PARTIAL_LEFT_OUT.get(_model_type(text))
    if partial is not None:
        parameters["partial_rotary_factor"] = partial
    return parameters


def with_legacy_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what a 4-era reader looks for to a config with `rope_parameters`; transformers 5 leaves it out on saving.

    Args:
        config: the content of a `config.json` as transformers 5 writes it.

    Returns:
        A new dict with `rope_theta` and `rope_scaling` (null where nothing is scaled), and the share of rotated
        dimensions and the sliding layers' base where the model has them. `rope_scaling` also holds the base and the
        share, so that a reader who takes it in place of all parameters loses neither, and both spellings of the type.
    """
    text = {name: value for name, value in text_part(config).items() if name != "rope_scaling"}
    written = copy.deepcopy(text)
    model_type = _model_type(text)
    parameters = global_parameters(text)
    by_layer = parameters_by_layer(text)

    written["rope_theta"] = parameters["rope_theta"]
    if model_type in _THETA_NAME:
        written[_THETA_NAME[model_type]] = parameters["rope_theta"]
    shared = by_layer is None or model_type in _LOCAL_THETA_NAME
    if "partial_rotary_factor" in parameters and shared:
        written[_PARTIAL_NAME.get(model_type, "partial_rotary_factor")] = parameters["partial_rotary_factor"]
    if by_layer is not None and model_type in _LOCAL_THETA_NAME:
        written[_LOCAL_THETA_NAME[model_type]] = by_layer["sliding_attention"]["rope_theta"]

    scaling = None
    if parameters["rope_type"] != "default":
        scaling = {"type": parameters["rope_type"], **parameters}
        # With an attention factor of its own the short form would be another model; 4-era code refuses the long one.
        if model_type in _LEGACY_ENTRIES and "attention_factor" not in parameters:
            scaling = {name: scaling[name] for name in _LEGACY_ENTRIES[model_type]}
    if shared:
        # Of other models with parameters by layer there is no 4-era code, and transformers 5 would scale every layer.
        written["rope_scaling"] = scaling
    return with_text_part(config, written)


def rotary_dim(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Dimensions of a head that are rotated: named by latent attention and by GPT-J, else a share of the head.

    Raises:
        ConfigError: when the config has no dimensions.
    """
    for name in ("qk_rope_head_dim", "rotary_dim"):
        if text.get(name):
            return int(text[name])
    return int(head_dim(text) * parameters.get("partial_rotary_factor", 1.0))


def head_dim(text: Mapping[str, Any]) -> int:
    """Dimensions of a head in the layers that see the whole context, which may have wider ones than the others.

    Raises:
        ConfigError: when the config has no dimensions.
    """
    # As Gemma 4 is published; transformers makes an entry for each layer of it.
    if wider := text.get("global_head_dim"):
        return int(wider)
    layers, by_index = text.get("layer_types") or (), text.get("per_layer_config") or {}
    if not isinstance(by_index, Mapping) or not all(isinstance(layer, Mapping) for layer in by_index.values()):
        raise ConfigError(f"config's per_layer_config is {by_index!r}; give a dict of settings by layer: correct it")
    for index, layer in by_index.items():
        name = layers[int(index)] if str(index).isdecimal() and int(index) < len(layers) else index
        if name == GLOBAL_LAYERS and layer.get("head_dim"):
            return int(layer["head_dim"])
    if not text.get("head_dim") and not (text.get("hidden_size") and text.get("num_attention_heads")):
        raise ConfigError("config has no head_dim, nor hidden_size with num_attention_heads; give the whole config")
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def maximum_name(text: Mapping[str, Any]) -> str:
    """What the config calls the longest input that the model handles."""
    return next(
        (name for name in ("max_position_embeddings", "n_positions") if name in text), "max_position_embeddings"
    )


def _theta(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> float:
    model_type = _model_type(text)
    own_name = _THETA_NAME.get(model_type, "rope_theta")
    for value in (parameters.get("rope_theta"), text.get(own_name), text.get("rope_theta")):
        if value is not None:
            return float(value)
    if model_type in _THETA_LEFT_OUT and parameters["rope_type"] == "default":
        return _THETA_LEFT_OUT[model_type]
    raise ConfigError(
        f"config of model type {model_type!r} has no rope_theta, and readers would fall back to a base that the model "
        "may not have been trained with; add the base model's rope_theta (one without rotary positions has none)"
    )


def _model_type(text: Mapping[str, Any]) -> str:
    return text.get("model_type", "")

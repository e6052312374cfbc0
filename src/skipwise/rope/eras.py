"""Where configs of the two eras keep the rotary embedding, and under which names.

    transformers 5   rope_parameters = {"rope_type", "rope_theta", "factor", ...}, or one such dict per layer type
    transformers 4   rope_scaling = {"type" or "rope_type", "factor", ...} or null, with rope_theta beside it

`global_entry` reads either form as transformers 5 does; nothing else in skipwise reads these entries. If a config has
both, `rope_scaling` is used. If it has two original windows, the one beside the entry is used.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from skipwise.errors import ConfigError, UnsupportedModelError

# Layers with global attention. The others (sliding windows) never see long distances and keep their own base.
GLOBAL_LAYERS = "full_attention"
LOCAL_LAYERS = "sliding_attention"
ORIGINAL = "original_max_position_embeddings"

# Rope types whose parameters include an original window.
KINDS_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
# Aliases of rope types: the first name of LongRoPE, SGLang's name for DeepSeek's YaRN, and TeleChat3's.
_STANDARD_TYPE = {"su": "longrope", "deepseek_yarn": "yarn", "telechat3-yarn": "yarn"}
# Phi-3 was first published with LongRoPE named "yarn". For text, Qwen2-VL's three positions are equal.
_STANDARD_TYPE_OF_MODEL = {("phi3", "yarn"): "longrope", ("phi4_multimodal", "yarn"): "longrope"}
_STANDARD_TYPE_OF_MODEL |= {
    (model_type, "mrope"): "default" for model_type in ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")
}
# TeleChat3's attention factor has this weight instead of YaRN's 0.1.
_TELECHAT_WEIGHT = 0.07
# Models whose flat configs transformers splits into parts; an original window beside the entry is lost in the process.
_PASS_OVER_BESIDE = ("qwen2_vl", "qwen2_5_vl")
# Default original windows of config classes in transformers, used if the file has none beside the entry.
_ORIGINAL_LEFT_OUT = {"phi3": 4096, "phi4_multimodal": 4096}

# transformers 4 names that differ from rope_theta and partial_rotary_factor.
_THETA_NAME = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
_PARTIAL_NAME = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Models with an entry per layer type whose transformers 4 rope_scaling applies only to the global layers; the value is
# the transformers 4 name of the base of the other layers.
_LOCAL_THETA_NAME = {
    "gemma3_text": "rope_local_base_freq",
    "gemma3n_text": "rope_local_base_freq",
    "olmo3": "rope_theta",
}
# Models whose transformers 4 code requires exactly these fields in rope_scaling and derives the rest from the lengths.
_LEGACY_ENTRIES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor")
)

# Models whose layers take their base from layer_rope_theta if present, not from the entry.
_THETA_BY_LAYER = ("granite_swa", "granitemoe_swa")
# Published configs of these models may omit the base or the rotated share; these are the defaults. For scaled models
# the default base applies only to LLaMA and Llama 2, recognised by their vocabulary: elsewhere the base was lost.
_THETA_LEFT_OUT: dict[str, float] = dict.fromkeys(("llama", "mistral", "gpt_neox", "gptj", "codegen"), 10_000.0)
_PARTIAL_LEFT_OUT = {"gpt_neox": 0.25, "stablelm": 0.25, "phi": 0.5, "persimmon": 0.5, "glm": 0.5, "nemotron": 0.5}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model: the config itself, or `text_config` of a multimodal model."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def with_text_part(config: Mapping[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config in which the language model's part is replaced by `text`."""
    return text if text_part(config) is config else {**copy.deepcopy(dict(config)), "text_config": text}


def standard_type(model_type: str, name: str) -> str:
    """The name of a rope type in transformers."""
    return _STANDARD_TYPE_OF_MODEL.get((model_type, name)) or _STANDARD_TYPE.get(name, name)


def parameters_by_layer(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of each layer type; None if all layers share them.

    Raises:
        UnsupportedModelError: no layer type is known to have global attention.
    """
    today, old = text.get("rope_parameters") or {}, text.get("rope_scaling") or {}
    if _is_by_layer(old):
        today, old = old, {}
    if _is_by_layer(today):
        if GLOBAL_LAYERS not in today:
            raise UnsupportedModelError(
                f"rope_parameters are kept for {', '.join(today)}, and it is not known which of these layers "
                f"see the whole context; only models that call them {GLOBAL_LAYERS} can be extended"
            )
        by_layer = {name: value for name, value in copy.deepcopy(dict(today)).items() if isinstance(value, dict | None)}
    elif local_name := _LOCAL_THETA_NAME.get(_model_type(text)):
        # transformers ignores rope_parameters that are not by layer type in these models.
        theta = text.get(local_name, text.get("rope_theta", 10_000.0) if local_name == "rope_theta" else 10_000.0)
        by_layer = {LOCAL_LAYERS: {"rope_type": "default", "rope_theta": theta}}
        by_layer[GLOBAL_LAYERS] = {"rope_type": "default"} if old else {}
    else:
        return None
    by_layer[GLOBAL_LAYERS] = {**(by_layer.get(GLOBAL_LAYERS) or {}), **copy.deepcopy(dict(old))}
    return by_layer


def reads_by_layer_alone(text: Mapping[str, Any]) -> bool:
    """Whether the model's class ignores the config's `rope_parameters`, as they are not by layer type (Gemma 3)."""
    return _model_type(text) in _LOCAL_THETA_NAME and not _is_by_layer(text.get("rope_parameters") or {})


def global_entry(text: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the global-attention layers, as transformers 5 reads it and under its names.

    Returns:
        A new dict with `rope_type`, with the original window if the type has one, and with the attention factor of
        types unknown to transformers. A base that stands outside the entry is not included.

    Raises:
        UnsupportedModelError: the rope type is not text; or as `parameters_by_layer`.
    """
    by_layer = parameters_by_layer(text)
    entry = copy.deepcopy(dict(_raw_entry(text, by_layer)))
    spelled = entry.pop("type", None)
    name = entry.get("rope_type") or spelled or "default"
    if not isinstance(name, str):
        raise UnsupportedModelError(f"rope type is {name!r}; write it as text, such as 'yarn'")
    entry["rope_type"] = standard_type(_model_type(text), name)
    if name == "telechat3-yarn" and entry.get("attention_factor") is None and entry.get("factor"):
        entry["attention_factor"] = _TELECHAT_WEIGHT * math.log(entry["factor"]) + 1.0
    if entry["rope_type"] in KINDS_WITH_ORIGINAL:
        entry[ORIGINAL] = _original(text, entry, by_layer is not None)
    if "truncate" in entry:
        entry["truncate"] = bool(entry["truncate"])
    return entry


def with_global_entry(text: Mapping[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` with this entry for the global-attention layers."""
    by_layer = parameters_by_layer(text)
    return entry if by_layer is None else by_layer | {GLOBAL_LAYERS: entry}


def unlike_types(text: Mapping[str, Any]) -> tuple[str, str] | None:
    """`rope_type` and `type` of an entry if they contradict each other, else None; transformers uses the first."""
    entry = _raw_entry(text, parameters_by_layer(text))
    today, old = entry.get("rope_type"), entry.get("type")
    if not today or not old or standard_type(_model_type(text), today) == standard_type(_model_type(text), old):
        return None
    return today, old


def global_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the global-attention layers, with `rope_type` and `rope_theta`, from either era.

    Raises:
        ConfigError: the base is missing, so that readers would fall back to a default of their own.
        UnsupportedModelError: as `global_entry`.
    """
    parameters = global_entry(text)
    parameters["rope_theta"] = _theta(text, parameters)
    partial_name = _PARTIAL_NAME.get(_model_type(text), "partial_rotary_factor")
    partial = parameters.get("partial_rotary_factor", text.get(partial_name))
    if partial is None:
        partial = _PARTIAL_LEFT_OUT.get(_model_type(text))
    if partial is not None:
        parameters["partial_rotary_factor"] = partial
    return parameters


def with_both_eras(config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a config's rotary embedding for readers of both eras; transformers 5 saves only its own form.

    Args:
        config: the content of a `config.json` of either era, or of both.

    Returns:
        A new dict with `rope_parameters`; `rope_theta` and `rope_scaling` (null if unscaled); and, if the model has
        them, the rotated share and the base of the sliding-window layers. `rope_scaling` has both spellings of the
        type, and repeats the base and the share, so that a reader that uses it instead of all parameters loses neither.
    """
    text = text_part(config)
    written = copy.deepcopy(dict(text))
    model_type = _model_type(text)
    parameters = global_parameters(text)
    by_layer = parameters_by_layer(text)
    written.pop("rope_scaling", None)
    if written.get(ORIGINAL, 0) is None:
        del written[ORIGINAL]  # transformers would compute with the null
    written["rope_parameters"] = with_global_entry(text, parameters)

    written["rope_theta"] = parameters["rope_theta"]
    if model_type in _THETA_NAME:
        written[_THETA_NAME[model_type]] = parameters["rope_theta"]
    shared = by_layer is None or model_type in _LOCAL_THETA_NAME
    if "partial_rotary_factor" in parameters and shared:
        written[_PARTIAL_NAME.get(model_type, "partial_rotary_factor")] = parameters["partial_rotary_factor"]
    if by_layer is not None and _LOCAL_THETA_NAME.get(model_type, "rope_theta") != "rope_theta":
        written[_LOCAL_THETA_NAME[model_type]] = by_layer[LOCAL_LAYERS]["rope_theta"]
    if shared:
        # Other models with parameters by layer have no transformers 4 code, and transformers 5 would apply rope_scaling
        # to every layer.
        written["rope_scaling"] = _legacy_scaling(text, parameters)
    return with_text_part(config, written)


def _legacy_scaling(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    if parameters["rope_type"] == "default" and "mrope_section" not in parameters:
        return None
    scaling = {"type": parameters["rope_type"], **copy.deepcopy(dict(parameters))}
    # The short form has no attention factor and derives the factor from the lengths; transformers 4 code refuses the
    # long form. So write the short form unless it would change the model.
    short = _LEGACY_ENTRIES.get(_model_type(text))
    stretch = text.get(maximum_name(text), 0) / (parameters.get(ORIGINAL) or 1)
    if short and "attention_factor" not in parameters and parameters.get("factor") in (None, stretch):
        scaling = {name: scaling[name] for name in short}
    return scaling


def unapplied(text: Mapping[str, Any]) -> list[str]:
    """Long-context settings of a config that transformers does not apply, one sentence each."""
    dual = text.get("dual_chunk_attention_config")
    if not isinstance(dual, Mapping):
        return []
    window = dual.get("original_max_position_embeddings") or dual.get("chunk_size")
    return [
        "dual_chunk_attention_config is not applied by transformers: it is computed as plain attention, which "
        + (f"was trained for {window} tokens here" if window else "may have been trained for fewer tokens")
        + "; engines such as vLLM apply it"
    ]


def names_original(text: Mapping[str, Any]) -> bool:
    """Whether the config states the original window where transformers looks for it, instead of leaving the maximum."""
    by_layer = parameters_by_layer(text)
    return (_beside(text, by_layer is not None) or _raw_entry(text, by_layer).get(ORIGINAL)) is not None


def own_thetas(text: Mapping[str, Any]) -> set[float]:
    """The distinct bases in `layer_rope_theta`, without 0, which marks a layer without positions."""
    return {float(theta) for theta in text.get("layer_rope_theta") or () if theta}


def rotary_dim(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Dimensions of a head that are rotated: given by configs of latent attention and GPT-J, else a share of the head.

    Raises:
        ConfigError: the config has no dimensions of a head.
    """
    for name in ("qk_rope_head_dim", "rotary_dim"):
        if text.get(name):
            return int(text[name])
    return int(head_dim(text) * parameters.get("partial_rotary_factor", 1.0))


def head_dim(text: Mapping[str, Any]) -> int:
    """Dimensions of a head in the global-attention layers, which may be wider than in the others.

    Raises:
        ConfigError: the config has no dimensions of a head.
    """
    # Gemma 4's published configs have this; transformers turns it into per_layer_config.
    if wider := text.get("global_head_dim"):
        return int(wider)
    layers, by_index = text.get("layer_types") or (), text.get("per_layer_config") or {}
    if not isinstance(by_index, Mapping) or not all(isinstance(layer, Mapping) for layer in by_index.values()):
        raise ConfigError(
            f"config's per_layer_config is {by_index!r}; give a dict of settings by layer: correct it",
            page="unclear-config",
        )
    for index, layer in by_index.items():
        name = layers[int(index)] if str(index).isdecimal() and int(index) < len(layers) else index
        if name == GLOBAL_LAYERS and layer.get("head_dim"):
            return int(layer["head_dim"])
    if not text.get("head_dim") and not (text.get("hidden_size") and text.get("num_attention_heads")):
        raise ConfigError(
            "config has no head_dim, nor hidden_size with num_attention_heads; give the whole config",
            page="unclear-config",
        )
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def maximum_name(text: Mapping[str, Any]) -> str:
    """Name of the config field with the longest input that the model handles."""
    return next(
        (name for name in ("max_position_embeddings", "n_positions") if name in text), "max_position_embeddings"
    )


def _is_by_layer(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in entry.values())


def _raw_entry(text: Mapping[str, Any], by_layer: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The entry of the global-attention layers, as it stands in the config."""
    return (
        (text.get("rope_scaling") or text.get("rope_parameters") or {}) if by_layer is None else by_layer[GLOBAL_LAYERS]
    )


def _beside(text: Mapping[str, Any], by_layer: bool) -> Any:
    """The original window beside the entry, if transformers reads it there; else None."""
    if by_layer or _model_type(text) in _PASS_OVER_BESIDE:
        return None
    return text.get(ORIGINAL, _ORIGINAL_LEFT_OUT.get(_model_type(text)))


def _original(text: Mapping[str, Any], entry: Mapping[str, Any], by_layer: bool) -> Any:
    """The original window that transformers uses: beside the entry, else inside it, else the maximum."""
    beside, inside = _beside(text, by_layer), entry.get(ORIGINAL)
    if beside is None and inside is None:
        return text.get(maximum_name(text))
    return inside if beside is None else beside


def _theta(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> float:
    model_type = _model_type(text)
    thetas = own_thetas(text) if model_type in _THETA_BY_LAYER else set()
    if len(thetas) == 1:
        return next(iter(thetas))
    own_name = _THETA_NAME.get(model_type, "rope_theta")
    for value in (parameters.get("rope_theta"), text.get(own_name), text.get("rope_theta")):
        if value is not None:
            return float(value)
    is_first_llama = (model_type, text.get("vocab_size")) == ("llama", 32000)
    if model_type in _THETA_LEFT_OUT and (parameters["rope_type"] == "default" or is_first_llama):
        return _THETA_LEFT_OUT[model_type]
    raise ConfigError(
        f"config of model type {model_type!r} has no rope_theta, and readers would fall back to a base that the model "
        "may not have been trained with; add the base model's rope_theta (one without rotary positions has none)",
        page="unclear-config",
    )


def _model_type(text: Mapping[str, Any]) -> str:
    return text.get("model_type", "")

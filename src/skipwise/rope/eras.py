"""Where configs of the two eras keep a rotary embedding, and under which names.

    transformers 5   rope_parameters = {"rope_type", "rope_theta", "factor", ...}, or one such dict for each layer type
    transformers 4   rope_scaling = {"type" or "rope_type", "factor", ...} or null, with rope_theta beside it

`global_entry` says what transformers 5 makes of either, whichever way it is written; nothing else in skipwise reads
these entries. Where both are there, `rope_scaling` is taken; of two original windows, the one beside the entry.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

from skipwise.errors import ConfigError, UnsupportedModelError

# Layers that see the whole context. The others (sliding windows) never meet a long distance and keep their own base.
GLOBAL_LAYERS = "full_attention"
LOCAL_LAYERS = "sliding_attention"
ORIGINAL = "original_max_position_embeddings"

# Rope types with an original window among their parameters.
KINDS_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
# Other names of transformers' rope types: LongRoPE's first one, SGLang's for DeepSeek, and TeleChat3's.
_STANDARD_TYPE = {"su": "longrope", "deepseek_yarn": "yarn", "telechat3-yarn": "yarn"}
# Phi-3 was first published with LongRoPE under the name of YaRN; text has one position for all of Qwen2-VL's three.
_STANDARD_TYPE_OF_MODEL = {("phi3", "yarn"): "longrope", ("phi4_multimodal", "yarn"): "longrope"}
_STANDARD_TYPE_OF_MODEL |= {
    (model_type, "mrope"): "default" for model_type in ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")
}
# What takes the place of YaRN's 0.1 in TeleChat3's attention factor.
_TELECHAT_WEIGHT = 0.07
# Models whose flat configs transformers takes apart, and leaves what stands beside the entry out of the decoder's part.
_PASS_OVER_BESIDE = ("qwen2_vl", "qwen2_5_vl")
# Models whose config classes in transformers have an original window where the file names none beside the entry.
_ORIGINAL_LEFT_OUT = {"phi3": 4096, "phi4_multimodal": 4096}

# 4-era names that differ from rope_theta and partial_rotary_factor.
_THETA_NAME = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
_PARTIAL_NAME = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Models with an entry for each layer type whose 4-era rope_scaling is for the global layers alone, and what that era
# calls the base of the others.
_LOCAL_THETA_NAME = {
    "gemma3_text": "rope_local_base_freq",
    "gemma3n_text": "rope_local_base_freq",
    "olmo3": "rope_theta",
}
# Models whose 4-era code takes a rope_scaling of exactly these entries, and works out the rest from the two lengths.
_LEGACY_ENTRIES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor")
)

# Models whose layers take their base from layer_rope_theta, where one is written, and not from the entry.
_THETA_BY_LAYER = ("granite_swa", "granitemoe_swa")
# Published configs of these models may leave out the base or the rotated share, which then has this value. Of scaled
# ones only LLaMA's and Llama 2's, known by their vocabulary: where another lacks its base, it was lost.
_THETA_LEFT_OUT: dict[str, float] = dict.fromkeys(("llama", "mistral", "gpt_neox", "gptj", "codegen"), 10_000.0)
_PARTIAL_LEFT_OUT = {"gpt_neox": 0.25, "stablelm": 0.25, "phi": 0.5, "persimmon": 0.5, "glm": 0.5, "nemotron": 0.5}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model: the config itself, or its part in a model that also sees or hears."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def with_text_part(config: Mapping[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config with this language model in the place of its own."""
    return text if text_part(config) is config else {**copy.deepcopy(dict(config)), "text_config": text}


def standard_type(model_type: str, name: str) -> str:
    """transformers' name of a rope type."""
    return _STANDARD_TYPE_OF_MODEL.get((model_type, name)) or _STANDARD_TYPE.get(name, name)


def parameters_by_layer(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of each layer type, or None where all layers share them.

    Raises:
        UnsupportedModelError: when no layer type is known to see the whole context.
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
        # transformers passes over entries of today's form that are not by layer.
        theta = text.get(local_name, text.get("rope_theta", 10_000.0) if local_name == "rope_theta" else 10_000.0)
        by_layer = {LOCAL_LAYERS: {"rope_type": "default", "rope_theta": theta}}
        by_layer[GLOBAL_LAYERS] = {"rope_type": "default"} if old else {}
    else:
        return None
    by_layer[GLOBAL_LAYERS] = {**(by_layer.get(GLOBAL_LAYERS) or {}), **copy.deepcopy(dict(old))}
    return by_layer


def reads_by_layer_alone(text: Mapping[str, Any]) -> bool:
    """Whether `rope_parameters` are for all layers and the model's class passes over such, as Gemma 3's."""
    return _model_type(text) in _LOCAL_THETA_NAME and not _is_by_layer(text.get("rope_parameters") or {})


def global_entry(text: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the layers that see the whole context, as transformers 5 takes it, under its names.

    Returns:
        A new dict with `rope_type`; with the original window where the type has one; and with the attention factor of
        types that transformers does not know. Not with a base that is written elsewhere.

    Raises:
        UnsupportedModelError: as `parameters_by_layer`.
    """
    by_layer = parameters_by_layer(text)
    entry = copy.deepcopy(dict(_raw_entry(text, by_layer)))
    spelled = entry.pop("type", None)
    name = entry.get("rope_type") or spelled or "default"
    if not isinstance(name, str):
        raise UnsupportedModelError(f"rope type is {name!r}; write its name as text, such as 'yarn'")
    entry["rope_type"] = standard_type(_model_type(text), name)
    if name == "telechat3-yarn" and entry.get("attention_factor") is None and entry.get("factor"):
        entry["attention_factor"] = _TELECHAT_WEIGHT * math.log(entry["factor"]) + 1.0
    if entry["rope_type"] in KINDS_WITH_ORIGINAL:
        entry[ORIGINAL] = _original(text, entry, by_layer is not None)
    if "truncate" in entry:
        entry["truncate"] = bool(entry["truncate"])
    return entry


def with_global_entry(text: Mapping[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` in which the layers that see the whole context have this entry."""
    by_layer = parameters_by_layer(text)
    return entry if by_layer is None else by_layer | {GLOBAL_LAYERS: entry}


def unlike_types(text: Mapping[str, Any]) -> tuple[str, str] | None:
    """`rope_type` and `type` of one entry that name different things; transformers takes the first."""
    by_layer = parameters_by_layer(text)
    entry = (
        text.get("rope_scaling") or text.get("rope_parameters") or {} if by_layer is None else by_layer[GLOBAL_LAYERS]
    )
    today, old = entry.get("rope_type"), entry.get("type")
    if not today or not old or standard_type(_model_type(text), today) == standard_type(_model_type(text), old):
        return None
    return today, old


def global_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the layers that see the whole context, with `rope_type` and `rope_theta`, whatever the era.

    Raises:
        ConfigError: when the base is missing and a reader would fall back to one of its own.
        UnsupportedModelError: as `parameters_by_layer`.
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
    """Writes a config's rotary embedding for readers of both eras; transformers 5 leaves the older one out on saving.

    Args:
        config: the content of a `config.json` of either era, or of both.

    Returns:
        A new dict with `rope_parameters`; `rope_theta` and `rope_scaling` (null where nothing is scaled); and the share
        of rotated dimensions and the sliding layers' base where the model has them. `rope_scaling` also holds the base
        and the share, so that a reader who takes it in place of all parameters loses neither, and both spellings of
        the type.
    """
    text = text_part(config)
    written = copy.deepcopy(dict(text))
    model_type = _model_type(text)
    parameters = global_parameters(text)
    by_layer = parameters_by_layer(text)
    written.pop("rope_scaling", None)
    if written.get(ORIGINAL, 0) is None:
        del written[ORIGINAL]  # transformers would compute with it
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
        # Of other models with parameters by layer there is no 4-era code, and transformers 5 would scale every layer.
        written["rope_scaling"] = _legacy_scaling(text, parameters)
    return with_text_part(config, written)


def _legacy_scaling(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    if parameters["rope_type"] == "default" and "mrope_section" not in parameters:
        return None
    scaling = {"type": parameters["rope_type"], **copy.deepcopy(dict(parameters))}
    # With a factor of its own the short form would be another model; 4-era code refuses the long one.
    short = _LEGACY_ENTRIES.get(_model_type(text))
    stretch = text.get(maximum_name(text), 0) / (parameters.get(ORIGINAL) or 1)
    if short and "attention_factor" not in parameters and parameters.get("factor") in (None, stretch):
        scaling = {name: scaling[name] for name in short}
    return scaling


def unapplied(text: Mapping[str, Any]) -> list[str]:
    """Settings of long contexts in a config that transformers does not apply, a sentence each."""
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
    """Whether the original window is on record where transformers looks for it, and not only taken from the maximum."""
    by_layer = parameters_by_layer(text)
    return (_beside(text, by_layer is not None) or _raw_entry(text, by_layer).get(ORIGINAL)) is not None


def own_thetas(text: Mapping[str, Any]) -> set[float]:
    """Bases that layers have of their own; 0, a layer without positions, is none."""
    return {float(theta) for theta in text.get("layer_rope_theta") or () if theta}


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


def _is_by_layer(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in entry.values())


def _raw_entry(text: Mapping[str, Any], by_layer: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The global layers' entry as it is written."""
    return (
        (text.get("rope_scaling") or text.get("rope_parameters") or {}) if by_layer is None else by_layer[GLOBAL_LAYERS]
    )


def _beside(text: Mapping[str, Any], by_layer: bool) -> Any:
    """The original window beside the entry, where transformers takes it from there."""
    if by_layer or _model_type(text) in _PASS_OVER_BESIDE:
        return None
    return text.get(ORIGINAL, _ORIGINAL_LEFT_OUT.get(_model_type(text)))


def _original(text: Mapping[str, Any], entry: Mapping[str, Any], by_layer: bool) -> Any:
    """The original window that transformers computes with: of shared entries the one beside them comes first."""
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
        "may not have been trained with; add the base model's rope_theta (one without rotary positions has none)"
    )


def _model_type(text: Mapping[str, Any]) -> str:
    return text.get("model_type", "")

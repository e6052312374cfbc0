"""What a model's config says about its rotary embedding, and how an extension is written into it.

Configs are plain dicts: `config.to_dict()`, or the content of a `config.json` of either era.

    transformers 5   rope_parameters = {"rope_type", "rope_theta", "factor", ...}, or one such dict for each layer type
    transformers 4   rope_scaling = {"type" or "rope_type", "factor", ...} or null, with rope_theta beside it

What is written says the same in both ways, because transformers 5 prefers `rope_scaling` where it finds one, and because
serving engines still read it. Two entries of ours are added at the top level, where every reader keeps what it does not
know: `original_max_position_embeddings` (for the kinds whose own parameters have no place for it) and
`original_rope_theta`. With them an extended model is recognised as such, whatever its kind.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope.tables import INTERPOLATIONS, NTK, DynamicNTK, Interpolation, LongRoPE, RopeSpec, YaRN
from skipwise.window import Window

# `rope_type` in a config -> our kind. "su" is LongRoPE's first name.
_KIND_OF_TYPE = {"default": "none", "su": "longrope"} | {
    kind: kind for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")
}

# Layers that see the whole context. The others (sliding windows) never meet a long distance and keep their own base.
_GLOBAL_LAYERS = "full_attention"

# Names of 4-era configs that differ from rope_theta and partial_rotary_factor.
_THETA_NAME = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
_PARTIAL_NAME = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Models whose 4-era config has a second base for the sliding-window layers, and scales the global layers by rope_scaling.
_LOCAL_THETA_NAME = {"gemma3_text": "rope_local_base_freq", "gemma3n_text": "rope_local_base_freq"}

# Published configs of these models leave out a base or a rotated share, which then has this value.
_THETA_LEFT_OUT = dict.fromkeys(("llama", "mistral", "gpt_neox", "gptj", "codegen"), 10_000.0)
_PARTIAL_LEFT_OUT = {"gpt_neox": 0.25, "stablelm": 0.25, "phi": 0.5, "persimmon": 0.5, "glm": 0.5, "nemotron": 0.5}

# Models that accept only some kinds, because their code in transformers knows no others.
_KINDS_OF_MODEL = {
    "gptj": ("none",),
    "codegen": ("none",),
    "phi3": ("none", "ntk", "longrope"),
    "phi4_multimodal": ("none", "ntk", "longrope"),
}
# Their 4-era code accepts a rope_scaling of exactly these entries and works out the rest from the two lengths.
_LEGACY_ENTRIES_OF_MODEL = dict.fromkeys(("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeState:
    """What a config says about the rotary embedding of the layers that see the whole context.

    Attributes:
        kind: key of `INTERPOLATIONS`; "none" where nothing is scaled.
        rotary_dim: dimensions of a head that are rotated.
        theta: base of the model before any interpolation.
        original: window that the base model was pre-trained for, in tokens.
        maximum: `max_position_embeddings`, in tokens.
        factor: how many times the model is stretched already; 1.0 where it is not.
        parameters: the parameters as the config has them, those of the global layers.
        ambiguity: why the config cannot be extended further, with the cure; None where it can.
    """

    kind: str
    rotary_dim: int
    theta: float
    original: int
    maximum: int
    factor: float
    parameters: dict[str, Any]
    ambiguity: str | None

    @property
    def scaled(self) -> bool:
        """Whether an interpolation is in force."""
        return self.kind != "none"

    @property
    def spec(self) -> RopeSpec:
        """The rotary embedding of the base model."""
        return RopeSpec(rotary_dim=self.rotary_dim, theta=self.theta)

    @property
    def window(self) -> Window:
        """The window this config stands for; its training length is the original one."""
        return Window(train=self.original, original=self.original, target=self.maximum)

    @property
    def interpolation(self) -> Interpolation:
        """The interpolation that the config describes: `state.interpolation.table(state.spec, state.window)` is in use."""
        if self.kind == "ntk":
            return NTK(theta=self.parameters["rope_theta"])
        if self.kind == "dynamic":
            # Undoes the anchoring at the target, see DynamicNTK.
            alpha, exported = self.window.factor, self.parameters["factor"]
            return DynamicNTK(factor=max(1.0, exported / (alpha - exported * (alpha - 1))))
        interpolation_class: Any = INTERPOLATIONS[self.kind]
        names = [field.name for field in dataclasses.fields(interpolation_class)]
        return interpolation_class(
            **{name: self.parameters[name] for name in names if self.parameters.get(name) is not None}
        )


def read_rope(config: Mapping[str, Any]) -> RopeState:
    """Reads a config of either era.

    Args:
        config: the model's config as a dict; of a model with a text part (`text_config`), that part is read.

    Returns:
        What it says.

    Raises:
        ConfigError: when the base is missing, so that a reader would fall back to one the model was not trained with; or
            when a length is not a whole number.
        UnsupportedModelError: when the rotary embedding is of a type that is not known here.
    """
    text = _text_part(config)
    parameters = _global_parameters(text)
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type not in _KIND_OF_TYPE:
        raise UnsupportedModelError(
            f"rope type is {rope_type!r}; known are {', '.join(_KIND_OF_TYPE)}: this model's positions cannot be rescaled"
        )
    kind = _KIND_OF_TYPE[rope_type]
    current_theta = parameters["rope_theta"] = _current_theta(text, parameters, scaled=kind != "none")
    maximum = _whole_tokens(text, _maximum_name(text))
    recorded_theta = text.get("original_rope_theta")
    recorded_original = parameters.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
    if kind == "dynamic" and recorded_theta is None:
        recorded_original = None  # transformers anchors this kind at max_position_embeddings alone
    original = maximum if recorded_original is None else int(recorded_original)

    ambiguity = None
    theta = current_theta
    if kind in ("none", "dynamic") and recorded_theta is not None:
        theta = float(recorded_theta)
        if kind == "none" and theta != current_theta:
            kind = "ntk"
    elif kind == "none" and original < maximum:
        ambiguity = (
            f"the config says that the window grew from {original} to {maximum} tokens but not from which base: add "
            f'"original_rope_theta" to it, the rope_theta of the base model ({current_theta:g} if it never changed)'
        )
    elif kind == "linear" and recorded_original is None:
        ambiguity = (
            f"the config is scaled linearly by {parameters['factor']:g} and does not say from which window, so "
            f"max_position_embeddings={maximum} may be the base's or the extended one: add "
            '"original_max_position_embeddings" to it, the window that the base model was pre-trained for'
        )
    factor = 1.0
    if kind != "none":
        factor = (
            maximum / original if kind in ("ntk", "dynamic") else float(parameters.get("factor") or maximum / original)
        )
    return RopeState(
        kind=kind,
        rotary_dim=_rotary_dim(text, parameters),
        theta=theta,
        original=original,
        maximum=maximum,
        factor=factor,
        parameters=parameters,
        ambiguity=ambiguity,
    )


def target_window(config: Mapping[str, Any], *, train: int, target: int) -> Window:
    """The window of an extension of this model to `target`, its original length taken from the config; all in tokens."""
    return Window(train=train, original=read_rope(config).original, target=target)


def write_rope(config: Mapping[str, Any], interpolation: Interpolation, window: Window) -> dict[str, Any]:
    """Writes an extension into a config, for readers of both eras.

    `max_position_embeddings` becomes the target and the original window and base stay on record. Where parameters are
    kept for each layer type, only those of the global layers change.

    A model that is scaled already is never scaled on top of that:

    - The same kind is worked out anew from the base model's own window and base, so the factor is target / original.
      The target may be the current maximum: writing the same again changes nothing, and hyperparameters may differ.
    - Another kind is refused, "none" included: the weights have been trained with the one they have.
    - A factor on record that is not maximum / original (Llama 3.1: 8 for 16 times the window) cannot be worked out: the
      interpolation must then give its own, and the message says which.
    - A window whose original length is not the one on record, a smaller maximum and a smaller factor are refused.

    Args:
        config: the model's config as a dict, of either era.
        interpolation: what to write.
        window: the lengths; `window.original` is the base model's.

    Returns:
        A new config dict; the given one is left alone.

    Raises:
        ConfigError: as told above, when this kind of model cannot take this kind of interpolation, and as `read_rope`.
        UnsupportedModelError: as `read_rope`.
    """
    state = read_rope(config)
    text = _text_part(config)
    allowed = _KINDS_OF_MODEL.get(text.get("model_type", ""), tuple(INTERPOLATIONS))
    if interpolation.kind not in allowed:
        raise ConfigError(
            f"interpolation is {interpolation.kind!r}, but transformers' {text['model_type']} takes only "
            f"{', '.join(allowed)}: choose one of them"
        )
    parameters = interpolation.parameters(state.spec, window)
    _check_composition(state, interpolation, window, parameters)
    for name in ("partial_rotary_factor", "mrope_section"):
        if name in state.parameters:
            parameters[name] = state.parameters[name]

    written = copy.deepcopy(dict(text))
    by_layer = _parameters_by_layer(written)
    if by_layer is not None:
        if parameters.get("truncate") is False:
            raise ConfigError(
                "yarn truncate is False, but this model keeps parameters for each layer type, where transformers does not "
                "read it: leave truncate at True"
            )
        written["rope_parameters"] = by_layer | {_GLOBAL_LAYERS: parameters}
    else:
        written["rope_parameters"] = parameters
    written[_maximum_name(text)] = window.target
    written["original_max_position_embeddings"] = window.original
    written["original_rope_theta"] = state.theta
    written = with_legacy_keys(written)
    return {**copy.deepcopy(dict(config)), "text_config": written} if text is not config else written


def with_legacy_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what a 4-era reader looks for to a config that has `rope_parameters`; transformers 5 drops it when it saves.

    Args:
        config: the content of a `config.json` as transformers 5 writes it.

    Returns:
        A new dict with `rope_theta` and `rope_scaling` (null where nothing is scaled), and the share of rotated
        dimensions and the local layers' base where the model has them.
    """
    text = _text_part(config)
    written = copy.deepcopy(dict(text))
    model_type = text.get("model_type", "")
    parameters = _global_parameters(text)
    theta = _current_theta(text, parameters, scaled=False)
    parameters["rope_theta"] = theta

    written["rope_theta"] = theta
    if model_type in _THETA_NAME:
        written[_THETA_NAME[model_type]] = theta
    if "partial_rotary_factor" in parameters:
        written[_PARTIAL_NAME.get(model_type, "partial_rotary_factor")] = parameters["partial_rotary_factor"]

    rope_type = parameters.get("rope_type", "default")
    scaling = None
    if rope_type != "default":
        scaling = {"type": rope_type, **parameters}
        if model_type in _LEGACY_ENTRIES_OF_MODEL and "attention_factor" not in parameters:
            scaling = {name: scaling[name] for name in _LEGACY_ENTRIES_OF_MODEL[model_type]}
    by_layer = _parameters_by_layer(text)
    if by_layer is not None and model_type in _LOCAL_THETA_NAME:
        written[_LOCAL_THETA_NAME[model_type]] = by_layer["sliding_attention"]["rope_theta"]
    if by_layer is None or model_type in _LOCAL_THETA_NAME:
        # For other models with parameters by layer a rope_scaling would replace all of them, and no 4-era code knows them.
        written["rope_scaling"] = scaling
    return {**copy.deepcopy(dict(config)), "text_config": written} if text is not config else written


def _check_composition(
    state: RopeState, interpolation: Interpolation, window: Window, parameters: Mapping[str, Any]
) -> None:
    """Refuses what would scale a model twice, or by less than it is scaled already; see `write_rope`."""
    if state.ambiguity and (state.scaled or interpolation.kind != "none"):
        raise ConfigError(state.ambiguity)
    if window.original != state.original:
        raise ConfigError(
            f"window.original is {window.original} tokens, but the config says that the base model was pre-trained for "
            f"{state.original}: set the original window to {state.original}"
        )
    if window.target < state.maximum:
        raise ConfigError(
            f"target is {window.target} tokens, but the model handles {state.maximum} already: choose a target of at least that"
        )
    if not state.scaled:
        return
    if interpolation.kind != state.kind:
        raise ConfigError(
            f"interpolation is {interpolation.kind!r}, but the model is already scaled by {state.kind!r} from "
            f"{state.original} to {state.maximum} tokens: choose kind: {state.kind}, or start from the base model"
        )
    if isinstance(interpolation, YaRN):
        for name in ("mscale", "mscale_all_dim"):
            if (recorded := state.parameters.get(name)) != getattr(interpolation, name):
                raise ConfigError(
                    f"yarn {name} is {getattr(interpolation, name)}, but the model was scaled with {recorded}: set {name} to it"
                )
    if isinstance(interpolation, LongRoPE) and interpolation.long_factor is None:
        derived = LongRoPE(factor=interpolation.factor).parameters(state.spec, state.window)["long_factor"]
        recorded = state.parameters["long_factor"]
        if len(recorded) != len(derived) or not all(map(math.isclose, recorded, derived)):
            raise ConfigError(
                "the model has long_factor divisors that were searched for it, and none are given for the new target: give "
                "longrope a long_factor (and short_factor) list"
            )
    if "factor" in parameters and state.kind in ("linear", "yarn", "llama3"):
        _check_factor_grows(state, interpolation, window, parameters["factor"])
    if parameters["rope_theta"] < state.parameters["rope_theta"] * (1 - 1e-9):
        raise ConfigError(
            f"{state.kind} would lower the base from {state.parameters['rope_theta']:g} to {parameters['rope_theta']:g}: give "
            "ntk a theta above the present one"
        )


def _check_factor_grows(state: RopeState, interpolation: Any, window: Window, factor: float) -> None:
    nominal = state.maximum / state.original
    # A maximum that was never raised says nothing about the factor (Qwen's long-context switch).
    if interpolation.factor is None and nominal > 1 and not math.isclose(state.factor, nominal, rel_tol=1e-6):
        continued = state.factor * window.target / state.maximum
        raise ConfigError(
            f"the model is scaled by {state.factor:g} but handles {nominal:g} times its original window, so target / original "
            f"would not continue it: give {state.kind} the field factor, {continued:g} to keep the proportion"
        )
    if factor < state.factor * (1 - 1e-6):
        raise ConfigError(
            f"factor would be {factor:g}, but the model is already scaled by {state.factor:g}: choose a target of at least "
            f"{math.ceil(state.factor * state.original)} tokens"
        )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model within a model that also sees or hears."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _parameters_by_layer(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters of each layer type, None where all layers share them; a 4-era config with two bases is put in that form."""
    parameters = text.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in parameters.values()):
        if _GLOBAL_LAYERS not in parameters:
            raise UnsupportedModelError(
                f"the model keeps rope parameters for {', '.join(parameters)}; which of them see the whole context is not known"
            )
        return dict(parameters)
    local_name = _LOCAL_THETA_NAME.get(text.get("model_type", ""))
    if local_name is None:
        return None
    return {"sliding_attention": {"rope_type": "default", "rope_theta": text.get(local_name, 10_000.0)}}


def _global_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the global layers; where both eras are present, the older wins as it does in transformers 5."""
    by_layer = _parameters_by_layer(text)
    parameters = (text.get("rope_parameters") or {}) if by_layer is None else by_layer.get(_GLOBAL_LAYERS) or {}
    parameters = copy.deepcopy({**parameters, **(text.get("rope_scaling") or {})})
    if (partial := _partial_rotary_factor(text, parameters)) is not None:
        parameters["partial_rotary_factor"] = partial
    return parameters


def _partial_rotary_factor(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> float | None:
    model_type = text.get("model_type", "")
    sources = (parameters.get("partial_rotary_factor"), text.get("partial_rotary_factor"), text.get("rotary_pct"))
    return next((value for value in sources if value is not None), _PARTIAL_LEFT_OUT.get(model_type))


def _current_theta(text: Mapping[str, Any], parameters: Mapping[str, Any], *, scaled: bool) -> float:
    names = ("rope_theta", _THETA_NAME.get(text.get("model_type", ""), "rope_theta"))
    for source, name in ((parameters, "rope_theta"), *((text, name) for name in reversed(names))):
        if source.get(name) is not None:
            return float(source[name])
    model_type = text.get("model_type", "")
    if model_type in _THETA_LEFT_OUT and not scaled:
        return _THETA_LEFT_OUT[model_type]
    raise ConfigError(
        f"the config of this {model_type or 'model'} has no rope_theta, and a reader would fall back to one the model may not have "
        "been trained with: add the base model's rope_theta to config.json (a model without rotary positions cannot be extended)"
    )


def _rotary_dim(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Latent attention names it, GPT-J names it, all others rotate a share of the head."""
    for name in ("qk_rope_head_dim", "rotary_dim"):
        if text.get(name):
            return int(text[name])
    if not text.get("head_dim") and not (text.get("hidden_size") and text.get("num_attention_heads")):
        raise ConfigError(
            "the config has no head_dim, and no hidden_size and num_attention_heads: give the whole config"
        )
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def _maximum_name(text: Mapping[str, Any]) -> str:
    return "n_positions" if "n_positions" in text else "max_position_embeddings"


def _whole_tokens(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    if not isinstance(value, int | float) or value != int(value) or value < 2:
        raise ConfigError(
            f"config's {name} is {value!r}; it must be a whole number of tokens, 2 or more: correct config.json"
        )
    return int(value)

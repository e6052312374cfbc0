"""What a model's config says about its rotary embedding, and how an extension is written into it.

Configs are plain dicts: `config.to_dict()`, or the content of a `config.json` of either era (see `eras`). What is
written says the same in both ways. Three entries of ours stand at the top level, where readers keep what they do not
know: `original_max_position_embeddings` (several kinds have no place for it among their parameters) and
`original_rope_theta`, with which an extended model is recognised as such, whatever its kind; and, where an attention
factor was calibrated, `original_attention_factor`, the one that the model was trained with.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope import eras
from skipwise.rope.interpolations import (
    INTERPOLATIONS,
    NTK,
    DynamicNTK,
    Interpolation,
    Linear,
    Llama3,
    LongRoPE,
    YaRN,
)
from skipwise.rope.tables import RopeSpec
from skipwise.window import Window

# `rope_type` in a config -> key of INTERPOLATIONS.
_KIND_OF_TYPE = {"default": "none"} | {kind: kind for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")}
# What transformers refuses an entry without.
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}

# The fast pairs of a head turn and the others stand still (Gemma 4). With a factor it is scaled linearly; transformers
# has no other scaling of it, but the base is free.
_PROPORTIONAL = "proportional"
# Besides YaRN, whose factor always is how far the window was stretched; Llama 3.2's 32 is for 16 times the window.
_STRETCHED_BY_FACTOR = ("linear", "llama3", "longrope")
_PROPORTIONAL_KINDS = ("none", "linear", "ntk")

# Entries of `rope_parameters` that belong to an interpolation; all others are the model's own and stay.
_OWNED_ENTRIES = {"rope_type", "rope_theta", "original_max_position_embeddings"}
_OWNED_ENTRIES |= {"attn_factor", "short_mscale", "long_mscale"}
_OWNED_ENTRIES |= {field.name for kind in INTERPOLATIONS.values() for field in dataclasses.fields(cast(Any, kind))}

ATTENTION_FACTOR_KINDS = tuple(
    name
    for name, kind in INTERPOLATIONS.items()
    if "attention_factor" in {field.name for field in dataclasses.fields(cast(Any, kind))}
)
"""Keys of `INTERPOLATIONS` whose entry in a config has a place for an attention factor."""

_TRAINED_FACTOR = "original_attention_factor"

# Models whose code in transformers knows some kinds only; Phi-MoE's takes LongRoPE's short list at every length.
_KINDS_OF_MODEL = {
    "gptj": ("none",),
    "codegen": ("none",),
    "phi3": ("none", "ntk", "longrope"),
    "phi4_multimodal": ("none", "ntk", "longrope"),
    "phimoe": ("none", "ntk"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeState:
    """What a config says about the rotary embedding of the layers that see the whole context.

    Attributes:
        kind: key of `INTERPOLATIONS`; "none" where nothing is scaled.
        rotary_dim: dimensions of a head that are rotated.
        span_dim: dimensions that the frequencies are spread over, where these are more (`RopeSpec.span_dim`).
        theta: base of the model before any interpolation.
        original: window that the base model was pre-trained for, in tokens.
        maximum: longest input that the model handles, in tokens: `max_position_embeddings`, or more where the scaling
            goes further than that says.
        factor: how many times the model is stretched already; 1.0 where it is not.
        parameters: the parameters in today's form, with `rope_type` and `rope_theta`.
        ambiguity: why the config does not tell enough to be extended, with the cure; None where it does.
        trained_factor: the attention factor that the model was trained with, where another one was chosen for it
            afterwards (`with_attention_scale`); None where the one in force is it.
    """

    kind: str
    rotary_dim: int
    theta: float
    original: int
    maximum: int
    factor: float
    parameters: dict[str, Any]
    ambiguity: str | None
    trained_factor: float | None = None
    span_dim: int | None = None

    @property
    def scaled(self) -> bool:
        """Whether an interpolation is in force."""
        return self.kind != "none"

    @property
    def spec(self) -> RopeSpec:
        """The rotary embedding of the base model."""
        return RopeSpec(rotary_dim=self.rotary_dim, theta=self.theta, span_dim=self.span_dim)

    @property
    def window(self) -> Window:
        """The window that the config stands for; its training length is the original one."""
        return Window(train=self.original, original=self.original, target=self.maximum)

    @property
    def interpolation(self) -> Interpolation:
        """The interpolation in force, so that `interpolation.table(state.spec, state.window)` is the model's table."""
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

    @property
    def was_searched(self) -> bool:
        """Whether the model has LongRoPE's divisors from a search, and not those that are taken without one."""
        if self.kind != "longrope":
            return False
        taken = LongRoPE(factor=self.parameters.get("factor")).parameters(self.spec, self.window)["long_factor"]
        return not math.isclose(math.dist(taken, self.parameters["long_factor"]), 0, abs_tol=1e-6)

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied with, at the longest input."""
        return self.interpolation.table(self.spec, self.window).attention_factor

    @property
    def attention_scale(self) -> float:
        """The attention factor in force over the one that the model was trained with; 1.0 where it was not changed."""
        return 1.0 if self.trained_factor is None else self.attention_factor / self.trained_factor


def read_rope(config: Mapping[str, Any]) -> RopeState:
    """Reads a config of either era.

    Args:
        config: the model's config as a dict; of a model with a text part (`text_config`), that part is read.

    Returns:
        What it says.

    Raises:
        ConfigError: when the base is missing, so that a reader would fall back to one the model was not trained with;
            or when a length is not a whole number.
        UnsupportedModelError: when the rotary embedding is of a type that is not known here.
    """
    text = eras.text_part(config)
    parameters = eras.global_parameters(text)
    if eras.parameters_by_layer(text) is not None:
        parameters.pop("truncate", None)  # transformers looks for it beside the layers' entries alone
    kind = _kind(text.get("model_type", ""), parameters)
    written = _whole_tokens(text, eras.maximum_name(text))
    base_theta = text.get("original_rope_theta")
    if kind == "none" and base_theta is not None and base_theta != parameters["rope_theta"]:
        kind = "ntk"
    original = _original(text, kind, parameters, written)
    maximum = max(written, original)
    factor = 1.0
    if kind in ("ntk", "dynamic"):
        factor = maximum / original
    elif kind != "none":
        factor = float(parameters.get("factor") or maximum / original)
    is_known = kind != "linear" or _tells_linear_window(text, parameters, written)
    if kind == "yarn" or (kind in _STRETCHED_BY_FACTOR and written <= original and is_known):
        # The maximum was left at the original window, as Qwen tells its users to: what the model handles is more.
        maximum = max(maximum, round(factor * original))
    proportional = parameters["rope_type"] == _PROPORTIONAL
    return RopeState(
        kind=kind,
        rotary_dim=eras.rotary_dim(text, parameters),
        theta=float(base_theta) if kind in ("ntk", "dynamic") and base_theta else parameters["rope_theta"],
        original=original,
        maximum=maximum,
        factor=factor,
        parameters=parameters,
        ambiguity=_ambiguity(text, kind, parameters, original, written),
        trained_factor=text.get(_TRAINED_FACTOR),
        span_dim=eras.head_dim(text) if proportional else None,
    )


def _kind(model_type: str, parameters: Mapping[str, Any]) -> str:
    """Key of INTERPOLATIONS that an entry stands for.

    Raises:
        ConfigError: it lacks a parameter of its type.
        UnsupportedModelError: its type is not known, or means another thing in this model.
    """
    rope_type = parameters["rope_type"]
    if rope_type == _PROPORTIONAL:
        return "linear" if parameters.get("factor", 1.0) != 1.0 else "none"
    kind = _KIND_OF_TYPE.get(rope_type)
    if kind is None:
        raise UnsupportedModelError(
            f"rope type is {rope_type!r}, which cannot be extended; known are "
            f"{', '.join((*_KIND_OF_TYPE, _PROPORTIONAL))}"
        )
    if kind == "dynamic" and parameters.get("alpha") and model_type.startswith("hunyuan"):
        raise UnsupportedModelError(
            f"rope type is 'dynamic' with alpha {parameters['alpha']:g}, by which {model_type} raises its base, and "
            "which cannot be extended; start from a model without it"
        )
    absent = [name for name in _REQUIRED.get(kind, ()) if parameters.get(name) is None]
    if kind == "yarn" and "factor" in parameters:
        absent = []  # null is target / original there
    if absent:
        raise ConfigError(
            f"config's rope type is {rope_type!r} and its entry has no {' and no '.join(absent)}, without which "
            "transformers refuses it; add what the model was trained with"
        )
    return "none" if kind == "linear" and parameters["factor"] == 1 else kind


def _original(text: Mapping[str, Any], kind: str, parameters: Mapping[str, Any], maximum: int) -> int:
    """The window that the base model was pre-trained for, in tokens; the maximum where nothing else is on record."""
    if kind in eras.KINDS_WITH_ORIGINAL:
        return _whole_tokens(parameters, eras.ORIGINAL)
    recorded = parameters.get(eras.ORIGINAL) or text.get(eras.ORIGINAL)
    has_our_record = text.get("original_rope_theta") is not None
    if recorded is None or (kind == "dynamic" and not has_our_record):
        return maximum  # transformers anchors dynamic at max_position_embeddings, whatever else is written
    if kind == "none" and not has_our_record:
        return min(int(recorded), maximum)  # Phi-3's config class has an original length even where nobody set it
    return int(recorded)


def _tells_linear_window(text: Mapping[str, Any], parameters: Mapping[str, Any], maximum: int) -> bool:
    """Whether a config that is scaled linearly tells the window before from the one after.

    Gemma 3, DeepSeek-Coder and LLaMA-2-7B-32K have the window after scaling as their maximum; Vicuna's 16k models and
    LongChat have the one before, with `max_sequence_length` beside it.
    """
    recorded = parameters.get(eras.ORIGINAL) or text.get(eras.ORIGINAL)
    return bool(recorded) or text.get("max_sequence_length") == parameters["factor"] * maximum


def _ambiguity(
    text: Mapping[str, Any], kind: str, parameters: Mapping[str, Any], original: int, maximum: int
) -> str | None:
    """Why the config does not tell enough to be extended, with the cure."""
    if kind == "none" and text.get("original_rope_theta") is None and original < maximum:
        return (
            f"config says that the window grew from {original} to {maximum} tokens but not from which base; add "
            f'"original_rope_theta" to it, the base model\'s rope_theta ({parameters["rope_theta"]:g} if unchanged)'
        )
    if kind == "linear" and not _tells_linear_window(text, parameters, maximum):
        return (
            f"config is scaled linearly by {parameters['factor']:g} and does not say from which window: "
            f"max_position_embeddings={maximum} may be the base's or the extended one; give the run the setting "
            "original, the window that the base model was pre-trained for"
        )
    if unlike := eras.unlike_types(text):
        return (
            f"config's rope entry says rope_type {unlike[0]!r} and type {unlike[1]!r}, of which transformers takes the "
            "first; correct it, or have skipwise doctor --fix do so"
        )
    thetas = eras.own_thetas(text)
    if len(thetas) > 1 or not thetas <= {parameters["rope_theta"]}:
        return (
            f"config gives layers bases of their own, layer_rope_theta {sorted(thetas)}, which no interpolation here "
            "stretches one by one; extend a model whose layers share one base"
        )
    return None


def with_original(config: Mapping[str, Any], original: int) -> dict[str, Any]:
    """Puts on record which window the base model was pre-trained for, where its config does not tell.

    Qwen3's configs say 40960 where it was 32768 and 8192 were kept for the answer; a config that is scaled linearly
    says one length of two.

    Args:
        config: the model's config as a dict, of either era.
        original: that window, in tokens.

    Returns:
        A new config dict; the given one is left alone.

    Raises:
        ConfigError: the config computes with another one, or handles fewer tokens.
        UnsupportedModelError: as `read_rope`.
    """
    state, text = read_rope(config), eras.text_part(config)
    is_told = state.kind not in ("none", "linear") or text.get("original_rope_theta") is not None
    if is_told and original == state.original:
        return dict(config)
    if is_told:
        raise ConfigError(
            f"original is {original} tokens, but the model's config computes with {state.original}; leave original "
            "out, or correct the config"
        )
    if not 2 <= original <= state.maximum:
        raise ConfigError(
            f"original is {original} tokens, but the model's config has a maximum of {state.maximum}; give the window "
            "that it was pre-trained for, 2 or more and at most that"
        )
    recorded = dict(text) | {eras.ORIGINAL: original, "original_rope_theta": state.theta}
    return eras.with_text_part(config, recorded)


def target_window(config: Mapping[str, Any], *, train: int, target: int) -> Window:
    """The window of an extension of this model to `target`, its original length from the config; all in tokens."""
    return Window(train=train, original=read_rope(config).original, target=target)


def write_rope(config: Mapping[str, Any], interpolation: Interpolation, window: Window) -> dict[str, Any]:
    """Writes an extension into a config, for readers of both eras.

    `max_position_embeddings` becomes the target; the original window and base stay on record. Where parameters are kept
    for each layer type, only those of the global layers change. Entries that belong to no interpolation stay.

    A model that is scaled already is never scaled on top of that:

    - The same kind is worked out anew from the base model's own window and base, so the factor is target / original.
      The target may be the current maximum: writing the same again changes nothing, and hyperparameters may differ.
    - Another kind is refused, "none" included: the weights have been trained with the one they have.
    - A factor on record that is not maximum / original (Llama 3.1: 8 for 16 times the window) does not tell how to go
      on: the interpolation must then give its own factor, and the message says which keeps the proportion.
    - A window whose original length is not the one on record, a smaller maximum and a smaller factor are refused.
    - A calibrated attention factor (`with_attention_scale`) belongs to the window it was chosen for: what is written
      has the interpolation's own again.

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
    text = eras.text_part(config)
    state = read_rope(config)
    by_layer = eras.parameters_by_layer(text)
    if state.scaled and interpolation.kind != state.kind:
        raise ConfigError(
            f"interpolation is {interpolation.kind!r}, but the model is scaled by {state.kind!r} already, from "
            f"{state.original} to {state.maximum} tokens; choose kind: {state.kind}, as skipwise plan --write-config "
            "writes it, or start from the base model"
        )
    _check_model_takes(text, interpolation, state, by_layer=by_layer is not None)
    parameters = interpolation.parameters(state.spec, window)
    _check_lengths(state, interpolation, window)
    if state.scaled:
        _check_continues(state, interpolation, window, parameters)
    if state.span_dim is not None:
        parameters["rope_type"] = _PROPORTIONAL
    parameters |= {name: value for name, value in state.parameters.items() if name not in _OWNED_ENTRIES}
    if "original_max_position_embeddings" in state.parameters:
        # Where it stands there already, the model may compute with it whatever the kind (Ministral 3's attention).
        parameters.setdefault("original_max_position_embeddings", window.original)

    written = dict(text) | {
        "rope_parameters": eras.with_global_entry(text, parameters),
        eras.maximum_name(text): window.target,
        eras.ORIGINAL: window.original,
        "original_rope_theta": state.theta,
    }
    if thetas := text.get("layer_rope_theta"):
        # 0 is a layer without positions; these stand over the base of the entry.
        written["layer_rope_theta"] = [theta and parameters["rope_theta"] for theta in thetas]
    for replaced in ("rope_scaling", _TRAINED_FACTOR):
        written.pop(replaced, None)
    return eras.with_text_part(config, eras.with_both_eras(written))


def with_attention_scale(config: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Writes another attention factor into the config of a model that is trained already, for readers of both eras.

        attention_factor = scale * the one that the model was trained with

    However often it is written, `scale` counts from there: the trained factor stays on record beside the new one, and a
    scale of 1 brings it back. Attention logits grow by `scale` squared. Nothing else changes.

    Args:
        config: the model's config as a dict, of either era.
        scale: above 0.

    Returns:
        A new config dict; the given one is left alone.

    Raises:
        ConfigError: when the model's interpolation has no place for the factor in a config, and as `write_rope`.
        UnsupportedModelError: as `read_rope`.
    """
    state = read_rope(config)
    check_carries_factor(state.kind)
    if not 0 < scale < math.inf:
        raise ConfigError(f"attention scale is {scale}; give a number above 0, such as 1.1")
    trained = state.attention_factor if state.trained_factor is None else state.trained_factor
    # Both kinds that carry a factor have it as a field; where their own formula gives this one, none is written.
    formula: Any = dataclasses.replace(cast(Any, state.interpolation), attention_factor=None)
    wanted = scale * trained
    if not math.isclose(formula.table(state.spec, state.window).attention_factor, wanted, rel_tol=1e-12):
        formula = dataclasses.replace(formula, attention_factor=wanted)
    written = write_rope(config, formula, state.window)
    return eras.with_text_part(written, {**eras.text_part(written), _TRAINED_FACTOR: trained})


def check_carries_factor(kind: str) -> None:
    """Raises ConfigError unless configs of this interpolation have a place for an attention factor."""
    if kind not in ATTENTION_FACTOR_KINDS:
        raise ConfigError(
            f"interpolation is {kind!r}, whose entry in a config has no place for an attention factor, so none can be "
            f"calibrated; these carry it: {', '.join(ATTENTION_FACTOR_KINDS)}"
        )


def _check_model_takes(
    text: Mapping[str, Any], interpolation: Interpolation, state: RopeState, *, by_layer: bool
) -> None:
    model_type = text.get("model_type", "")
    allowed, what = _KINDS_OF_MODEL.get(model_type, tuple(INTERPOLATIONS)), model_type
    if state.span_dim is not None:
        allowed, what = _PROPORTIONAL_KINDS, "rope type proportional"
    if interpolation.kind in INTERPOLATIONS and interpolation.kind not in allowed:
        raise ConfigError(
            f"interpolation is {interpolation.kind!r}, but {what} in transformers takes only "
            f"{', '.join(allowed)}; choose one of these"
        )
    if by_layer and isinstance(interpolation, YaRN) and not interpolation.truncate:
        raise ConfigError(
            "yarn truncate is False, which transformers does not read in models that keep parameters for each layer "
            "type; leave it at True"
        )


def _check_lengths(state: RopeState, interpolation: Interpolation, window: Window) -> None:
    if state.ambiguity and (state.scaled or interpolation.kind != "none"):
        raise ConfigError(state.ambiguity)
    if window.original != state.original:
        raise ConfigError(
            f"window.original is {window.original} tokens, but by its config the base model was pre-trained for "
            f"{state.original}; set the original window to {state.original}"
        )
    if window.target < state.maximum:
        raise ConfigError(
            f"target is {window.target} tokens, but the model handles {state.maximum} already; choose a longer target"
        )


def _check_continues(
    state: RopeState, interpolation: Interpolation, window: Window, parameters: Mapping[str, Any]
) -> None:
    """Refuses to extend a scaled model by another share of the same; see `write_rope`."""
    if isinstance(interpolation, YaRN):
        for name in ("mscale", "mscale_all_dim"):
            if (recorded := state.parameters.get(name)) != getattr(interpolation, name):
                raise ConfigError(
                    f"yarn {name} is {getattr(interpolation, name)}, but the model is scaled with {recorded}; give "
                    f"yarn the field {name}: {recorded}"
                )
    if isinstance(interpolation, LongRoPE) and interpolation.long_factor is None and state.was_searched:
        raise ConfigError(
            "longrope long_factor is left out, but the model has divisors that were searched for it; give longrope "
            "long_factor and short_factor lists for the new target, such as those that skipwise plan --write-config "
            "makes of the model's own"
        )
    if isinstance(interpolation, Linear | Llama3 | YaRN):
        _check_factor_grows(state, interpolation, window, parameters["factor"])
    if parameters["rope_theta"] < state.parameters["rope_theta"] * (1 - 1e-9):
        raise ConfigError(
            f"{state.kind} would lower the base from {state.parameters['rope_theta']:g} to "
            f"{parameters['rope_theta']:g}; give ntk a theta above the present one"
        )


def _check_factor_grows(state: RopeState, interpolation: Linear | Llama3 | YaRN, window: Window, factor: float) -> None:
    nominal = state.maximum / state.original
    # A maximum that was never raised contradicts nothing: it is how long-context switches are documented.
    if interpolation.factor is None and nominal > 1 and not math.isclose(state.factor, nominal, rel_tol=1e-6):
        continued = state.factor * window.target / state.maximum
        raise ConfigError(
            f"model is scaled by {state.factor:g} for {nominal:g} times its original window, so target / original does "
            f"not continue it; give {state.kind} factor: {continued:g} to keep the ratio"
        )
    if factor < state.factor * (1 - 1e-6):
        raise ConfigError(
            f"factor would be {factor:g}, but the model is scaled by {state.factor:g} already; choose a target of "
            f"at least {math.ceil(state.factor * state.original)} tokens"
        )


def _whole_tokens(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    if not isinstance(value, int | float) or value != int(value) or value < 2:
        raise ConfigError(f"config's {name} is {value!r}; it must be a whole number of tokens, 2 or more: correct it")
    return int(value)

"""Reads the rotary embedding of a model's config. All other modules use this reader.

Configs are plain dicts: `config.to_dict()`, or the content of a `config.json` of either era (see `eras`).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope import eras
from skipwise.rope.interpolations import INTERPOLATIONS, NTK, DynamicNTK, Interpolation, LongRoPE
from skipwise.rope.tables import RopeSpec
from skipwise.window import Window

# `rope_type` in a config -> key of INTERPOLATIONS.
_KIND_OF_TYPE = {"default": "none"} | {kind: kind for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")}
# Fields that transformers requires, by kind.
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
# Only the fast pairs of a head are rotated (Gemma 4). A factor scales it linearly, the only scaling that transformers
# has for it; the base may change freely.
PROPORTIONAL = "proportional"
# Kinds whose factor tells the stretch of the window if the maximum does not. YaRN's factor always does. Llama 3.2 has
# factor 32 for 16 times the window.
_STRETCHED_BY_FACTOR = ("linear", "llama3", "longrope")
TRAINED_FACTOR = "original_attention_factor"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeState:
    """The rotary embedding of the global-attention layers, as read from a config.

    Attributes:
        kind: key of `INTERPOLATIONS`; "none" if unscaled.
        rotary_dim: dimensions of a head that are rotated.
        theta: base of the model before any interpolation.
        original: window that the base model was pre-trained for, in tokens.
        maximum: longest input that the model handles, in tokens: `max_position_embeddings`, or more if the scaling
            reaches further.
        factor: scaling factor already in force; 1.0 if unscaled.
        parameters: the parameters in the transformers 5 form, with `rope_type` and `rope_theta`.
        ambiguity: why the config lacks information needed to extend the model, and what to do; None if it is complete.
        trained_factor: the attention factor that the model was trained with, if another one was chosen afterwards
            (`with_attention_scale`); None if the one in force is the trained one.
        span_dim: dimensions over which the frequencies are spread, if more than `rotary_dim` (`RopeSpec.span_dim`).
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
        """The window of the config, from original to maximum; its training length is the original length."""
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
        """Whether the model has searched LongRoPE divisors, rather than the default ones of `LongRoPE`."""
        if self.kind != "longrope":
            return False
        taken = LongRoPE(factor=self.parameters.get("factor")).parameters(self.spec, self.window)["long_factor"]
        return not math.isclose(math.dist(taken, self.parameters["long_factor"]), 0, abs_tol=1e-6)

    @property
    def attention_factor(self) -> float:
        """Factor on cos and sin at the longest input."""
        return self.interpolation.table(self.spec, self.window).attention_factor

    @property
    def attention_scale(self) -> float:
        """The attention factor in force divided by the trained one; 1.0 if it was not changed."""
        return 1.0 if self.trained_factor is None else self.attention_factor / self.trained_factor


def read_rope(config: Mapping[str, Any]) -> RopeState:
    """Reads the rotary embedding from a config of either era.

    Args:
        config: the model's config as a dict; if it has a `text_config`, that part is read.

    Raises:
        ConfigError: the base is missing, so that readers would fall back to one the model was not trained with; a
            required parameter is missing; or a length is not a whole number.
        UnsupportedModelError: the rope type is unknown.
    """
    text = eras.text_part(config)
    parameters = eras.global_parameters(text)
    if eras.parameters_by_layer(text) is not None:
        parameters.pop("truncate", None)  # transformers does not read it inside the entry of a layer type
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
        # The maximum was left at the original window, as Qwen's documentation tells users to do.
        maximum = max(maximum, round(factor * original))
    proportional = parameters["rope_type"] == PROPORTIONAL
    return RopeState(
        kind=kind,
        rotary_dim=eras.rotary_dim(text, parameters),
        theta=float(base_theta) if kind in ("ntk", "dynamic") and base_theta else parameters["rope_theta"],
        original=original,
        maximum=maximum,
        factor=factor,
        parameters=parameters,
        ambiguity=_ambiguity(text, kind, parameters, original, written),
        trained_factor=text.get(TRAINED_FACTOR),
        span_dim=eras.head_dim(text) if proportional else None,
    )


def _kind(model_type: str, parameters: Mapping[str, Any]) -> str:
    """Key of INTERPOLATIONS for an entry.

    Raises:
        ConfigError: the entry lacks a parameter that its type requires.
        UnsupportedModelError: the type is unknown, or means something else in this model.
    """
    rope_type = parameters["rope_type"]
    if rope_type == PROPORTIONAL:
        return "linear" if parameters.get("factor", 1.0) != 1.0 else "none"
    kind = _KIND_OF_TYPE.get(rope_type)
    if kind is None:
        raise UnsupportedModelError(
            f"rope type is {rope_type!r}, which cannot be extended; known are "
            f"{', '.join((*_KIND_OF_TYPE, PROPORTIONAL))}"
        )
    if kind == "dynamic" and parameters.get("alpha") and model_type.startswith("hunyuan"):
        raise UnsupportedModelError(
            f"rope type is 'dynamic' with alpha {parameters['alpha']:g}, which raises the base of {model_type} "
            "and cannot be extended; start from a model without it"
        )
    absent = [name for name in _REQUIRED.get(kind, ()) if parameters.get(name) is None]
    if kind == "yarn" and "factor" in parameters:
        absent = []  # for yarn, a null factor means target / original
    if absent:
        raise ConfigError(
            f"config's rope type is {rope_type!r} and its entry has no {' and no '.join(absent)}, which "
            "transformers requires; add the value that the model was trained with",
            page="unclear-config",
        )
    return "none" if kind == "linear" and parameters["factor"] == 1 else kind


def _original(text: Mapping[str, Any], kind: str, parameters: Mapping[str, Any], maximum: int) -> int:
    """The window that the base model was pre-trained for, in tokens; the maximum if nothing else is recorded."""
    if kind in eras.KINDS_WITH_ORIGINAL:
        return _whole_tokens(parameters, eras.ORIGINAL)
    recorded = parameters.get(eras.ORIGINAL) or text.get(eras.ORIGINAL)
    has_our_record = text.get("original_rope_theta") is not None
    if recorded is None or (kind == "dynamic" and not has_our_record):
        return maximum  # transformers anchors dynamic at max_position_embeddings, whatever else the config says
    if kind == "none" and not has_our_record:
        return min(int(recorded), maximum)  # Phi-3's config class always has an original length
    return int(recorded)


def _tells_linear_window(text: Mapping[str, Any], parameters: Mapping[str, Any], maximum: int) -> bool:
    """Whether a linearly scaled config tells whether its maximum is the window before or after scaling.

    In Gemma 3, DeepSeek-Coder and LLaMA-2-7B-32K the maximum is the window after scaling. In Vicuna's 16k models and
    LongChat it is the window before, and `max_sequence_length` is the one after.
    """
    recorded = parameters.get(eras.ORIGINAL) or text.get(eras.ORIGINAL)
    return bool(recorded) or text.get("max_sequence_length") == parameters["factor"] * maximum


def _ambiguity(
    text: Mapping[str, Any], kind: str, parameters: Mapping[str, Any], original: int, maximum: int
) -> str | None:
    """Why the config lacks information needed to extend the model, and what to do; None if it is complete."""
    if kind == "none" and text.get("original_rope_theta") is None and original < maximum:
        return (
            f"config says that the window grew from {original} to {maximum} tokens but not from which base; add "
            f'"original_rope_theta" to it, the base model\'s rope_theta ({parameters["rope_theta"]:g} if unchanged)'
        )
    if kind == "linear" and not _tells_linear_window(text, parameters, maximum):
        return (
            f"config is scaled linearly by {parameters['factor']:g} and does not say from which window: "
            f"max_position_embeddings={maximum} may be the original or the extended window; give the run the setting "
            "original, the window that the base model was pre-trained for"
        )
    if unlike := eras.unlike_types(text):
        return (
            f"config's rope entry says rope_type {unlike[0]!r} and type {unlike[1]!r}, and transformers uses the "
            "first; correct it, or have skipwise doctor --fix do so"
        )
    thetas = eras.own_thetas(text)
    if len(thetas) > 1 or not thetas <= {parameters["rope_theta"]}:
        return (
            f"config gives layers different bases (layer_rope_theta {sorted(thetas)}), which no interpolation here "
            "can extend; choose a model whose layers share one base"
        )
    return None


def _whole_tokens(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    if not isinstance(value, int | float) or value != int(value) or value < 2:
        raise ConfigError(
            f"config's {name} is {value!r}; it must be a whole number of tokens, 2 or more: correct it",
            page="unclear-config",
        )
    return int(value)

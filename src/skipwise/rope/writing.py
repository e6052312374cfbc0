"""Writes an extension into a model's config, and extends models further that are extended already.

The written config means the same to readers of both eras. It has three fields of ours at the top level, where readers
keep unknown fields:

    original_max_position_embeddings   the original window; several kinds have no parameter for it
    original_rope_theta                the base before any interpolation; marks a model as extended, whatever the kind
    original_attention_factor          the trained attention factor, if another one was calibrated
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

from skipwise.errors import ConfigError
from skipwise.rope import eras
from skipwise.rope.interpolations import INTERPOLATIONS, Interpolation, Linear, Llama3, LongRoPE, YaRN
from skipwise.rope.reading import PROPORTIONAL, TRAINED_FACTOR, RopeState, read_rope
from skipwise.window import Window

_PROPORTIONAL_KINDS = ("none", "linear", "ntk")

# Fields of `rope_parameters` that belong to an interpolation; all others are the model's own and are kept.
_OWNED_ENTRIES = {"rope_type", "rope_theta", "original_max_position_embeddings"}
_OWNED_ENTRIES |= {"attn_factor", "short_mscale", "long_mscale"}
_OWNED_ENTRIES |= {field.name for kind in INTERPOLATIONS.values() for field in dataclasses.fields(cast(Any, kind))}

ATTENTION_FACTOR_KINDS = tuple(
    name
    for name, kind in INTERPOLATIONS.items()
    if "attention_factor" in {field.name for field in dataclasses.fields(cast(Any, kind))}
)
"""Keys of `INTERPOLATIONS` whose entry in a config can carry an attention factor."""

# Models whose code in transformers supports only some kinds. Phi-MoE's uses LongRoPE's short list at every length.
_KINDS_OF_MODEL = {
    "gptj": ("none",),
    "codegen": ("none",),
    "phi3": ("none", "ntk", "longrope"),
    "phi4_multimodal": ("none", "ntk", "longrope"),
    "phimoe": ("none", "ntk"),
}


def with_original(config: Mapping[str, Any], original: int) -> dict[str, Any]:
    """Records the window that the base model was pre-trained for, if its config does not say.

    Qwen3's configs say 40960: 32768 tokens of context and 8192 for the answer. A linearly scaled config gives only one
    of the two lengths.

    Args:
        config: the model's config as a dict, of either era.
        original: the original window, in tokens.

    Returns:
        A new config dict; the given one is not changed.

    Raises:
        ConfigError: the config computes with another original window, or has a smaller maximum; or as `read_rope`.
        UnsupportedModelError: as `read_rope`.
    """
    state, text = read_rope(config), eras.text_part(config)
    is_told = state.kind not in ("none", "linear") or text.get("original_rope_theta") is not None
    if is_told and original == state.original:
        return dict(config)
    if is_told:
        raise ConfigError(
            f"original is {original} tokens, but the model's config computes with {state.original}; leave original "
            "out, or correct the config",
            page="unclear-config",
        )
    if not 2 <= original <= state.maximum:
        raise ConfigError(
            f"original is {original} tokens, but the model's config has a maximum of {state.maximum}; give the window "
            "that it was pre-trained for, from 2 to this maximum",
            page="unclear-config",
        )
    recorded = dict(text) | {eras.ORIGINAL: original, "original_rope_theta": state.theta}
    return eras.with_text_part(config, recorded)


def write_rope(config: Mapping[str, Any], interpolation: Interpolation, window: Window) -> dict[str, Any]:
    """Writes an extension into a config, for readers of both eras.

    `max_position_embeddings` becomes the target; the original window and base are recorded. If the config has
    parameters by layer type, only those of the global layers change. Fields that belong to no interpolation are kept.

    An existing scaling is replaced, never compounded:

    - The same kind is computed anew from the base model's window and base, so the factor is target / original. The
      target may be the current maximum: writing the same extension again changes nothing, and hyperparameters may
      differ.
    - Another kind, including "none", is refused: the weights were trained with the present one.
    - If the recorded factor is not maximum / original (Llama 3.1: 8 for 16 times the window), the new factor cannot be
      derived. The interpolation must then give one; the error names the factor that keeps the ratio.
    - A different original window, a smaller maximum and a smaller factor are refused.
    - A calibrated attention factor (`with_attention_scale`) holds only for the window it was chosen for. The written
      config has the interpolation's own again.

    Args:
        config: the model's config as a dict, of either era.
        interpolation: the interpolation to write.
        window: the lengths; `window.original` is the base model's.

    Returns:
        A new config dict; the given one is not changed.

    Raises:
        ConfigError: in the cases above; if the model does not support the interpolation; or as `read_rope`.
        UnsupportedModelError: as `read_rope`.
    """
    text = eras.text_part(config)
    state = read_rope(config)
    by_layer = eras.parameters_by_layer(text)
    if state.scaled and interpolation.kind != state.kind:
        raise ConfigError(
            f"interpolation is {interpolation.kind!r}, but the model is scaled by {state.kind!r} already, from "
            f"{state.original} to {state.maximum} tokens; choose kind: {state.kind}, as skipwise plan --write-config "
            "writes it, or start from the base model",
            page="already-scaled",
        )
    _check_model_takes(text, interpolation, state, by_layer=by_layer is not None)
    parameters = interpolation.parameters(state.spec, window)
    _check_lengths(state, interpolation, window)
    if state.scaled:
        _check_continues(state, interpolation, window, parameters)
    if state.span_dim is not None:
        parameters["rope_type"] = PROPORTIONAL
    parameters |= {name: value for name, value in state.parameters.items() if name not in _OWNED_ENTRIES}
    if "original_max_position_embeddings" in state.parameters:
        # If the entry has it already, the model may compute with it whatever the kind (Ministral 3's attention).
        parameters.setdefault("original_max_position_embeddings", window.original)

    written = dict(text) | {
        "rope_parameters": eras.with_global_entry(text, parameters),
        eras.maximum_name(text): window.target,
        eras.ORIGINAL: window.original,
        "original_rope_theta": state.theta,
    }
    if thetas := text.get("layer_rope_theta"):
        # These take precedence over the base of the entry; 0 is a layer without positions.
        written["layer_rope_theta"] = [theta and parameters["rope_theta"] for theta in thetas]
    for replaced in ("rope_scaling", TRAINED_FACTOR):
        written.pop(replaced, None)
    return eras.with_text_part(config, eras.with_both_eras(written))


def with_attention_scale(config: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Writes another attention factor into the config of a trained model, for readers of both eras.

        attention_factor = scale * trained attention factor

    The trained factor is recorded beside the new one, so `scale` is always relative to it, however often this is
    called; a scale of 1 restores it. Attention logits grow by `scale` squared. Nothing else changes.

    Args:
        config: the model's config as a dict, of either era.
        scale: above 0.

    Returns:
        A new config dict; the given one is not changed.

    Raises:
        ConfigError: the model's interpolation cannot carry the factor in a config; or as `write_rope`.
        UnsupportedModelError: as `read_rope`.
    """
    state = read_rope(config)
    check_carries_factor(state.kind)
    if not 0 < scale < math.inf:
        raise ConfigError(f"attention scale is {scale}; give a number above 0, such as 1.1")
    trained = state.attention_factor if state.trained_factor is None else state.trained_factor
    # Both kinds that carry the factor have it as a field. It is not written if the formula gives the same value.
    formula: Any = dataclasses.replace(cast(Any, state.interpolation), attention_factor=None)
    wanted = scale * trained
    if not math.isclose(formula.table(state.spec, state.window).attention_factor, wanted, rel_tol=1e-12):
        formula = dataclasses.replace(formula, attention_factor=wanted)
    written = write_rope(config, formula, state.window)
    return eras.with_text_part(written, {**eras.text_part(written), TRAINED_FACTOR: trained})


def check_carries_factor(kind: str) -> None:
    """Raises ConfigError unless configs of this interpolation can carry an attention factor."""
    if kind not in ATTENTION_FACTOR_KINDS:
        raise ConfigError(
            f"interpolation is {kind!r}, whose entry in a config has no place for an attention factor, so none can be "
            f"calibrated; these carry it: {', '.join(ATTENTION_FACTOR_KINDS)}",
            page="engine-cannot-compute",
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
            f"{', '.join(allowed)}; choose one of these",
            page="engine-cannot-compute",
        )
    if by_layer and isinstance(interpolation, YaRN) and not interpolation.truncate:
        raise ConfigError(
            "yarn truncate is False, which transformers does not read in models that keep parameters for each layer "
            "type; leave it at True",
            page="engine-cannot-compute",
        )


def _check_lengths(state: RopeState, interpolation: Interpolation, window: Window) -> None:
    if state.ambiguity and (state.scaled or interpolation.kind != "none"):
        raise ConfigError(state.ambiguity, page="unclear-config")
    if window.original != state.original:
        raise ConfigError(
            f"window.original is {window.original} tokens, but by its config the base model was pre-trained for "
            f"{state.original}; set the original window to {state.original}",
            page="unclear-config",
        )
    if window.target < state.maximum:
        raise ConfigError(
            f"target is {window.target} tokens, but the model handles {state.maximum} already; choose a longer target",
            page="target-not-longer",
        )


def _check_continues(
    state: RopeState, interpolation: Interpolation, window: Window, parameters: Mapping[str, Any]
) -> None:
    """Refuses an extension that does not continue the present scaling; see `write_rope`."""
    if isinstance(interpolation, YaRN):
        for name in ("mscale", "mscale_all_dim"):
            if (recorded := state.parameters.get(name)) != getattr(interpolation, name):
                raise ConfigError(
                    f"yarn {name} is {getattr(interpolation, name)}, but the model is scaled with {recorded}; give "
                    f"yarn the field {name}: {recorded}",
                    page="already-scaled",
                )
    if isinstance(interpolation, LongRoPE) and interpolation.long_factor is None and state.was_searched:
        raise ConfigError(
            "longrope long_factor is left out, but the model has divisors that were searched for it; give longrope "
            "long_factor and short_factor lists for the new target, such as those that skipwise plan --write-config "
            "makes of the model's own",
            page="already-scaled",
        )
    if isinstance(interpolation, Linear | Llama3 | YaRN):
        _check_factor_grows(state, interpolation, window, parameters["factor"])
    if parameters["rope_theta"] < state.parameters["rope_theta"] * (1 - 1e-9):
        raise ConfigError(
            f"{state.kind} would lower the base from {state.parameters['rope_theta']:g} to "
            f"{parameters['rope_theta']:g}; give ntk a theta above the present one",
            page="already-scaled",
        )


def _check_factor_grows(state: RopeState, interpolation: Linear | Llama3 | YaRN, window: Window, factor: float) -> None:
    nominal = state.maximum / state.original
    # A maximum left at the original window is no contradiction: model cards document long context this way.
    if interpolation.factor is None and nominal > 1 and not math.isclose(state.factor, nominal, rel_tol=1e-6):
        continued = state.factor * window.target / state.maximum
        raise ConfigError(
            f"model is scaled by {state.factor:g} for {nominal:g} times its original window, so target / original does "
            f"not continue it; give {state.kind} factor: {continued:g} to keep the ratio",
            page="already-scaled",
        )
    if factor < state.factor * (1 - 1e-6):
        raise ConfigError(
            f"factor would be {factor:g}, but the model is scaled by {state.factor:g} already; choose a target of "
            f"at least {math.ceil(state.factor * state.original)} tokens",
            page="target-not-longer",
        )

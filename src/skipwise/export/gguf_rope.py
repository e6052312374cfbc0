"""Write rotary embeddings to GGUF files, and compute the tables that llama.cpp uses.

llama.cpp rotates pair `j` at a position by `position * inv_freq_j`, and multiplies cos and sin by a factor:

    base_j      = freq_base ^ (-2j / d) / rope_freqs_j           rope_freqs: the tensor if there is one, else 1
    inv_freq_j  = base_j / scale                                 kinds `linear` and none (scale 1)
                = base_j * (m_j + (1 - m_j) / scale)             `yarn`; m_j falls over the pairs between beta 32 and 1
    factor      = attn_factor * (0.1 ln(scale) + 1 if yarn else 1)

`attn_factor` is the entry `<family>.rope.scaling.attn_factor`. Only this entry can hold a calibrated factor:
`yarn_attn_factor`, which converters write, is not read for these families, and with yarn the flag `--yarn-attn-factor`
is overwritten. The betas are fixed. llama.cpp reads tensors of divisors only for the Llama architecture, which can
therefore hold any table.

Source: llama.cpp as in llama-cpp-python 0.3.36: src/llama-context.cpp and src/llama-model.cpp (composition of the
factor: the context's yarn factor cancels with the kernel's, which leaves `attn_factor`), ggml/src/ggml-cpu/ops.cpp
(`rope_yarn`), ggml/src/ggml.c (`ggml_rope_yarn_corr_dims`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipwise.errors import ConfigError, UnsupportedModelError
from skipwise.rope import RopeSpec, RopeState, RopeTable
from skipwise.rope.tables import deviation, unscaled_frequencies

_BETA_FAST, _BETA_SLOW = 32.0, 1.0
_CLOSE = 1e-6
# Names of tensors: divisors for every length, and LongRoPE's two lists.
DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufRope:
    """A rotary embedding in GGUF's form.

    Attributes:
        entries: metadata by key without the architecture, such as `rope.freq_base`.
        tensors: divisors of the frequencies, float32 (rotary_dim / 2,), by tensor name.
        note: how llama.cpp differs from transformers, in a sentence; None if it does not.
    """

    entries: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str | None = None


def to_gguf(state: RopeState, *, has_divisors: bool, local_layers: bool) -> GgufRope:
    """Translates a model's rotary embedding so that llama.cpp computes the same tables.

    Args:
        state: rotary settings of the model.
        has_divisors: whether llama.cpp reads tensors of divisors for this architecture (only Llama's).
        local_layers: whether some layers have their own rotary embedding, to which llama.cpp would also apply the
            attention factor.

    Raises:
        ConfigError: llama.cpp cannot compute the tables. The message names the nearest alternative.
    """
    parameters, table = state.parameters, state.interpolation.table(state.spec, state.window)
    base = {"rope.freq_base": float(parameters["rope_theta"]), "rope.scaling.original_context_length": state.original}
    if state.kind == "dynamic":
        raise ConfigError(
            f"rope type is 'dynamic', but llama.cpp has no base that depends on the length; up to {state.maximum} "
            "tokens a fixed base gives the same table: in a copy of the checkpoint, write rope_type 'default' with "
            f"rope_theta {parameters['rope_theta']:.10g} into rope_parameters and rope_scaling null, and export that",
            page="engine-cannot-compute",
        )
    if state.kind in ("none", "ntk"):
        return GgufRope(entries={**base, "rope.scaling.type": "none"})
    if state.kind == "linear":
        return GgufRope(entries={**base, "rope.scaling.type": "linear", "rope.scaling.factor": float(state.factor)})
    if state.kind == "yarn":
        over = table.attention_factor / _yarn_factor(state.factor)
        entries = {**base, "rope.scaling.type": "yarn", "rope.scaling.factor": float(state.factor)}
        if not math.isclose(over, 1.0, rel_tol=_CLOSE):
            entries["rope.scaling.attn_factor"] = over
        fits = not (local_layers and "rope.scaling.attn_factor" in entries)
        if fits and deviation(llama_cpp_table(entries, {}, state.rotary_dim), table) <= _CLOSE:
            return GgufRope(entries=entries)
    if not has_divisors:
        raise ConfigError(_refusal(state, local_layers), page="engine-cannot-compute")
    entries = base | {"rope.scaling.type": "none"}
    if not math.isclose(table.attention_factor, 1.0, rel_tol=_CLOSE):
        entries["rope.scaling.attn_factor"] = table.attention_factor
    if state.kind != "longrope":
        divisors = unscaled_frequencies(_spec(entries, state.rotary_dim)) / table.inv_freq
        return GgufRope(entries=entries, tensors={DIVISORS: divisors.astype(np.float32)})
    lists = {LONG: parameters["long_factor"], SHORT: parameters["short_factor"]}
    return GgufRope(
        entries=entries | {"rope.scaling.type": "longrope"},
        tensors={name: np.array(values, dtype=np.float32) for name, values in lists.items()},
        note=f"llama.cpp uses LongRoPE's long list for every text if its context is above {state.original} tokens, "
        "transformers only for texts above that length: serve short texts with a smaller context",
    )


def llama_cpp_table(
    entries: Mapping[str, Any], tensors: Mapping[str, np.ndarray], rotary_dim: int, context: int = 0
) -> RopeTable:
    """The table that llama.cpp computes from a file, by the formulas of this module.

    Args:
        entries: metadata by key without the architecture.
        tensors: divisors by tensor name.
        rotary_dim: number of rotated dimensions per head.
        context: llama.cpp's context size, in tokens. It decides between LongRoPE's lists.

    Raises:
        UnsupportedModelError: the scaling is of an unknown kind.
    """
    kind = entries.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"the file's rope.scaling.type is {kind!r}; known are none, linear, yarn, longrope",
            page="engine-cannot-compute",
        )
    base = unscaled_frequencies(_spec(entries, rotary_dim))
    original = entries.get("rope.scaling.original_context_length", entries.get("context_length", 0))
    divisors = tensors.get(DIVISORS)
    if kind == "longrope":
        divisors = tensors[LONG if context > original else SHORT]
    if divisors is not None:
        base = base / divisors.astype(np.float64)
    scale = 1.0 if kind == "none" else float(entries.get("rope.scaling.factor", 0.0)) or 1.0
    factor = float(entries.get("rope.scaling.attn_factor", 1.0))
    if kind != "yarn":
        return RopeTable(inv_freq=base / scale, attention_factor=factor)
    theta = float(entries["rope.freq_base"])
    low = max(0, math.floor(_pair_index(_BETA_FAST, original, theta, rotary_dim)))
    high = min(rotary_dim - 1, math.ceil(_pair_index(_BETA_SLOW, original, theta, rotary_dim)))
    kept = 1 - np.clip((np.arange(rotary_dim // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    return RopeTable(inv_freq=base * (kept + (1 - kept) / scale), attention_factor=factor * _yarn_factor(scale))


def _yarn_factor(scale: float) -> float:
    return 0.1 * math.log(scale) + 1


def _pair_index(turns: float, original: int, theta: float, rotary_dim: int) -> float:
    return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _spec(entries: Mapping[str, Any], rotary_dim: int) -> RopeSpec:
    # The file stores the base in float32.
    return RopeSpec(rotary_dim=rotary_dim, theta=float(np.float32(entries.get("rope.freq_base", 10_000.0))))


def _refusal(state: RopeState, local_layers: bool) -> str:
    if state.kind == "yarn" and local_layers and state.parameters.get("attention_factor") is not None:
        return (
            f"yarn's attention factor is {state.attention_factor:.6g}, and llama.cpp would also apply it to this "
            f"model's local layers; nearest is the formula's {_yarn_factor(state.factor):.6g}: remove attention_factor "
            "and attn_factor from rope_parameters in a copy of the checkpoint"
        )
    if state.kind == "yarn":
        return (
            "for this kind of model llama.cpp supports yarn only with beta_fast 32, beta_slow 1 and bounds rounded to "
            f"whole pairs, but the config has beta_fast {state.parameters.get('beta_fast')}, beta_slow "
            f"{state.parameters.get('beta_slow')}, truncate {state.parameters.get('truncate', True)}; nearest is yarn "
            "with default settings: extend with that"
        )
    return (
        f"rope type is {state.kind!r}, whose divisors llama.cpp reads only for Llama and Mistral models; nearest is "
        "yarn: extend with --set interpolation=yarn, or serve the safetensors of --to hf with vLLM"
    )

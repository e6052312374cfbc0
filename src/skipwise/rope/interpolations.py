"""Interpolations: changes of the rotary frequencies with which positions up to the target resemble those seen before.

Each gives a new `inv_freq` and a factor on cos and sin, in float64, and the entry in the model's config that makes
transformers and serving engines compute the same. `alpha = target / original` throughout. Pure: numpy in, numpy out.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from skipwise.errors import ConfigError
from skipwise.rope.tables import RopeSpec, RopeTable, unscaled_frequencies
from skipwise.window import Window


class Interpolation(Protocol):
    """A change of the frequencies; a frozen dataclass whose fields are its hyperparameters.

    Raises:
        ConfigError: a field is out of range. `table` and `parameters` raise it if the interpolation does not suit the
            model.
    """

    kind: ClassVar[str]

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        """The table at the target length, from the base model's spec."""
        ...

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        """The entry of `rope_parameters` with which transformers computes the same table at the target length."""
        ...


def _ntk_theta(spec: RopeSpec, stretch: float) -> float:
    """The base with which the slowest rotated pair is `stretch` times slower and the fastest pair is unchanged."""
    if spec.rotary_dim == 2:
        raise ConfigError(
            "rotary_dim is 2, whose only pair turns by 1 radian per position whatever the base, so a base change does "
            "nothing; choose kind: linear or yarn"
        )
    return spec.theta * stretch ** (spec.span / (spec.rotary_dim - 2))


def _check_all_pairs_turn(kind: str, spec: RopeSpec) -> None:
    if spec.span != spec.rotary_dim:
        raise ConfigError(
            f"interpolation is {kind!r}, but rope type proportional in transformers takes only none, linear, ntk; "
            "choose one of these",
            page="engine-cannot-compute",
        )


def _check_factor(kind: str, factor: float | None) -> None:
    if factor is not None and not factor >= 1:
        raise ConfigError(f"{kind} factor is {factor}; give 1 or more, or leave it out for target / original")


def _check_positive(kind: str, name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ConfigError(f"{kind} {name} is {value}; give a positive number or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled:
    """No interpolation: `inv_freq_j = theta ** (-2j / d)`; the baseline for all others."""

    kind: ClassVar[str] = "none"

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        return RopeTable(inv_freq=unscaled_frequencies(spec), attention_factor=1.0)

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": spec.theta}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Position interpolation: `inv_freq / alpha` for every pair.

    Attributes:
        factor: used instead of `alpha`, 1 or more. By default `target / original`.

    Source: Chen et al., arXiv 2306.15595, equation 4.
    """

    kind: ClassVar[str] = "linear"
    factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.kind, self.factor)

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        return RopeTable(inv_freq=unscaled_frequencies(spec) / (self.factor or window.factor), attention_factor=1.0)

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        return {"rope_type": "linear", "rope_theta": spec.theta, "factor": self.factor or window.factor}


@dataclass(frozen=True, slots=True, kw_only=True)
class NTK:
    """NTK-aware base change: `theta' = theta * alpha ** (d / (d - 2))`. Only the base changes, so all engines load it.

    Attributes:
        theta: another base (adjusted base frequency, ABF), above 1. By default the one of the formula.

    Source: bloc97's NTK-aware scaling, as stated in YaRN (arXiv 2309.00071), definition 1; ABF: Xiong et al.,
    arXiv 2309.16039, section 2.1.
    """

    kind: ClassVar[str] = "ntk"
    theta: float | None = None

    def __post_init__(self) -> None:
        if self.theta is not None and not self.theta > 1:
            raise ConfigError(f"ntk theta is {self.theta}; give a base above 1, or leave it out for the NTK formula")

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        changed = replace(spec, theta=self._changed_theta(spec, window))
        return RopeTable(inv_freq=unscaled_frequencies(changed), attention_factor=1.0)

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": self._changed_theta(spec, window)}

    def _changed_theta(self, spec: RopeSpec, window: Window) -> float:
        return self.theta if self.theta is not None else _ntk_theta(spec, window.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNTK:
    """NTK whose base grows with the current length `L`: `theta * (factor * L / Lo - (factor - 1)) ** (d / (d - 2))`.

    The table is the one at `L = target`, which training at positions up to the target must use.

    Export: transformers compares `L` with `max_position_embeddings` and keeps the base below it. That field must be the
    target, so the format cannot express smaller bases for lengths between original and target. The formula is therefore
    anchored at the target: `rope_theta` is the base at the target, and the exported factor is
    `factor * alpha / (factor * alpha - factor + 1)`. Up to the target the model uses the table it was trained with;
    beyond it the base grows exactly by the formula above. Only the smaller bases for shorter inputs are lost.

    Attributes:
        factor: how fast the base grows with the length, 1 or more. With 1, `alpha` in the formula of `ntk` is `L / Lo`.

    Source: emozilla's dynamic scaling, as stated in YaRN (arXiv 2309.00071), section 3.3; the law with `factor` is that
    of transformers' rope type `dynamic`.
    """

    kind: ClassVar[str] = "dynamic"
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.kind, self.factor)

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        changed = replace(spec, theta=_ntk_theta(spec, self._stretch(window)))
        return RopeTable(inv_freq=unscaled_frequencies(changed), attention_factor=1.0)

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        stretch = self._stretch(window)
        return {
            "rope_type": "dynamic",
            "rope_theta": _ntk_theta(spec, stretch),
            "factor": self.factor * window.factor / stretch,
        }

    def _stretch(self, window: Window) -> float:
        return self.factor * window.factor - (self.factor - 1)


def _yarn_attention_factor(scale: float, mscale: float = 1.0) -> float:
    """`0.1 * mscale * ln(scale) + 1`, 1 for a scale up to 1; `mscale` is DeepSeek's. Source: YaRN, eq. 22."""
    return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0


def _pair_that_turns(num_turns: float, spec: RopeSpec, original: int) -> float:
    """Fractional index of the pair that makes `num_turns` full turns over the original window."""
    return spec.rotary_dim * math.log(original / (num_turns * 2 * math.pi)) / (2 * math.log(spec.theta))


def _ramp_bounds(low: float, high: float, spec: RopeSpec) -> tuple[float, float]:
    """Clips the bounds of the ramp; the upper limit is `d - 1`, as in the authors' code, not `d / 2 - 1`."""
    return max(low, 0), min(high, spec.rotary_dim - 1)


def _ramp(low: float, high: float, num_pairs: int) -> np.ndarray:
    """The share of interpolation: 0 up to pair `low`, 1 from pair `high`, linear between; float64 (num_pairs,)."""
    if low == high:
        high += 0.001
    # For an original window below 2 pi tokens, `high` is below `low` and the formula gives 0; engines do the same.
    return np.clip((np.arange(num_pairs) - low) / (high - low), 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class YaRN:
    """YaRN: fast pairs unchanged, slow pairs divided by alpha, a linear ramp between; and a sharper softmax.

    `inv_freq_j = base_j * (1 - ramp_j) + base_j / alpha * ramp_j`. The ramp rises from 0 at the pair that makes
    `beta_fast` turns over the original window to 1 at the pair that makes `beta_slow` turns.

    Attributes:
        beta_fast: pairs that make at least this many turns over the original window are unchanged. At least
            `beta_slow`.
        beta_slow: pairs that make at most this many turns are fully interpolated. Above 0.
        attention_factor: factor on cos and sin, above 0. By default `0.1 ln(alpha) + 1`. With both `mscale` and
            `mscale_all_dim`, by default `(0.1 mscale ln(alpha) + 1) / (0.1 mscale_all_dim ln(alpha) + 1)`.
        attention_factor_scale: multiplies that factor, above 0. `calibrate` chooses it. A factor other than the
            formula's is exported twice: as `attention_factor` for transformers, and as `attn_factor`, relative to the
            formula, for vLLM and SGLang, which read only that. transformers then logs that it does not know
            `attn_factor`.
        truncate: rounds the bounds of the ramp outwards to whole pairs, as the authors do.
        factor: used instead of `alpha`, 1 or more. By default `target / original`.
        mscale: DeepSeek's factor on the logarithm above, if the model has one.
        mscale_all_dim: DeepSeek's same factor for all dimensions of the head, which its attention applies separately.

    Source: Peng et al., arXiv 2309.00071, definition 2 and equations 17 to 22.
    """

    kind: ClassVar[str] = "yarn"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    attention_factor_scale: float = 1.0
    truncate: bool = True
    factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.kind, self.factor)
        if not self.beta_fast >= self.beta_slow > 0:
            raise ConfigError(
                f"yarn has beta_fast={self.beta_fast}, beta_slow={self.beta_slow}; both count turns, and beta_fast "
                "must not be smaller than beta_slow; for example 32 and 1"
            )
        _check_positive(self.kind, "attention_factor", self.attention_factor)
        _check_positive(self.kind, "attention_factor_scale", self.attention_factor_scale)

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        _check_all_pairs_turn(self.kind, spec)
        low = _pair_that_turns(self.beta_fast, spec, window.original)
        high = _pair_that_turns(self.beta_slow, spec, window.original)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        ramp = _ramp(*_ramp_bounds(low, high, spec), spec.rotary_dim // 2)
        base = unscaled_frequencies(spec)
        inv_freq = base * (1 - ramp) + base / (self.factor or window.factor) * ramp
        return RopeTable(inv_freq=inv_freq, attention_factor=self._attention_factor(window))

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": spec.theta,
            "factor": self.factor or window.factor,
            "original_max_position_embeddings": window.original,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
        }
        if not self.truncate:
            parameters["truncate"] = False
        for name in ("mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                parameters[name] = getattr(self, name)
        attention_factor = self._attention_factor(window)
        if attention_factor != self._formula_attention_factor(window):
            parameters["attention_factor"] = attention_factor
            parameters["attn_factor"] = attention_factor / self._formula_attention_factor(window)
        return parameters

    def _attention_factor(self, window: Window) -> float:
        given = self._formula_attention_factor(window) if self.attention_factor is None else self.attention_factor
        return float(given * self.attention_factor_scale)

    def _formula_attention_factor(self, window: Window) -> float:
        scale = self.factor or window.factor
        if self.mscale and self.mscale_all_dim:
            return _yarn_attention_factor(scale, self.mscale) / _yarn_attention_factor(scale, self.mscale_all_dim)
        return _yarn_attention_factor(scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3:
    """Llama 3.1's scaling: fast pairs unchanged, slow pairs divided by alpha, smooth between.

    With `turns_j = original * inv_freq_j / (2 pi)` and `s_j = clip((turns_j - low) / (high - low), 0, 1)`:
    `inv_freq'_j = (1 - s_j) * inv_freq_j / alpha + s_j * inv_freq_j`. No attention factor.

    Attributes:
        low_freq_factor: pairs that make at most this many turns over the original window are divided by alpha. Above 0.
        high_freq_factor: pairs that make at least this many turns are unchanged. At least `low_freq_factor`.
        factor: used instead of `alpha`, 1 or more. By default `target / original`.

    Source: Meta's Llama 3.1 release (models/llama3/reference_impl/model.py, `apply_scaling`).
    """

    kind: ClassVar[str] = "llama3"
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.kind, self.factor)
        if not self.high_freq_factor >= self.low_freq_factor > 0:
            raise ConfigError(
                f"llama3 has low_freq_factor={self.low_freq_factor}, high_freq_factor={self.high_freq_factor}; the "
                "high one must not be smaller than the low one; for example 1 and 4"
            )

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        _check_all_pairs_turn(self.kind, spec)
        base = unscaled_frequencies(spec)
        turns = window.original * base / (2 * math.pi)
        band = self.high_freq_factor - self.low_freq_factor
        # Llama 4's two factors are equal, which makes a step.
        smooth = np.clip((turns - self.low_freq_factor) / band, 0.0, 1.0) if band else turns > self.low_freq_factor
        inv_freq = (1 - smooth) * base / (self.factor or window.factor) + smooth * base
        return RopeTable(inv_freq=inv_freq, attention_factor=1.0)

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "rope_theta": spec.theta,
            "factor": self.factor or window.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": window.original,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRoPE:
    """LongRoPE: a divisor for each pair, with one list for inputs within the original window and one for longer ones.

    `inv_freq_j = base_j / long_factor_j`, attention factor `sqrt(1 + ln(alpha) / ln(original))`. transformers chooses
    the list by the largest position in the batch, so a batch of short inputs uses the short list. The attention factor
    applies to both. `table` is that of the long list if the target is beyond the original window.

    Attributes:
        short_factor: divisors for inputs within the original window, `rotary_dim / 2` numbers above 0. By default all
            1.
        long_factor: divisors for longer inputs, `rotary_dim / 2` numbers above 0. The paper finds them by evolutionary
            search. By default YaRN's (beta 32 and 1), from 1 at the fastest pair to alpha at the slowest.
        attention_factor: factor on cos and sin, above 0. By default the one of the formula. A given one is exported as
            `attention_factor` for transformers and as `short_mscale` and `long_mscale` for vLLM and SGLang.
        factor: used instead of `alpha` in the default divisors and in the formula, 1 or more. By default `target /
            original`.

    Source: Ding et al., arXiv 2402.13753; the attention factor as in the authors' released code.
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    attention_factor: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.kind, self.factor)
        for name in ("short_factor", "long_factor"):
            if (values := getattr(self, name)) is None:
                continue
            object.__setattr__(self, name, tuple(map(float, values)))
            if min(values, default=0) <= 0:
                raise ConfigError(
                    f"longrope {name} has a divisor that is not positive; give rotary_dim / 2 positive numbers"
                )
        _check_positive(self.kind, "attention_factor", self.attention_factor)

    def table(self, spec: RopeSpec, window: Window) -> RopeTable:
        _check_all_pairs_turn(self.kind, spec)
        short, long = self._factors(spec, window)
        divisors = long if window.target > window.original else short
        return RopeTable(
            inv_freq=unscaled_frequencies(spec) / divisors, attention_factor=self._attention_factor(window)
        )

    def parameters(self, spec: RopeSpec, window: Window) -> dict[str, Any]:
        short, long = self._factors(spec, window)
        parameters: dict[str, Any] = {
            "rope_type": "longrope",
            "rope_theta": spec.theta,
            "factor": self.factor or window.factor,
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": window.original,
        }
        if self.attention_factor is not None:
            for name in ("attention_factor", "short_mscale", "long_mscale"):
                parameters[name] = float(self.attention_factor)
        return parameters

    def stretched(self, spec: RopeSpec, window: Window, target: int) -> "LongRoPE":
        """Divisors for a longer target without a new search: the long list times YaRN's for the remaining stretch.

        Args:
            spec: of the base model.
            window: the window of the present divisors.
            target: new target in tokens, longer than that window's.
        """
        further = YaRN(factor=target / window.target).table(spec, replace(window, target=target))
        short, long = self._factors(spec, window)
        longer = long * unscaled_frequencies(spec) / further.inv_freq
        return LongRoPE(short_factor=tuple(short.tolist()), long_factor=tuple(longer.tolist()))

    def _factors(self, spec: RopeSpec, window: Window) -> tuple[np.ndarray, np.ndarray]:
        num_pairs = spec.rotary_dim // 2
        short = np.ones(num_pairs) if self.short_factor is None else np.array(self.short_factor)
        if self.long_factor is None:
            long = unscaled_frequencies(spec) / YaRN(factor=self.factor).table(spec, window).inv_freq
        else:
            long = np.array(self.long_factor)
        for name, factors in (("short_factor", short), ("long_factor", long)):
            if len(factors) != num_pairs:
                raise ConfigError(
                    f"longrope {name} has {len(factors)} divisors; this model rotates {spec.rotary_dim} dimensions, "
                    f"so give {num_pairs}"
                )
        return short, long

    def _attention_factor(self, window: Window) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        scale = self.factor or window.factor
        return math.sqrt(1 + math.log(scale) / math.log(window.original)) if scale > 1 else 1.0


INTERPOLATIONS: dict[str, type[Interpolation]] = {
    "none": Unscaled,
    "linear": Linear,
    "ntk": NTK,
    "dynamic": DynamicNTK,
    "yarn": YaRN,
    "llama3": Llama3,
    "longrope": LongRoPE,
}

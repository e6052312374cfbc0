"""The rotary embedding of a base model, and its table of frequencies. Pure: numpy in, numpy out.

A rotary embedding of `d` dimensions rotates pair `j` of them by `position * inv_freq_j` radians. Without scaling,
`inv_freq_j = theta ** (-2j / d)`, so pair 0 rotates fastest.
"""

import math
from dataclasses import dataclass

import numpy as np

from skipwise.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """The rotary embedding of the base model.

    Attributes:
        rotary_dim: dimensions of a head that are rotated; even.
        theta: the base of the frequencies.
        span_dim: dimensions over which the frequencies are spread, `d`; None for `rotary_dim`. In proportional RoPE
            (Gemma 4) it is the whole head, although only the fast pairs rotate; YaRN, Llama 3 and LongRoPE refuse that.

    Raises:
        ConfigError: unless `rotary_dim` is even and at least 2, `span_dim` is even and at least `rotary_dim`, and
            `theta` is above 1.
    """

    rotary_dim: int
    theta: float
    span_dim: int | None = None

    def __post_init__(self) -> None:
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim is {self.rotary_dim}; it must be an even number of dimensions, 2 or more")
        if self.span < self.rotary_dim or self.span % 2:
            raise ConfigError(f"span_dim is {self.span}; it must be even, and rotary_dim={self.rotary_dim} or more")
        if not self.theta > 1:
            raise ConfigError(f"rope theta is {self.theta}; it must be above 1, usually 1e4 to 1e7")

    @property
    def span(self) -> int:
        """Dimensions over which the frequencies are spread; the table has half as many entries."""
        return self.rotary_dim if self.span_dim is None else self.span_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeTable:
    """Frequencies and attention factor of a rotary embedding.

    Attributes:
        inv_freq: float64 (span / 2,), radians per position for each pair of dimensions; 0 for an unrotated pair.
        attention_factor: factor on cos and sin; it enters the attention logits squared.
    """

    inv_freq: np.ndarray
    attention_factor: float


def unscaled_frequencies(spec: RopeSpec) -> np.ndarray:
    """`theta ** (-2j / d)` for the rotated pairs and 0 for the others, float64 (span / 2,).

    Source: RoFormer (arXiv 2104.09864), section 3.2.2; the zeros follow proportional RoPE in transformers.
    """
    turning = spec.theta ** (-np.arange(0, spec.rotary_dim, 2, dtype=np.float64) / spec.span)
    return np.pad(turning, (0, (spec.span - spec.rotary_dim) // 2))


def frequency_deviation(found: RopeTable | None, expected: RopeTable) -> float:
    """Largest relative difference of frequencies; infinite for another shape, or for what is not a number."""
    if found is None or found.inv_freq.shape != expected.inv_freq.shape:
        return math.inf
    scale = np.where(expected.inv_freq == 0, 1.0, expected.inv_freq)
    largest = float(np.max(np.abs(found.inv_freq - expected.inv_freq) / scale))
    return largest if math.isfinite(largest) else math.inf


def deviation(found: RopeTable | None, expected: RopeTable) -> float:
    """Largest relative difference of frequencies and attention factor; infinite as `frequency_deviation`."""
    if found is None:
        return math.inf
    return max(frequency_deviation(found, expected), abs(found.attention_factor / expected.attention_factor - 1))


def float32_angle_error(table: RopeTable, position: int) -> float:
    """Rounding error of a position's angles when computed in float32, as every engine does.

    `max_j |float32(position) * float32(inv_freq_j) - position * inv_freq_j|`, before the reduction modulo 2 pi. The
    error grows with the position and is largest among the fast pairs, whose angles are the largest.

    Args:
        table: the exact table in float64.
        position: index of the position, in tokens.

    Returns:
        The largest error over the pairs, in radians.
    """
    angles = np.float32(position) * table.inv_freq.astype(np.float32)
    return float(np.max(np.abs(angles.astype(np.float64) - position * table.inv_freq)))

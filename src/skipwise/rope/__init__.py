"""Rotary position embeddings: the interpolations, and how a model's config says which one it uses."""

from skipwise.rope.eras import with_both_eras
from skipwise.rope.interpolations import (
    INTERPOLATIONS,
    NTK,
    DynamicNTK,
    Interpolation,
    Linear,
    Llama3,
    LongRoPE,
    Unscaled,
    YaRN,
)
from skipwise.rope.reading import RopeState, read_rope
from skipwise.rope.settings import interpolation_from
from skipwise.rope.tables import RopeSpec, RopeTable, float32_angle_error
from skipwise.rope.writing import (
    ATTENTION_FACTOR_KINDS,
    check_carries_factor,
    with_attention_scale,
    with_original,
    write_rope,
)

__all__ = [
    "ATTENTION_FACTOR_KINDS",
    "INTERPOLATIONS",
    "NTK",
    "DynamicNTK",
    "Interpolation",
    "Linear",
    "Llama3",
    "LongRoPE",
    "RopeSpec",
    "RopeState",
    "RopeTable",
    "Unscaled",
    "YaRN",
    "check_carries_factor",
    "float32_angle_error",
    "interpolation_from",
    "read_rope",
    "with_attention_scale",
    "with_both_eras",
    "with_original",
    "write_rope",
]

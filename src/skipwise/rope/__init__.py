"""Rotary position embeddings: the interpolations, and how a model's config says which one it uses."""

from skipwise.rope.config import RopeState, read_rope, target_window, with_legacy_keys, write_rope
from skipwise.rope.settings import interpolation_from
from skipwise.rope.tables import (
    INTERPOLATIONS,
    NTK,
    DynamicNTK,
    Interpolation,
    Linear,
    Llama3,
    LongRoPE,
    RopeSpec,
    RopeTable,
    Unscaled,
    YaRN,
    float32_angle_error,
)

__all__ = [
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
    "float32_angle_error",
    "interpolation_from",
    "read_rope",
    "target_window",
    "with_legacy_keys",
    "write_rope",
]

"""Bases of the rotary embedding that published models have, to tell where one was lost.

A family is only here if none of its models has the base that readers fall back to. Qwen2 is not: models made of its
math ones have that base at any window (DeepSeek-R1-Distill-Qwen-1.5B: 10,000 at 131,072 tokens), all others another.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """What the published models of a family have in common.

    Attributes:
        theta: base of those whose window before any scaling is at most `longest`; that of others differs.
        longest: in tokens; 0 where no window tells the base.
        original: window that all were pre-trained for, in tokens; None where it differs.
    """

    theta: float
    longest: int
    original: int | None


PUBLISHED: dict[tuple[str, int | None], Published] = {
    ("llama", 128256): Published(500_000.0, 8192, 8192),
    ("mistral", 32768): Published(1e6, 32768, 32768),
    # Nemo; Ministral and Small have 1e8 and more at the same windows.
    ("mistral", 131072): Published(1e6, 0, None),
    # The long ones of July 2025 have 5e6 and 1e7.
    ("qwen3", None): Published(1e6, 40960, None),
    ("qwen3_moe", None): Published(1e6, 40960, None),
    ("gemma3_text", None): Published(1e6, 131072, None),
}
"""By model type and vocabulary; a vocabulary of None is any."""

UNTOLD_QWEN2 = 32768
"""Window from which a Qwen2 model with the fallback base may have lost its own, or be made of a math model."""

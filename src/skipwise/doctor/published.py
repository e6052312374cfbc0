"""RoPE bases of published models, to detect configs that have lost theirs.

A family is listed only if none of its models uses the base that readers fall back to. Qwen2 is not listed: models
derived from its math models use that base at any window (DeepSeek-R1-Distill-Qwen-1.5B: 10,000 at 131,072 tokens), all
others use another.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """What the published models of a family have in common.

    Attributes:
        theta: RoPE base of the models whose window before any scaling is at most `longest`. Others use other bases.
        longest: in tokens; 0 if the window does not determine the RoPE base.
        original: window that all of them were pre-trained for, in tokens; None if it differs.
    """

    theta: float
    longest: int
    original: int | None


PUBLISHED: dict[tuple[str, int | None], Published] = {
    ("llama", 128256): Published(500_000.0, 8192, 8192),
    ("mistral", 32768): Published(1e6, 32768, 32768),
    # Nemo. Ministral and Small use 1e8 and more at the same windows.
    ("mistral", 131072): Published(1e6, 0, None),
    # The long-context models of July 2025 use 5e6 and 1e7.
    ("qwen3", None): Published(1e6, 40960, None),
    ("qwen3_moe", None): Published(1e6, 40960, None),
    ("gemma3_text", None): Published(1e6, 131072, None),
}
"""By model type and vocabulary size; None stands for any vocabulary size."""

UNTOLD_QWEN2 = 32768
"""From this window on, a Qwen2 model with the fallback base either has lost its own or derives from a math model."""

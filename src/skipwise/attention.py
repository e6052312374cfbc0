"""Attention under training's own dense causal mask, without the work that the mask throws away.

Under a dense mask, torch's `scaled_dot_product_attention` computes every pair of query and key, half of which a causal
mask then forbids. Here the queries go in a few blocks, each with the keys up to its own end alone.
"""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_BLOCKS = 4
"""Leaves out 3/8 of the pairs; eight blocks would leave out 7/16, but small blocks cost more than they spare."""

_MARK = "_skipwise_causal"

Attend = Callable[..., tuple[Tensor, None]]
"""An attention function of the transformers library."""


def mark_causal(mask: Tensor) -> Tensor:
    """Has the library's `sdpa` attention leave out what this mask forbids; the result is the same up to rounding.

    The mark is on the object, as looking at the numbers would have an accelerator wait at every layer. A copy does not
    carry it. Whatever attends under another mask, or by another implementation, goes its own way.

    Args:
        mask: numbers (batch, 1, n, n) that forbid each query all later keys, whatever else they say.

    Returns:
        The mask itself.
    """
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not hasattr(attend, _MARK):
        AttentionInterface.register("sdpa", _in_blocks(attend))
    setattr(mask, _MARK, True)
    return mask


def _in_blocks(attend: Attend) -> Attend:
    def attend_in_blocks(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *rest: Any, **how: Any
    ) -> tuple[Tensor, None]:
        """The library's arguments: query, key and value (batch, heads, n, width); returns (batch, n, heads, width)."""
        n = query.shape[2]
        # A cache has other keys, a bias a size of its own, and dropout would draw other numbers for blocks.
        as_one = key.shape[2] != n or how.get("position_bias") is not None or how.get("dropout", 0.0) > 0
        if attention_mask is None or not hasattr(attention_mask, _MARK) or n < _BLOCKS or as_one:
            return attend(module, query, key, value, attention_mask, *rest, **how)
        # Heads that share keys get their copies once; each block making its own would keep them all for backward.
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        ungrouped = SimpleNamespace(is_causal=True)
        ends = [n * block // _BLOCKS for block in range(_BLOCKS + 1)]
        pieces = [
            attend(
                ungrouped,
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                attention_mask[:, :, start:end, :end],
                *rest,
                **how,
            )[0]
            for start, end in itertools.pairwise(ends)
        ]
        return torch.cat(pieces, dim=1), None

    setattr(attend_in_blocks, _MARK, True)
    return attend_in_blocks

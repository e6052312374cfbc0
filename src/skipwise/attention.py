"""Attention under training's own dense causal mask, without the work that the mask throws away.

Under a dense mask, torch's `scaled_dot_product_attention` computes every pair of query and key, half of which a causal
mask then forbids. Here the queries go in a few blocks, each with the keys up to its own end alone.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_BLOCKS = 4
"""Leaves out 3/8 of the pairs; eight blocks would leave out 7/16, but small blocks cost more than they spare."""

_MARK = "_forbids_all_later_keys"


def mark_causal(mask: Tensor) -> Tensor:
    """Marks a mask (batch, 1, n, n) that forbids each query all later keys, whatever else it says; returns it.

    A mark on the object, as looking at the numbers would have an accelerator wait at every layer. A copy does not carry
    it, and is then used as any mask is.
    """
    setattr(mask, _MARK, True)
    return mask


@contextmanager
def sdpa_in_causal_blocks() -> Iterator[None]:
    """Within, the library's `sdpa` attention leaves out what a mask marked by `mark_causal` forbids.

    Whatever attends without such a mask, as in evaluation, or by another implementation, goes its own way. The result
    is the same up to rounding.
    """
    whole = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _in_blocks(whole)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = whole


def _in_blocks(attend: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    def attend_in_blocks(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *rest: Any, **how: Any
    ) -> tuple[Tensor, None]:
        """The library's arguments: query, key and value (batch, heads, n, width); returns (batch, n, heads, width)."""
        n = query.shape[2]
        # A cache has other keys, a bias a size of its own, and dropout would draw other numbers for blocks.
        as_one = key.shape[2] != n or how.get("position_bias") is not None or how.get("dropout", 0.0) > 0
        ours = hasattr(attention_mask, _MARK) and n >= _BLOCKS and not as_one
        if attention_mask is None or not ours:
            return attend(module, query, key, value, attention_mask, *rest, **how)
        ends = [n * block // _BLOCKS for block in range(_BLOCKS + 1)]
        pieces = [
            attend(
                module,
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

    return attend_in_blocks

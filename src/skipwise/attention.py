"""The library's `sdpa` attention, replaced for this process: causal masks in blocks, or no masks at all.

Under a dense mask, torch's `scaled_dot_product_attention` computes every query-key pair, although a causal mask forbids
half of them. `mark_causal` splits the queries into a few blocks, each with only the keys up to its own end.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from skipwise.errors import UnsupportedModelError

SDPA = "sdpa"
"""The name under which transformers keeps its attention by torch's `scaled_dot_product_attention`."""

_BLOCKS = 4
"""Four blocks skip 3/8 of the pairs. Eight would skip 7/16, but the overhead of small blocks exceeds the gain."""

_MARK = "_skipwise_causal"

Attend = Callable[..., tuple[Tensor, None]]
"""An attention function of the transformers library."""


def mark_causal(mask: Tensor) -> Tensor:
    """Makes the library's `sdpa` attention skip later keys under this mask; the result is the same up to rounding.

    The mark is an attribute of the tensor object, because inspecting its values would synchronize with the accelerator
    at every layer. Copies of the mask do not have it. Other masks and other attention implementations are unaffected.

    Args:
        mask: additive mask (batch, 1, n, n) that forbids each query all later keys; it may forbid or weight others.

    Returns:
        The mask itself.
    """
    attend = AttentionInterface()[SDPA]
    if not hasattr(attend, _MARK):
        AttentionInterface.register(SDPA, _in_blocks(attend))
    setattr(mask, _MARK, True)
    return mask


@contextmanager
def refusing_masks() -> Iterator[None]:
    """Context in which `sdpa` refuses any mask, and so is causal; for parts of a window, whose masks would be wrong.

    Raises:
        UnsupportedModelError: within, by a layer that attends under a mask.
    """
    attend = AttentionInterface()[SDPA]

    def attend_without_mask(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *rest: Any, **how: Any
    ) -> Any:
        if attention_mask is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} attends under a mask of its own, which cannot be had for parts of a window: "
                "leave parallel.context out",
                page="parallel-run",
            )
        return attend(module, query, key, value, attention_mask, *rest, **how)

    AttentionInterface.register(SDPA, attend_without_mask)
    try:
        yield
    finally:
        AttentionInterface.register(SDPA, attend)


def _in_blocks(attend: Attend) -> Attend:
    def attend_in_blocks(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *rest: Any, **how: Any
    ) -> tuple[Tensor, None]:
        """The library's arguments: query, key and value (batch, heads, n, width); returns (batch, n, heads, width)."""
        n = query.shape[2]
        # With a cache there are more keys than queries; a bias has its own shape; dropout would draw other numbers.
        as_one = key.shape[2] != n or how.get("position_bias") is not None or how.get("dropout", 0.0) > 0
        if attention_mask is None or not hasattr(attention_mask, _MARK) or n < _BLOCKS or as_one:
            return attend(module, query, key, value, attention_mask, *rest, **how)
        # Repeat shared key-value heads once: if each block did, the backward pass would keep a copy for every block.
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

"""Attention of one chunk of a long input after another, on a CPU, without a mask.

A chunk sees all that came before it, and of itself what a causal mask allows. Under one mask for both, torch's
`scaled_dot_product_attention` reads a number for every pair of query and key, nearly all of them zeros. Here the two
are attended to apart, neither under a mask, and put together by what their softmax sums were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from skipwise.model import attention_of, set_attention

_NAME = "skipwise_chunk"
# The kernel under `scaled_dot_product_attention` on a CPU; it alone tells the sums that two parts are put together by.
_KERNEL = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
# Earlier ones were not seen to take fewer heads of keys than of queries.
_GROUPS_HEADS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
# The library's extras that change scores; `sdpa` itself knows but the first.
_UNKNOWN = ("position_bias", "softcap", "sliding_window", "s_aux")


def sees_everything(model: Any) -> bool:
    """Whether every layer of a model keeps keys and values of all tokens, and attends to all of them."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def attends_in_chunks(model: Any) -> bool:
    """Whether `chunk_attention` means what the model's own attention means, and is the faster one.

    The model must ask the library for its attention by name, and have keys as wide as values: latent attention has not.
    """
    config = model.config.get_text_config()
    by_name = attention_of(config) == "sdpa" and getattr(model, "_supports_attention_backend", False)
    plain = by_name and getattr(config, "kv_lora_rank", None) is None and sees_everything(model)
    here = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    return plain and here and _KERNEL is not None


@contextmanager
def chunk_attention(model: Any) -> Iterator[None]:
    """Within, a chunk of tokens that comes after a cache, all rows without padding, is attended to in two parts.

    The same numbers as without it, up to rounding. Models that it does not suit go their own way.
    """
    if not attends_in_chunks(model):
        yield
        return
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _mask)
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    before = [attention_of(config) for config in configs]
    try:
        for config in configs:
            set_attention(config, _NAME)
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            set_attention(config, implementation)


def _mask(*sizes: Any, **how: Any) -> Tensor | None:
    """The library's own mask, where it is any other than causal or a model wants to have it as a tensor."""
    plain = how.get("allow_is_causal_skip", True) and how.get("attention_mask") is None
    return None if plain else sdpa_mask(*sizes, **how)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """The library's arguments: query (batch, heads, n, width), key and value (batch, fewer heads, past + n, width).

    Returns (batch, n, heads, width).
    """
    n, past = query.shape[2], key.shape[2] - query.shape[2]
    if attention_mask is not None or past == 0 or n == 1 or not _is_plain(query, value, dropout, how):
        if attention_mask is None and past and n > 1:
            attention_mask = query.new_ones(n, past + n, dtype=torch.bool).tril(past)[None, None]
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **how)
    if not _GROUPS_HEADS:
        key, value = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
    assert _KERNEL is not None
    earlier, earlier_sum = _KERNEL(query, key[:, :, :past], value[:, :, :past], scale=scaling)
    own, own_sum = _KERNEL(query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scaling)
    share = torch.sigmoid(own_sum - earlier_sum)[..., None]
    mixed = torch.lerp(earlier.to(share.dtype), own.to(share.dtype), share)
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def _is_plain(query: Tensor, value: Tensor, dropout: float, how: dict[str, Any]) -> bool:
    """Whether scores are scaled products and no more, of heads that keys and values are as wide as."""
    return query.shape[-1] == value.shape[-1] and dropout == 0 and all(how.get(name) is None for name in _UNKNOWN)

"""Attention of a chunk that follows a cache, on a CPU, without a mask.

A chunk sees all that came before it, and of itself what a causal mask allows. Under one mask for both, torch's
`scaled_dot_product_attention` reads a number for every pair of query and key, nearly all of them zeros. Here the two
parts are computed apart, neither under a mask, and combined by their softmax sums.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from skipwise.model import attention_of, set_attention
from skipwise.runtime._transformers import calls_attention_by_name, flash_attention_for_cpu

_NAME = "skipwise_chunk"
_SDPA, _SDPA_MASK = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
# The library's extra arguments that change scores; `sdpa` itself knows only the first.
_UNKNOWN = ("position_bias", "softcap", "sliding_window", "s_aux")


def sees_everything(model: Any) -> bool:
    """Whether every layer of a model keeps keys and values of all tokens, and attends to all of them."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def attends_by_name(model: Any) -> bool:
    """Whether a model looks its attention up by name, sees everything, and has keys as wide as values.

    Latent attention has not.
    """
    config = model.config.get_text_config()
    by_name = attention_of(config) == "sdpa" and calls_attention_by_name(model)
    return by_name and getattr(config, "kv_lora_rank", None) is None and sees_everything(model)


def attends_in_chunks(model: Any) -> bool:
    """Whether `chunk_attention` is the model's own attention, up to rounding, and faster."""
    here = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    return here and attends_by_name(model) and flash_attention_for_cpu is not None


@contextmanager
def chunk_attention(model: Any) -> Iterator[None]:
    """Inside the context, a chunk that follows a cache, all rows without padding, is attended to in two parts.

    The numbers are the same up to rounding. Models that it does not suit keep their own attention.
    """
    if not attends_in_chunks(model):
        yield
        return
    with other_attention(model, _NAME, _attend, _mask):
        yield


@contextmanager
def other_attention(model: Any, name: str, attend: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Inside the context, a model that looks its attention up by name attends by other functions.

    Args:
        model: its config says the name.
        name: of ours.
        attend, mask: with the arguments of the library's own.
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    before = [attention_of(config) for config in configs]
    try:
        for config in configs:
            set_attention(config, name)
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            set_attention(config, implementation)


def _mask(*sizes: Any, **how: Any) -> Tensor | None:
    """The library's own mask, unless it is plainly causal and the model does not want it as a tensor."""
    plain = how.get("allow_is_causal_skip", True) and how.get("attention_mask") is None
    return None if plain else _SDPA_MASK(*sizes, **how)


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
    if attention_mask is not None or past == 0 or n == 1 or not is_plain(query, value, dropout, how):
        if attention_mask is None and past and n > 1:
            attention_mask = query.new_ones(n, past + n, dtype=torch.bool).tril(past)[None, None]
        return _SDPA(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **how)
    if torch.is_autocast_enabled(query.device.type):
        # Autocast knows `scaled_dot_product_attention` and not its kernel. Rotated keys are float32, values are not.
        computed = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(computed), key.to(computed), value.to(computed)
    kernel = flash_attention_for_cpu
    earlier, earlier_sum = kernel(query, key[:, :, :past], value[:, :, :past], scale=scaling)
    own, own_sum = kernel(query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scaling)
    share = torch.sigmoid(own_sum - earlier_sum)[..., None]
    mixed = torch.lerp(earlier.to(share.dtype), own.to(share.dtype), share)
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def is_plain(query: Tensor, value: Tensor, dropout: float, how: dict[str, Any]) -> bool:
    """Whether scores are scaled products and nothing more, and values are as wide as keys."""
    return query.shape[-1] == value.shape[-1] and dropout == 0 and all(how.get(name) is None for name in _UNKNOWN)

"""How many tokens one pass through a model has, and how many positions get their logits at a time."""

from typing import Any

import psutil
import torch
from transformers import DynamicCache

from skipwise.model import attention_of
from skipwise.runtime.attention import attends_in_chunks

LOGITS_BYTES = 48 * 2**20
"""Largest piece of logits, in float32. Smaller pieces slow the head down, which reads all of its weights for each."""

# On a CPU, masks of chunks this short stay in its cache, and so do chunks of twice the size without masks. A GPU wants
# larger products.
_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# Devices whose attention without a mask never makes an `n x n`; others (MPS) do.
_LINEAR_ATTENTION = ("cpu", "cuda")
# Tensors of one layer that are alive at a time, as wide as the hidden states and as the feed-forward's inside.
_HIDDEN_ALIVE, _INSIDE_ALIVE = 16, 4
# Most memory that they may take in one pass: this many bytes, and this share of what is free.
_PASS_BYTES = 4 * 2**30
_FREE_SHARE = 0.5


def score_columns(model: Any, rows: int, num_tokens: int) -> int:
    """Positions of one pass over `rows` rows of `num_tokens` whose scores are wanted.

    Chunks without a mask are the fastest, since most of what their layers make stays in a processor's cache.
    """
    if attends_in_chunks(model):
        return chunk_columns(model, rows, masked=False)
    return pass_columns(model, rows, num_tokens)


def chunk_columns(model: Any, rows: int, *, masked: bool = True) -> int:
    """Positions of one chunk through the cache, in each of `rows` rows, as suits the model's device.

    Pass `masked` if there will be a mask even where `chunk_attention` could do without.
    """
    tokens = _CHUNK_TOKENS.get(model.device.type, 1024)
    if not masked and attends_in_chunks(model):
        tokens *= 2
    return max(1, tokens // rows)


def logit_columns(model: Any, rows: int, logits_bytes: int = LOGITS_BYTES) -> int:
    """Positions, in each of `rows` rows, whose logits take at most `logits_bytes` in float32; at least one."""
    return max(1, logits_bytes // (4 * rows * model.config.get_text_config().vocab_size))


def pass_columns(model: Any, rows: int, num_tokens: int) -> int:
    """Positions of one pass through the decoder, in each of `rows` rows of `num_tokens`: all of them if they fit.

    One pass for all needs no mask but `is_causal`, which halves attention, and no cache. Eager attention and layers of
    a limited reach would make a mask of `n x n`.
    """
    config = model.config.get_text_config()
    inside = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    token_bytes = (_HIDDEN_ALIVE * config.hidden_size + _INSIDE_ALIVE * inside) * model.dtype.itemsize
    masked = attention_of(model.config) == "eager" or any(DynamicCache(config=model.config).is_sliding)
    linear = not masked and model.device.type in _LINEAR_ATTENTION
    if linear and rows * num_tokens * token_bytes <= min(_PASS_BYTES, _FREE_SHARE * free_bytes(model.device)):
        return num_tokens
    return chunk_columns(model, rows)


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on this device, a CPU or a GPU, can still take."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    # What PyTorch has reserved and does not use is free for it, too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused

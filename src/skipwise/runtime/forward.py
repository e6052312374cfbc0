"""Logits of long inputs, a piece at a time: the one place where evaluation runs a model.

An input of `n` tokens goes through the decoder in chunks, by a KV cache, or in one pass where attention needs a mask
for chunks and none for the whole, while that is no heavier. Logits are made for the asked positions only, a few at a
time. Memory grows with `n`, never with `n x vocabulary` nor `n x n`. The logits are the model's own forward's, so soft
caps and scales of the head are in them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import longest_input
from skipwise.runtime.attention import attends_in_chunks, chunk_attention, sees_everything
from skipwise.runtime.length_rope import rope_of_length
from skipwise.runtime.room_cache import RoomCache

# Fewer rows at a time would make the head's product slower: it reads the whole vocabulary's weights for each piece. One
# piece lives at a time: whoever makes or takes one lets go of it (`del`) before the next is made.
_LOGITS_BYTES = 48 * 2**20
# What a sum over exponentials is taken of at a time: it makes a copy, which then stays in a processor's cache.
_SUMMED_BYTES = 4 * 2**20
# On a CPU the attention masks of short chunks stay in its cache, and without masks chunks of twice the size do; a GPU
# wants larger products.
_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# Where attention without a mask never makes an `n x n`. On other devices (MPS) it does.
_LINEAR_ATTENTION = ("cpu", "cuda")
# Tensors of one layer that live at the same time, as wide as the hidden states and as the feed-forward's inside.
_HIDDEN_ALIVE, _INSIDE_ALIVE = 16, 4
# How much memory they may take in one pass: at most this, and this share of what is free.
_PASS_BYTES = 4 * 2**30
_FREE_SHARE = 0.5

_CURE = "the weights or the precision cannot be trusted: load the model in float32 or bfloat16, or check its checkpoint"

Where = str | list[str]
"""What is being measured, for an error's text; or of each row of a batch."""


class LogitPiece(NamedTuple):
    """Logits of some neighbouring positions.

    Attributes:
        first: index of the first of these positions in the input.
        logits: float32 (batch, positions, vocabulary); row `i` predicts the token at `first + i + 1`.
    """

    first: int
    logits: Tensor


def check_length(config: PreTrainedConfig, num_tokens: int, *, allow_beyond: bool) -> None:
    """Refuses inputs longer than the model's window.

    Args:
        config: of the model.
        num_tokens: length of the longest input.
        allow_beyond: measure beyond the window on purpose, as for the base model of a comparison.

    Raises:
        ConfigError: when the input is longer and that was not asked for.
    """
    window = longest_input(config)
    if num_tokens > window and not allow_beyond:
        raise ConfigError(
            f"length is {num_tokens} tokens and the model's window is {window}; ask for at "
            "most that, or measure beyond it on purpose with allow_beyond (--allow-beyond)"
        )


def plain_model(model: Any) -> Any:
    """The model itself, of one that an adapter library has put its layers into and wrapped: with these layers.

    Raises:
        ConfigError: when the adapter is no layer of the model but a prompt before its input.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            f"the model has an adapter of type {model.active_peft_config.peft_type}, which puts a prompt of its own "
            "before the input, so lengths would not be what they say; evaluate a model with adapters inside its layers"
        )
    return model.get_base_model()


@torch.no_grad()
def logit_pieces(
    model: Any,
    input_ids: Tensor,
    first: int = 0,
    *,
    chunk_tokens: int | None = None,
    logits_bytes: int = _LOGITS_BYTES,
    where: Where = "input",
) -> Iterator[LogitPiece]:
    """Yields the logits of positions `first` to the last, in order, in pieces of bounded size.

    All pieces together mean the same as::

        model(input_ids=input_ids).logits[:, first:].float()

    Args:
        model: a causal language model of the transformers library, in evaluation mode, with adapters or without.
        input_ids: token ids (batch, n), no padding.
        first: index of the first position whose logits are asked for.
        chunk_tokens: positions of one pass through the decoder; by default what suits model and device.
        logits_bytes: largest piece, counted in float32.
        where: what is being measured, for the error's text.

    Raises:
        CheckpointError: when a logit is NaN, or the largest of a position infinite.
    """
    model = plain_model(model)
    batch, num_tokens = input_ids.shape
    if chunk_tokens is None:
        # Chunks that do without a mask are the fastest, as most of what their layers make stays in a processor's cache.
        if attends_in_chunks(model):
            chunk_tokens = chunk_columns(model, batch, masked=False)
        else:
            chunk_tokens = pass_columns(model, batch, num_tokens)
    piece_tokens = logit_columns(model, batch, logits_bytes)
    input_ids = input_ids.to(model.device)
    positions = torch.arange(num_tokens, device=model.device).expand(batch, -1)
    cache = empty_cache(model, batch, num_tokens) if num_tokens > chunk_tokens else None
    with rope_of_length(model, num_tokens):
        for start in range(0, num_tokens, chunk_tokens):
            end = min(start + chunk_tokens, num_tokens)
            chunk = {
                "input_ids": input_ids[:, start:end],
                # Said explicitly: with a cache no mask of ones is needed, and nobody guesses at packed documents.
                "position_ids": positions[:, start:end],
                "past_key_values": cache,
                "use_cache": cache is not None,
            }
            asked = max(start, first)
            for logits in _last_logits(model, chunk, max(0, end - asked), piece_tokens):
                logits = logits.float()
                check_logits(logits, _namer(where), lambda _, column, asked=asked: f"at position {asked + column}")
                yield LogitPiece(asked, logits)
                asked += logits.shape[1]
                del logits


def empty_cache(model: Any, num_rows: int, num_columns: int) -> Cache:
    """An empty cache for `num_rows` of at most `num_columns` tokens: with room for all of them, where layers allow."""
    return RoomCache(model, num_rows, num_columns) if sees_everything(model) else DynamicCache(config=model.config)


def chunk_columns(model: Any, batch: int, *, masked: bool = True) -> int:
    """Positions of one chunk through the cache, of each of `batch` rows: what suits the model's device.

    Args:
        model: that reads them.
        batch: rows.
        masked: whether attention makes a mask even where `chunk_attention` could do without.
    """
    tokens = _CHUNK_TOKENS.get(model.device.type, 1024)
    if not masked and attends_in_chunks(model):
        tokens *= 2
    return max(1, tokens // batch)


def logit_columns(model: Any, batch: int, logits_bytes: int = _LOGITS_BYTES) -> int:
    """Positions, of each of `batch` rows, whose logits take no more than `logits_bytes` in float32; at least one."""
    return max(1, logits_bytes // (4 * batch * model.config.get_text_config().vocab_size))


def pass_columns(model: Any, batch: int, num_tokens: int) -> int:
    """Positions of one pass through the decoder, of each of `batch` rows of `num_tokens`.

    One pass for all needs no mask but `is_causal`, which halves attention, and no cache. Eager attention and layers of
    a limited reach would make a mask of `n x n`.
    """
    config = model.config.get_text_config()
    inside = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    token_bytes = (_HIDDEN_ALIVE * config.hidden_size + _INSIDE_ALIVE * inside) * model.dtype.itemsize
    masked = model.config._attn_implementation == "eager" or any(DynamicCache(config=model.config).is_sliding)
    linear = not masked and model.device.type in _LINEAR_ATTENTION
    if linear and batch * num_tokens * token_bytes <= min(_PASS_BYTES, _FREE_SHARE * _free_bytes(model.device)):
        return num_tokens
    return chunk_columns(model, batch)


def _free_bytes(device: torch.device) -> int:
    """Memory that tensors on this device, a CPU or a GPU, can still have."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    # What PyTorch holds and does not use is free for it, too.
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _last_logits(model: Any, chunk: dict[str, Any], num_rows: int, piece_tokens: int) -> Iterator[Tensor]:
    """The logits of a chunk's last `num_rows` positions, `piece_tokens` of them at a time; the cache moves on."""
    # Around each call alone: between pieces, whoever takes them may run this model, or another of its config.
    if num_rows <= piece_tokens:
        none = torch.empty(0, dtype=torch.long, device=model.device)
        with chunk_attention(model):
            logits = model(**chunk, logits_to_keep=num_rows or none).logits
        if num_rows:
            yield logits[:, -num_rows:]
        return
    # One pass through the decoder; then the model's own forward over slices of what came out, the decoder standing
    # still, as in skipwise.loss.
    decoder: nn.Module = model.base_model
    with chunk_attention(model):
        outputs = decoder(**chunk)
    for hidden in outputs.last_hidden_state[:, -num_rows:].split(piece_tokens, dim=1):
        with _standing(decoder, type(outputs)(last_hidden_state=hidden)):
            logits = model(inputs_embeds=hidden, use_cache=False).logits
        yield logits
        del logits


@contextmanager
def _standing(decoder: nn.Module, outputs: Any) -> Iterator[None]:
    """Within, the decoder answers any input with `outputs`."""
    replaced = decoder.__dict__.get("forward")
    decoder.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        del decoder.forward
        if replaced is not None:
            decoder.forward = replaced


def token_nlls(
    model: Any, input_ids: Tensor, first_scored: int = 1, *, where: Where = "input", **limits: int
) -> Tensor:
    """Negative log-likelihood of each token from `first_scored` on, given all tokens before it.

    Means the same as::

        log_probabilities = log_softmax(model(input_ids=input_ids[:, :-1]).logits)
        nlls = -log_probabilities.gather(-1, input_ids[:, 1:, None])[:, first_scored - 1 :, 0]

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        input_ids: token ids (batch, n).
        first_scored: index of the first token to score, at least 1: the first token has no context.
        where: what is being measured, for the error's text.
        **limits: `chunk_tokens` and `logits_bytes` as for `logit_pieces`.

    Returns:
        Natural-logarithm NLLs, float64 (batch, n - first_scored) on the CPU.

    Raises:
        CheckpointError: when a logit is NaN, or an NLL infinite.
    """
    targets = input_ids.to(model.device)
    nlls = []
    # The last token is scored, not read.
    for first, logits in logit_pieces(model, input_ids[:, :-1], first_scored - 1, where=where, **limits):
        expected = targets[:, first + 1 : first + 1 + logits.shape[1], None]
        rows = max(1, _SUMMED_BYTES // logits[:, 0].nbytes)
        totals = torch.cat([block.logsumexp(-1) for block in logits.split(rows, dim=1)], dim=1)
        scored = (totals - logits.gather(-1, expected)[..., 0]).double().cpu()
        _check_scored(scored, input_ids[:, first + 1 :], first + 1, where)
        nlls.append(scored)
        del logits
    return torch.cat(nlls, dim=1)


def check_logits(logits: Tensor, name: Callable[[int], str], place: Callable[[int, int], str]) -> None:
    """Refuses logits that no distribution follows from.

    Args:
        logits: (rows, positions, vocabulary).
        name: what a row is, for the error's text.
        place: where a row's position is, for the error's text.

    Raises:
        CheckpointError: when a logit is NaN, or the largest of a position infinite.
    """
    largest = logits.amax(-1)  # NaN where any is
    if not largest.isfinite().all():
        row, column = (~largest.isfinite()).nonzero()[0].tolist()
        kind = "NaN" if largest[row, column].isnan() else "infinite"
        raise CheckpointError(f"{name(row)}: logits are {kind} {place(row, column)}; {_CURE}")


def _check_scored(nlls: Tensor, token_ids: Tensor, first: int, where: Where) -> None:
    """Raises CheckpointError unless all NLLs (rows, n) are finite, of tokens from position `first` on.

    Largest logits are finite by now, so what is not is infinite: the token's own logit is minus infinity.
    """
    if not nlls.isfinite().all():
        row, column = (~nlls.isfinite()).nonzero()[0].tolist()
        raise CheckpointError(
            f"{_namer(where)(row)}: token {token_ids[row, column]} at position {first + column} has probability 0, so "
            f"its NLL is infinite; {_CURE}"
        )


def _namer(where: Where) -> Callable[[int], str]:
    return lambda row: where if isinstance(where, str) else where[row]

"""Logits of long inputs, a piece at a time: the one place where evaluation runs a model.

An input of `n` tokens goes through the decoder in one pass while that is no heavier than a KV cache would be, otherwise
in chunks through the cache, and logits are made for the asked positions only, a few at a time. Memory grows with `n`,
never with `n x vocabulary` nor `n x n`. The logits are the model's own forward's, so soft caps and scales of the head
are in them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from skipwise.errors import CheckpointError, ConfigError

# Fewer rows at a time would make the head's product slower: it reads the whole vocabulary's weights for each piece.
_LOGITS_BYTES = 64 * 2**20
# What a sum over exponentials is taken of at a time: it makes a copy, which then stays in a processor's cache.
_SUMMED_BYTES = 4 * 2**20
# On a CPU the attention masks of short chunks stay in its cache; a GPU wants larger products.
_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# Hidden states of one layer that live at the same time, and how much memory they may take in one pass.
_WIDTHS_ALIVE = 32
_PASS_BYTES = 4 * 2**30


class LogitPiece(NamedTuple):
    """Logits of some neighbouring positions.

    Attributes:
        first: index of the first of these positions in the input.
        logits: float32 (batch, positions, vocabulary); row `i` predicts the token at `first + i + 1`.
    """

    first: int
    logits: Tensor


def check_length(model: Any, num_tokens: int, *, allow_beyond: bool) -> None:
    """Refuses inputs longer than the model's window.

    Args:
        model: a causal language model of the transformers library.
        num_tokens: length of the longest input.
        allow_beyond: measure beyond the window on purpose, as for the base model of a comparison.

    Raises:
        ConfigError: when the input is longer and that was not asked for.
    """
    window = model.config.get_text_config().max_position_embeddings
    if num_tokens > window and not allow_beyond:
        raise ConfigError(
            f"length is {num_tokens} tokens and the model's window (max_position_embeddings) is {window}; ask for at "
            "most that, or measure beyond it on purpose with allow_beyond (--allow-beyond)"
        )


def rope_follows_length(model: Any) -> bool:
    """Whether the model rotates a token by how long its input is, so that an input's beginning is not a shorter one."""
    return any(_follows_length(getattr(module, "rope_type", None)) for module in model.modules())


@torch.no_grad()
def logit_pieces(
    model: Any,
    input_ids: Tensor,
    first: int = 0,
    *,
    chunk_tokens: int | None = None,
    logits_bytes: int = _LOGITS_BYTES,
    where: str = "input",
) -> Iterator[LogitPiece]:
    """Yields the logits of positions `first` to the last, in order, in pieces of bounded size.

    All pieces together mean the same as::

        model(input_ids=input_ids).logits[:, first:].float()

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        input_ids: token ids (batch, n), no padding.
        first: index of the first position whose logits are asked for.
        chunk_tokens: positions of one pass through the decoder; by default all of them, where one pass is as light as
            chunks are, else what suits the device.
        logits_bytes: largest piece, counted in float32.
        where: what is being measured, for the error's text.

    Raises:
        CheckpointError: when a logit is NaN.
    """
    batch, num_tokens = input_ids.shape
    chunk_tokens = chunk_tokens or _chunk_tokens(model, batch, num_tokens)
    piece_tokens = max(1, logits_bytes // (4 * batch * model.config.get_text_config().vocab_size))
    input_ids = input_ids.to(model.device)
    positions = torch.arange(num_tokens, device=model.device).expand(batch, -1)
    cache = DynamicCache(config=model.config) if num_tokens > chunk_tokens else None
    with _rope_of_length(model, num_tokens):
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
                _check_finite(logits, asked, where)
                yield LogitPiece(asked, logits)
                asked += logits.shape[1]


def _chunk_tokens(model: Any, batch: int, num_tokens: int) -> int:
    """Positions of one pass through the decoder.

    One pass for all is fastest: it needs no mask but `is_causal`, which halves attention, and no cache. Eager attention
    and layers of a limited reach would make a mask of `n x n`.
    """
    pass_bytes = batch * num_tokens * _WIDTHS_ALIVE * model.config.get_text_config().hidden_size * model.dtype.itemsize
    masked = model.config._attn_implementation == "eager" or any(DynamicCache(config=model.config).is_sliding)
    if pass_bytes <= _PASS_BYTES and not masked:
        return num_tokens
    return max(1, _CHUNK_TOKENS.get(model.device.type, 1024) // batch)


def _last_logits(model: Any, chunk: dict[str, Any], num_rows: int, piece_tokens: int) -> Iterator[Tensor]:
    """The logits of a chunk's last `num_rows` positions, `piece_tokens` of them at a time; the cache moves on."""
    if num_rows <= piece_tokens:
        none = torch.empty(0, dtype=torch.long, device=model.device)
        logits = model(**chunk, logits_to_keep=num_rows or none).logits
        if num_rows:
            yield logits[:, -num_rows:]
        return
    # One pass through the decoder; then the model's own forward over slices of what came out, the decoder standing
    # still, as in skipwise.loss.
    decoder: nn.Module = model.base_model
    outputs = decoder(**chunk)
    for hidden in outputs.last_hidden_state[:, -num_rows:].split(piece_tokens, dim=1):
        with _standing(decoder, type(outputs)(last_hidden_state=hidden)):
            logits = model(inputs_embeds=hidden, use_cache=False).logits
        yield logits


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


def token_nlls(model: Any, input_ids: Tensor, first_scored: int = 1, *, where: str = "input", **limits: int) -> Tensor:
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
    """
    targets = input_ids.to(model.device)
    nlls = []
    # The last token is scored, not read.
    for first, logits in logit_pieces(model, input_ids[:, :-1], first_scored - 1, where=where, **limits):
        expected = targets[:, first + 1 : first + 1 + logits.shape[1], None]
        rows = max(1, _SUMMED_BYTES // logits[:, 0].nbytes)
        totals = torch.cat([block.logsumexp(-1) for block in logits.split(rows, dim=1)], dim=1)
        nlls.append((totals - logits.gather(-1, expected)[..., 0]).double().cpu())
    return torch.cat(nlls, dim=1)


def _check_finite(logits: Tensor, start: int, where: str) -> None:
    bad = logits.amax(-1).isnan()  # the maximum of a row with a NaN is NaN
    if bad.any():
        row, column = (int(value) for value in bad.nonzero()[0])
        raise CheckpointError(
            f"{where}: logits are NaN at position {start + column} of input {row}; the weights or the precision cannot "
            "be trusted: load the model in float32 or bfloat16, or check its checkpoint"
        )


@contextmanager
def _rope_of_length(model: Any, num_tokens: int) -> Iterator[None]:
    """Within, RoPE that follows the input's length (dynamic NTK, LongRoPE) is that of `num_tokens` in every chunk.

    Such modules look at the largest position of a call, so early chunks would be rotated as if the input were short,
    and a module may still hold what a longer input left behind. So each chunk shows them position 0, which resets them,
    and then its own positions and the input's last.
    """
    following = [module for module in model.modules() if _follows_length(getattr(module, "rope_type", None))]
    if not following:
        yield
        return

    def see_last_position(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        values = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
        positions = values["position_ids"]
        type(module).forward(module, **(values | {"position_ids": torch.zeros_like(positions[..., :1])}))
        last = torch.full_like(positions[..., :1], num_tokens - 1)
        return (), values | {"position_ids": torch.cat([positions, last], dim=-1)}

    def drop_last_position(module: Any, args: tuple, output: Any) -> Any:
        return tuple(table[..., :-1, :] for table in output)

    handles = [module.register_forward_pre_hook(see_last_position, with_kwargs=True) for module in following]
    handles += [module.register_forward_hook(drop_last_position) for module in following]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _follows_length(rope_type: str | dict[str, str] | None) -> bool:
    kinds = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(kind in ("dynamic", "longrope") for kind in kinds)

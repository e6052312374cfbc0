"""Scores of long inputs: logits of the positions asked for, and the likelihood of each token."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import longest_input
from skipwise.runtime.caches import empty_cache
from skipwise.runtime.chunks import LOGITS_BYTES, logit_columns, score_columns
from skipwise.runtime.session import CURE, Session

# `logsumexp` copies its input: pieces of this size stay in a processor's cache.
_SUMMED_BYTES = 4 * 2**20

Where = str | list[str]
"""Name of the input, or of each row of a batch, for error messages."""


class LogitPiece(NamedTuple):
    """Logits of neighbouring positions.

    Attributes:
        first: index of the first of them in the input.
        logits: float32 (batch, positions, vocabulary); row `i` predicts the token at `first + i + 1`.
    """

    first: int
    logits: Tensor


def check_length(config: PreTrainedConfig, num_tokens: int, *, allow_beyond: bool) -> None:
    """Refuses inputs longer than the model's window, unless they are measured on purpose, as with a base model.

    Raises:
        ConfigError: the input is longer, and `allow_beyond` is not set.
    """
    window = longest_input(config)
    if num_tokens > window and not allow_beyond:
        raise ConfigError(
            f"length is {num_tokens} tokens and the model's window is {window}; give at most that, or measure beyond "
            "it on purpose with allow_beyond (--allow-beyond)",
            page="length-does-not-fit",
        )


def plain_model(model: Any) -> Any:
    """The model inside the wrapper of an adapter library, with the adapter's layers in it; any other model itself.

    Raises:
        ConfigError: the adapter puts a prompt before the input instead of layers into the model.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            f"the model has an adapter of type {model.active_peft_config.peft_type}, which puts a prompt of its own "
            "before the input, so that inputs are longer than stated; evaluate a model with adapters inside its layers"
        )
    return model.get_base_model()


def logit_pieces(
    model: Any,
    input_ids: Tensor,
    first: int = 0,
    *,
    chunk_tokens: int | None = None,
    logits_bytes: int = LOGITS_BYTES,
    where: Where = "input",
) -> Iterator[LogitPiece]:
    """Yields the logits of positions `first` to the last, in order, in pieces of bounded size.

    All pieces together equal::

        model(input_ids=input_ids).logits[:, first:].float()

    Args:
        model: a causal language model of the transformers library, in evaluation mode, with adapters or without.
        input_ids: token ids (batch, n), no padding.
        first: index of the first position whose logits are asked for.
        chunk_tokens: positions of one pass through the decoder; by default what suits model and device.
        logits_bytes: largest piece, counted in float32.
        where: name of the input, for error messages.

    Raises:
        CheckpointError: a logit is NaN, or the largest of a position infinite.
    """
    model = plain_model(model)
    rows, num_tokens = input_ids.shape
    chunk_tokens = chunk_tokens or score_columns(model, rows, num_tokens)
    cache = empty_cache(model, rows, num_tokens) if num_tokens > chunk_tokens else None
    session = Session(model, cache, length=num_tokens, names=_names(where, rows))
    pieces = session.prefill(
        input_ids,
        num_tokens - first,
        chunk_tokens=chunk_tokens,
        piece_tokens=logit_columns(model, rows, logits_bytes),
    )
    for logits in pieces:
        logits = logits.float()
        yield LogitPiece(first, logits)
        first += logits.shape[1]
        del logits


@torch.no_grad()
def token_nlls(
    model: Any, input_ids: Tensor, first_scored: int = 1, *, where: Where = "input", **limits: int
) -> Tensor:
    """Negative log-likelihood of each token from `first_scored` on, given all tokens before it.

    Equals::

        log_probabilities = log_softmax(model(input_ids=input_ids[:, :-1]).logits)
        nlls = -log_probabilities.gather(-1, input_ids[:, 1:, None])[:, first_scored - 1 :, 0]

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        input_ids: token ids (batch, n).
        first_scored: index of the first token to score, at least 1: the first token has no context.
        where: name of the input, for error messages.
        **limits: `chunk_tokens` and `logits_bytes` as for `logit_pieces`.

    Returns:
        Natural-logarithm NLLs, float64 (batch, n - first_scored) on the CPU.

    Raises:
        CheckpointError: a logit is NaN, or an NLL infinite.
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


def _check_scored(nlls: Tensor, token_ids: Tensor, first: int, where: Where) -> None:
    """Raises CheckpointError unless all NLLs (rows, n) are finite, of tokens from position `first` on.

    The largest logits are finite by now, so only the token's own logit can be infinite: minus infinity.
    """
    if not nlls.isfinite().all():
        row, column = (~nlls.isfinite()).nonzero()[0].tolist()
        raise CheckpointError(
            f"{_names(where, len(nlls))[row]}: token {token_ids[row, column]} at position {first + column} has "
            f"probability 0, so its NLL is infinite; {CURE}",
            page="not-finite",
        )


def _names(where: Where, rows: int) -> list[str]:
    return [where] * rows if isinstance(where, str) else where

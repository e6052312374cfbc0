"""Models compared with a base on the same tokens: KL divergence, most likely tokens and NLLs, in bounded memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipwise.errors import CheckpointError
from skipwise.runtime.forward import logit_pieces

# Maximum size of a piece of each model's float32 logits; comparing makes a few copies in float64.
_PIECE_BYTES = 16 * 2**20


class PairedScores(NamedTuple):
    """Scores of a model and its base; float64 on the CPU, one entry per token of the input except the first.

    Attributes:
        kl: KL(base || model) of the distributions that predict the token, in nats.
        same_top: 1.0 where both have the same most likely token, else 0.0.
        nll: negative log-likelihood of the token under the model, in nats.
        base_nll: the same under the base.
    """

    kl: Tensor
    same_top: Tensor
    nll: Tensor
    base_nll: Tensor


def paired_scores(base: Any, arms: Mapping[str, Any], input_ids: Tensor, *, where: str) -> dict[str, PairedScores]:
    """Compares models with a base on one input, a piece of all their logits at a time.

    For each model it is equivalent to::

        log_p, log_q = (log_softmax(network(input_ids=input_ids[:, :-1]).logits.double()) for network in (base, model))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        same_top = log_p.argmax(-1) == log_q.argmax(-1)
        nll = -log_q.gather(-1, input_ids[:, 1:, None])

    Args:
        base: a causal language model of the transformers library, in evaluation mode.
        arms: models of the same vocabulary, on the same device, by name.
        input_ids: token ids (1, n).
        where: what is being measured, for error messages.

    Returns:
        The scores of each model by its name.

    Raises:
        CheckpointError: logits are NaN or infinite.
    """
    networks = {"base": base, **arms}
    # The last token is scored and not read.
    streams = [
        logit_pieces(network, input_ids[:, :-1], logits_bytes=_PIECE_BYTES, where=f"{where}, {name}")
        for name, network in networks.items()
    ]
    parts: dict[str, list[PairedScores]] = {arm: [] for arm in arms}
    for of_base, *of_arms in zip(*streams, strict=True):
        log_p = _log_probabilities(of_base.logits[0])
        targets = input_ids[0, of_base.first + 1 :][: len(log_p), None].to(log_p.device)
        for arm, piece in zip(arms, of_arms, strict=True):
            scores = _compare(log_p, _log_probabilities(piece.logits[0]), targets)
            _check_finite(scores.kl, of_base.first, f"{where}, {arm}")
            parts[arm].append(scores)
    return {arm: PairedScores(*map(torch.cat, zip(*scores, strict=True))) for arm, scores in parts.items()}


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float64: a KL is a small difference of large sums, and float32 loses values below 1e-7."""
    # MPS has no float64.
    return (logits.cpu() if logits.device.type == "mps" else logits).double().log_softmax(-1)


def _compare(log_p: Tensor, log_q: Tensor, targets: Tensor) -> PairedScores:
    """Scores of some tokens from log-probabilities (tokens, vocabulary) of base and model, targets (tokens, 1)."""
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    same_top = (log_p.argmax(-1) == log_q.argmax(-1)).double()
    nll, base_nll = (-log_probabilities.gather(-1, targets)[:, 0] for log_probabilities in (log_q, log_p))
    # Rounding can make a KL negative.
    return PairedScores(*(score.cpu() for score in (kl.clamp(min=0), same_top, nll, base_nll)))


def _check_finite(kl: Tensor, first: int, where: str) -> None:
    if not kl.isfinite().all():
        position = first + int((~kl.isfinite()).nonzero()[0])
        raise CheckpointError(
            f"{where}: the logits at position {position} are infinite, there or in the base, so no KL follows from "
            "them; load both models in float32 or bfloat16, or check their checkpoints",
            page="not-finite",
        )

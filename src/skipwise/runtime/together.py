"""One more token of several requests in one pass, each with a cache of its own.

Decoding takes as long as reading the weights; here they are read once for all requests. Linear layers see a row for
each of them. Attention goes row by row over the row's own keys, so that nothing is padded, copied or masked, however
different the lengths.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer

from skipwise.model import embedding_rows
from skipwise.runtime.attention import attends_by_name, is_plain, other_attention
from skipwise.runtime.caches import cache_name, can_rewind
from skipwise.runtime.length_rope import rope_follows_length
from skipwise.runtime.session import Session

_NAME = "skipwise_together"
_SDPA, _SDPA_MASK = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
# From the cache to the attention of a layer: the rows' own layers, none before the first. None outside a joint pass:
# another thread may be in the same model.
_rows: ContextVar[Sequence[Any] | None] = ContextVar("rows", default=None)


@torch.no_grad()
def step_together(model: Any, sessions: Sequence[Session], tokens: Sequence[int]) -> Tensor:
    """Reads one token more of each session in one pass; the logits are those of each alone, up to rounding.

    Args:
        model: that of all sessions; `can_step_together`.
        sessions: each of one row, without padding.
        tokens: the next token id of each.

    Returns:
        Logits (rows, 1, vocabulary) in the model's own type, not checked. If the pass raises, sessions may have read a
        part of their token: `forget_half_read`.
    """
    caches: list[Any] = [session.cache for session in sessions]
    together = Cache(layers=[_RowsLayer(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)])
    device = model.device
    outside = _rows.set(())
    try:
        with other_attention(model, _NAME, _attend, _mask):
            logits = model(
                input_ids=torch.tensor(tokens, device=device)[:, None],
                position_ids=torch.tensor([session.columns for session in sessions], device=device)[:, None],
                logits_to_keep=1,
                use_cache=True,
                **{cache_name(model): together},
            ).logits
    finally:
        _rows.reset(outside)
    for session in sessions:
        session.columns += 1
    return logits


def forget_half_read(session: Session) -> None:
    """Takes from a session's cache what a pass that raised has left there.

    Raises:
        ValueError: it cannot be taken, as it completed a block of a quantized cache.
    """
    assert session.cache is not None
    layers: list[Any] = session.cache.layers
    for layer in layers:
        if (extra := layer.get_seq_length() - session.columns) > 0:
            layer.crop(-extra)


def can_step_together(model: Any, make: Callable[[], Cache]) -> bool:
    """Whether a pass over two rows gives the logits of two passes over one: tried with a few tokens.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        make: makes an empty cache of the kind that sessions have.

    Raises:
        MemoryError, torch.OutOfMemoryError: memory ran out, which tells nothing.
    """
    if rope_follows_length(model) or not attends_by_name(model):
        return False
    cache = make()
    if not can_rewind(cache) or getattr(cache, "offloading", False):
        return False

    def begun(ids: Sequence[int]) -> Session:
        session = Session(model, make(), length=len(ids) + 1)
        session.step(torch.tensor([ids]), 0)
        return session

    tokens = [value * 7 % min(89, embedding_rows(model.config)) for value in range(1, 50)]
    prompts, following = (tokens[:5], tokens[5:40]), [tokens[40], tokens[41]]
    alone = [begun(ids).step(torch.tensor([[token]])) for ids, token in zip(prompts, following, strict=True)]
    try:
        both = step_together(model, [begun(ids) for ids in prompts], following)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        # Whatever a model's own code does with caches and masks that are not the library's.
        return False
    most = 1e-3 if model.dtype == torch.float32 else 3e-2
    pairs = zip(both.float(), (own[0].float() for own in alone), strict=True)
    return all(bool((row - own).norm() <= most * own.norm()) for row, own in pairs)


class _RowsLayer(DynamicLayer):
    """One layer of several caches of one row each."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = layers

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Leaves keys and values (rows, heads, 1, width) to the attention, which hands each row's to its own layer."""
        _rows.set(self._layers)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return max(layer.get_seq_length() for layer in self._layers)


def _mask(*sizes: Any, **how: Any) -> Tensor | None:
    """None, as the only token of a row sees all that its own cache holds."""
    return _SDPA_MASK(*sizes, **how) if _rows.get() is None else None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """The library's arguments, of which keys and values are those of the new tokens alone."""
    layers = _rows.get()
    if layers is None:
        return _SDPA(module, query, key, value, attention_mask, **how)
    if not layers or attention_mask is not None or not is_plain(query, value, how.get("dropout", 0.0), how):
        raise NotImplementedError("this model attends in a way of its own")
    _rows.set(())
    attended = []
    for row, layer in enumerate(layers):
        here = slice(row, row + 1)
        keys, values = layer.update(key[here], value[here])
        attended.append(_SDPA(module, query[here], keys, values, None, **how)[0])
    return torch.cat(attended), None

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
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from skipwise.model import attention_of
from skipwise.runtime._transformers import calls_attention_by_name
from skipwise.runtime.attention import other_attention, sees_everything
from skipwise.runtime.caches import cache_name, can_rewind
from skipwise.runtime.length_rope import rope_follows_length
from skipwise.runtime.session import Session

_NAME = "skipwise_together"
_SDPA = AttentionInterface()["sdpa"]
# Keys and values of each row of the layer that runs, from its cache to its attention.
_rows: ContextVar[list[tuple[Tensor, Tensor]]] = ContextVar("rows")


@torch.no_grad()
def step_together(model: Any, sessions: Sequence[Session], tokens: Sequence[int]) -> Tensor:
    """Reads one token more of each session in one pass; the logits are those of each alone, up to rounding.

    Args:
        model: that of all sessions; `can_step_together`.
        sessions: each of one row, without padding.
        tokens: the next token id of each.

    Returns:
        Logits (rows, 1, vocabulary) in the model's own type, not checked.
    """
    caches: list[Any] = [session.cache for session in sessions]
    together = Cache(layers=[_RowsLayer(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)])
    device = model.device
    with other_attention(model, _NAME, _attend, _no_mask):
        logits = model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            position_ids=torch.tensor([session.columns for session in sessions], device=device)[:, None],
            logits_to_keep=1,
            use_cache=True,
            **{cache_name(model): together},
        ).logits
    for session in sessions:
        session.columns += 1
    return logits


def can_step_together(model: Any, make: Callable[[], Cache]) -> bool:
    """Whether a pass over two rows gives the logits of two passes over one: tried with a few tokens.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        make: makes an empty cache of the kind that sessions have.
    """
    if attention_of(model.config.get_text_config()) != "sdpa" or not calls_attention_by_name(model):
        return False
    if rope_follows_length(model) or not sees_everything(model) or not can_rewind(make()):
        return False

    def begun(ids: list[int]) -> Session:
        session = Session(model, make(), length=len(ids) + 1)
        session.step(torch.tensor([ids]), 0)
        return session

    prompts, tokens = ([1], [3, 1, 2]), [2, 0]
    alone = [
        begun(ids).step(torch.tensor([[token]]))[0, -1].float() for ids, token in zip(prompts, tokens, strict=True)
    ]
    try:
        both = step_together(model, [begun(ids) for ids in prompts], tokens)[:, -1].float()
    except Exception:
        # Whatever a model's own code does with caches and masks that are not the library's.
        return False
    most = 1e-3 if model.dtype == torch.float32 else 3e-2
    return all(bool((row - own).norm() <= most * own.norm()) for row, own in zip(both, alone, strict=True))


class _RowsLayer(DynamicLayer):
    """One layer of several caches of one row each."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = layers

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands each row's keys and values (1, heads, 1, width) to its own cache, and all of that to attention."""
        new = zip(key_states.split(1), value_states.split(1), strict=True)
        _rows.set([layer.update(*of_row) for layer, of_row in zip(self._layers, new, strict=True)])
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return max(layer.get_seq_length() for layer in self._layers)


def _no_mask(*sizes: Any, **how: Any) -> None:
    """The only token of a row sees all that its own cache holds."""


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """The library's arguments, of which keys and values are those of the new tokens alone."""
    rows = zip(query.split(1), _rows.get(), strict=True)
    return torch.cat([_SDPA(module, own, keys, values, None, **how)[0] for own, (keys, values) in rows]), None

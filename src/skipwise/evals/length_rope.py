"""RoPE that follows the input's length (dynamic NTK, LongRoPE): whether a model has it, and how to hold it still."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def rope_follows_length(model: Any) -> bool:
    """Whether the model rotates a token by how long its input is, so that an input's beginning is not a shorter one."""
    return bool(_following(model))


@contextmanager
def rope_of_length(model: Any, num_tokens: int) -> Iterator[None]:
    """Within, RoPE that follows the input's length is that of `num_tokens` in every chunk.

    Such modules look at the largest position of a call, so early chunks would be rotated as if the input were short,
    and a module may still hold what a longer input left behind. So each chunk shows them position 0, which resets them,
    and then its own positions and the input's last.

    Args:
        model: a causal language model of the transformers library.
        num_tokens: length of the whole input, tokens to be generated included.
    """
    following = _following(model)
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


def _following(model: Any) -> list[Any]:
    """The modules whose tables depend on the input's length."""
    return [module for module in model.modules() if _follows_length(getattr(module, "rope_type", None))]


def _follows_length(rope_type: str | dict[str, str] | None) -> bool:
    kinds = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(kind in ("dynamic", "longrope") for kind in kinds)

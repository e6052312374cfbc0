"""RoPE that follows the input's length (dynamic NTK, LongRoPE): whether a model has it, and how to hold it still."""

import types
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FOLLOWING = ("dynamic", "longrope")


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


def held_length(model: Any, num_tokens: int, total_tokens: int) -> int:
    """The length whose tables a request is read with: such that its next token is that of a fresh prefill.

    LongRoPE has two lists of frequencies, so keys last until the input grows past the original window and are read anew
    then. Dynamic NTK would have keys read anew for each token: there it is one length for the whole request.

    Args:
        model: a causal language model of the transformers library.
        num_tokens: that are there, the prompt's or more.
        total_tokens: that the request may come to.
    """
    return total_tokens if "dynamic" in _kinds(model) else num_tokens


def tables_at(model: Any, num_tokens: int) -> Hashable:
    """What keys of an input of this length depend on beside its tokens; keys of unlike ones do not go together."""
    if "dynamic" in _kinds(model):
        return num_tokens
    return tuple(num_tokens > switch for switch in _switches(model))


def next_switch(model: Any, num_tokens: int) -> int | None:
    """The longest input, of this length or more, that is still rotated like one of this length; None where any is."""
    return next((switch for switch in _switches(model) if num_tokens <= switch), None)


def recompute_at_switches(model: Any) -> None:
    """Has the library's `generate` read all tokens anew where LongRoPE changes its list, as its Phi-3 does by itself.

    Args:
        model: a causal language model of the transformers library; for good.
    """
    if _switches(model):
        model.prepare_inputs_for_generation = types.MethodType(_prepare_inputs, model)


def _prepare_inputs(model: Any, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any) -> dict[str, Any]:
    """The model's own `prepare_inputs_for_generation`, without the keys so far where they are of another list."""
    if past_key_values is not None and (past := int(past_key_values.get_seq_length())):
        mask = kwargs.get("attention_mask")
        # Positions count from behind the padding, of the row that has least.
        padding = 0 if mask is None or mask.ndim != 2 else mask.shape[1] - int(mask.sum(-1).max())
        if tables_at(model, past - padding) != tables_at(model, input_ids.shape[1] - padding):
            past_key_values.reset()
            kwargs["next_sequence_length"] = None
    own = type(model).prepare_inputs_for_generation
    return own(model, input_ids, past_key_values=past_key_values, **kwargs)


def _switches(model: Any) -> list[int]:
    """Lengths up to which LongRoPE has the short list, shortest first."""
    found = set()
    for module in _following(model):
        parameters = module.config.rope_parameters
        kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
        for layers, kind in kinds.items():
            if kind == "longrope":
                own = parameters if layers is None else parameters[layers]
                found.add(int(own["original_max_position_embeddings"]))
    return sorted(found)


def _kinds(model: Any) -> set[str]:
    """The types of rotary embedding that follow the input's length."""
    types = [module.rope_type for module in _following(model)]
    named = [kind for one in types for kind in (one.values() if isinstance(one, dict) else [one])]
    return {kind for kind in named if kind in _FOLLOWING}


def _following(model: Any) -> list[Any]:
    """The modules whose tables depend on the input's length."""
    return [module for module in model.modules() if _follows_length(getattr(module, "rope_type", None))]


def _follows_length(rope_type: str | dict[str, str] | None) -> bool:
    kinds = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(kind in _FOLLOWING for kind in kinds)

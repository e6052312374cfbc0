"""RoPE that follows the input's length (dynamic NTK, LongRoPE): whether a model has it, and how to hold it still."""

import types
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def rope_follows_length(model: Any) -> bool:
    """Whether the model's rotary tables depend on the input's length, so that a prefix is not read like the whole."""
    return any(True for _ in _following(model))


@contextmanager
def rope_of_length(model: Any, num_tokens: int) -> Iterator[None]:
    """Inside the context, RoPE that follows the input's length is that of `num_tokens` in every chunk.

    Such modules look at the largest position of a call. Early chunks would be rotated as if the input were short, and a
    module may still hold the tables of a longer input. So each chunk shows them position 0, which resets them, and then
    its own positions and the input's last. The length includes new tokens.
    """

    def see_last_position(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        values = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
        positions = values["position_ids"]
        type(module).forward(module, **(values | {"position_ids": torch.zeros_like(positions[..., :1])}))
        last = torch.full_like(positions[..., :1], num_tokens - 1)
        return (), values | {"position_ids": torch.cat([positions, last], dim=-1)}

    def drop_last_position(module: Any, args: tuple, output: Any) -> Any:
        return tuple(table[..., :-1, :] for table in output)

    following = list(dict.fromkeys(module for module, _, _ in _following(model)))
    handles = [module.register_forward_pre_hook(see_last_position, with_kwargs=True) for module in following]
    handles += [module.register_forward_hook(drop_last_position) for module in following]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def held_length(model: Any, num_tokens: int, total_tokens: int) -> int:
    """The length whose tables a request is read with, so that its next token is that of a fresh prefill.

    LongRoPE has two lists of frequencies: keys last until the input grows past the original window, and are then
    recomputed. With dynamic NTK, keys would have to be recomputed for each token: there it is one length for the whole
    request, with all tokens that it may come to.
    """
    return total_tokens if _is_dynamic(model) else num_tokens


def tables_at(model: Any, num_tokens: int) -> Hashable:
    """What the keys of an input of this length depend on beside its tokens; only equal ones go together."""
    return num_tokens if _is_dynamic(model) else tuple(num_tokens > switch for switch in _switches(model))


def next_switch(model: Any, num_tokens: int) -> int | None:
    """The longest input, of at least this length, that is rotated like one of this length; None if there is none."""
    return next((switch for switch in _switches(model) if num_tokens <= switch), None)


def recompute_at_switches(model: Any) -> None:
    """Makes `model.generate` recompute all keys where LongRoPE changes its list, as the library's own Phi-3 does."""
    if _switches(model):
        model.prepare_inputs_for_generation = types.MethodType(_prepare_inputs, model)


def _prepare_inputs(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
    """The model's own `prepare_inputs_for_generation`, without the keys so far if they are of the other list."""
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    if cache is not None and (past := int(cache.get_seq_length())):
        mask = kwargs.get("attention_mask")
        # Positions are counted after the padding, of the row that has least.
        padding = 0 if mask is None or mask.ndim != 2 else mask.shape[1] - int(mask.sum(-1).max())
        if tables_at(model, past - padding) != tables_at(model, input_ids.shape[1] - padding):
            cache.reset()
            kwargs["next_sequence_length"] = None
    own = type(model).prepare_inputs_for_generation
    return own(model, input_ids, **kwargs)


def _is_dynamic(model: Any) -> bool:
    return any(kind == "dynamic" for _, kind, _ in _following(model))


def _switches(model: Any) -> list[int]:
    """Lengths up to which LongRoPE has the short list, shortest first."""
    kinds = ((kind, parameters) for _, kind, parameters in _following(model))
    return sorted({int(own["original_max_position_embeddings"]) for kind, own in kinds if kind == "longrope"})


def _following(model: Any) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Modules whose tables depend on the input's length, with type and parameters; once for each kind of layer."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layers, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind in ("dynamic", "longrope"):
                parameters = module.config.rope_parameters
                yield module, kind, parameters if layers is None else parameters[layers]

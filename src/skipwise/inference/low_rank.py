"""What full tuning changed, as a low-rank adapter: one set of weights and a small difference in place of two sets."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from skipwise.config import LoraTuning
from skipwise.errors import ConfigError
from skipwise.model import built_around, load_model, share_weights
from skipwise.train.tuning import apply_tuning


def low_rank_difference(base: str | Path, tuned: str | Path, rank: int, folder: str | Path, **how: Any) -> float:
    """Writes the difference between a base model and what full tuning made of it as an adapter of low rank.

    Of each linear layer the difference of weights is cut to its largest singular values, the nearest matrix of that
    rank (Eckart and Young); norms and embeddings are kept in full.
    `TwoModes.load(tuned, adapter=folder)` serves both modes with it.

    Args:
        base: the base model, as `load_model` takes it.
        tuned: the extended model.
        rank: of each layer's difference; at full rank nothing is lost.
        folder: where the adapter is written to.
        **how: `dtype` and `trust_remote_code`, as for `load_model`.

    Returns:
        The relative error of the weights of all linear layers together,
        `|W_tuned - W_base - B A|_F / |W_tuned - W_base|_F`: 0 where nothing is lost, 1 where all is.

    Raises:
        ConfigError: the rank is below 1, or base and tuned model are not of one kind.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}; it must be 1 or more")
    before, _ = load_model(base, **how)
    after, _ = load_model(tuned, **how)
    wrapped = _adapted(before, after, rank)
    lost = total = 0.0
    weights: dict[str, Any] = dict(after.named_parameters(remove_duplicate=False))
    name: str
    module: Any
    with torch.no_grad():
        for name, module in wrapped.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                difference = weights[f"{name}.weight"].float() - module.get_base_layer().weight.float()
                lost += float(_cut(module, difference, rank)) ** 2
                total += float(difference.norm()) ** 2
            elif hasattr(module, "modules_to_save"):
                module.modules_to_save["default"].load_state_dict(after.get_submodule(name).state_dict())
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    share_weights(folder)
    return (lost / total) ** 0.5 if total else 0.0


def _adapted(before: PreTrainedModel, after: PreTrainedModel, rank: int) -> Any:
    """The base model under the tuned one's config, with additions of no effect yet."""
    if type(before) is not type(after):
        raise ConfigError(f"the base model is a {type(before).__name__} and the tuned one a {type(after).__name__}")
    extended = built_around(type(before), after.config, dict(before.named_parameters(remove_duplicate=False)), before)
    tuning = LoraTuning(rank=rank, alpha=rank, train_norms=True, train_embeddings=True)
    return apply_tuning(extended, tuning)


def _cut(layer: Any, difference: torch.Tensor, rank: int) -> torch.Tensor:
    """Sets a layer's addition to the nearest matrix of this rank; the norm of what is lost."""
    left, sizes, right = torch.linalg.svd(difference, full_matrices=False)
    kept = min(rank, len(sizes))
    narrow, wide = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    narrow.zero_()
    wide.zero_()
    root = sizes[:kept].sqrt()
    narrow[:kept] = root[:, None] * right[:kept]
    wide[:, :kept] = left[:, :kept] * root
    return sizes[kept:].norm()

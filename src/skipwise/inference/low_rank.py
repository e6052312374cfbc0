"""What full tuning changed, as a low-rank adapter: one set of weights and a small difference instead of two sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from skipwise.config import LoraTuning
from skipwise.errors import ConfigError
from skipwise.model import built_around, load_model, share_weights
from skipwise.train.tuning import apply_tuning, is_lora_layer

if TYPE_CHECKING:
    from peft import PeftModel


def low_rank_difference(base: str | Path, tuned: str | Path, rank: int, folder: str | Path, **how: Any) -> float:
    """Writes the difference between a base model and its fully tuned form as an adapter of low rank.

    The difference of each linear layer is cut to its largest singular values, the nearest matrix of that rank (Eckart
    and Young); norms and embeddings are kept in full. `TwoModes.load(tuned, adapter=folder)` serves both modes with it.

    Args:
        base: the base model, as `load_model` takes it.
        tuned: the extended model.
        rank: of each layer's difference; at full rank nothing of it is lost.
        folder: where the adapter is written.
        **how: `dtype` and `trust_remote_code`, as for `load_model`.

    Returns:
        The relative error of all parameters together that are not kept in full,
        `|W_tuned - W_base - B A|_F / |W_tuned - W_base|_F`: 0 if nothing is lost, 1 if all is. Parameters that are
        neither a linear layer's weight nor kept in full (biases, experts fused into one tensor) stay the base's, and
        their difference counts as lost.

    Raises:
        ConfigError: the rank is below 1, or the models are of different kinds.
    """
    before, _ = load_model(base, **how)
    after, _ = load_model(tuned, **how)
    return write_difference(before, after, rank, folder)


def write_difference(before: PreTrainedModel, after: PreTrainedModel, rank: int, folder: str | Path) -> float:
    """As `low_rank_difference`, from loaded models, which stay as they are."""
    if rank < 1:
        raise ConfigError(f"rank is {rank}; it must be 1 or more")
    wrapped = _adapted(before, after, rank)
    weights: dict[str, Any] = dict(after.named_parameters(remove_duplicate=False))
    name: str
    module: Any
    with torch.no_grad():
        for name, module in wrapped.get_base_model().named_modules():
            if is_lora_layer(module):
                _cut(module, weights[f"{name}.weight"].float() - module.get_base_layer().weight.float(), rank)
            elif hasattr(module, "modules_to_save"):
                module.modules_to_save["default"].load_state_dict(after.get_submodule(name).state_dict())
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    share_weights(folder)
    return difference_error(wrapped, before, after)


@torch.no_grad()
def difference_error(adapted: "PeftModel", before: PreTrainedModel, after: PreTrainedModel) -> float:
    """The relative error of `low_rank_difference`: what the base model with an adapter lacks of the tuned one."""
    layers: dict[str, Any] = dict(adapted.get_base_model().named_modules())
    in_full = tuple(f"{name}." for name, layer in layers.items() if hasattr(layer, "modules_to_save"))
    own = dict(before.named_parameters(remove_duplicate=False))
    lost = total = 0.0
    for name, tuned in after.named_parameters():
        if not name.startswith(in_full):
            difference = tuned.float() - own[name].float()
            total += float(difference.norm()) ** 2
            layer: Any = layers.get(name.removesuffix(".weight"))
            if hasattr(layer, "get_delta_weight"):
                difference -= layer.get_delta_weight("default").float()
            lost += float(difference.norm()) ** 2
    return (lost / total) ** 0.5 if total else 0.0


def _adapted(before: PreTrainedModel, after: PreTrainedModel, rank: int) -> Any:
    """The base model under the tuned one's config, with additions that are still zero."""
    if type(before) is not type(after):
        raise ConfigError(
            f"the base model is a {type(before).__name__} and the tuned one a {type(after).__name__}", page="wrong-base"
        )
    extended = built_around(type(before), after.config, dict(before.named_parameters(remove_duplicate=False)), before)
    # The adapter names this as its base.
    extended.name_or_path = before.name_or_path
    tuning = LoraTuning(rank=rank, alpha=rank, train_norms=True, train_embeddings=True)
    return apply_tuning(extended, tuning)


def _cut(layer: Any, difference: torch.Tensor, rank: int) -> None:
    """Sets a layer's addition to the nearest matrix of this rank."""
    left, sizes, right = torch.linalg.svd(difference, full_matrices=False)
    kept = min(rank, len(sizes))
    narrow, wide = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    narrow.zero_()
    wide.zero_()
    root = sizes[:kept].sqrt()
    narrow[:kept] = root[:, None] * right[:kept]
    wide[:, :kept] = left[:, :kept] * root

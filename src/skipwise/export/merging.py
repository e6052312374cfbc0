"""The weighted mean of base and extended weights: one model that reads both short and long text.

    merged = (1 - weight) * extended + weight * base

Source: LongRecipe (arXiv 2409.00509), whose last stage takes the plain mean of the original model and the trained one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipwise.errors import CheckpointError, ConfigError
from skipwise.export.source import Trained
from skipwise.model import load_model, share_weights
from skipwise.train.tuning import is_lora_layer, load_additions

# Least cosine similarity between a model's matrices and its base's. Of models that were trained apart it is about 0.
_LEAST_COSINE = 0.1


def merge_with_base(trained: Trained, weight: float, *, trust_remote_code: bool = False) -> Trained:
    """Takes the weighted mean with the base model's weights, tensor by tensor in float32, in place.

    Config, rotary tables and other buffers stay those of the extended model, and so do rows of the embeddings that the
    base model lacks. A run on 4-bit weights is averaged with the base model in full precision.

    Args:
        trained: the extended model in float32; its parameters change.
        weight: share of the base, 0 to 1. 0 leaves the extended model as it is, and 1 leaves the base's weights under
            the extended config, both to the bit.
        trust_remote_code: whether to run Python code that comes with the base.

    Returns:
        The merged model.

    Raises:
        ConfigError: the base is not known.
        CheckpointError: the base cannot be loaded, or is not the model that was extended.
    """
    source = str(trained.folder)
    if trained.base is None:
        raise ConfigError(
            f"{source!r} is not a run of skipwise extend; name its base model with --base", page="wrong-base"
        )
    try:
        how: Any = {"dtype": "float32", "trust_remote_code": trust_remote_code}
        base = load_model(trained.base, needs_tokenizer=False, **how).model
    except CheckpointError as error:
        raise CheckpointError(
            f"the base model, whose weights are averaged with those of {source!r}, cannot be loaded: {error}; say "
            "where it is now with --base",
            page="wrong-base",
        ) from error
    pairs = _pairs(base, trained)
    if (cosine := _cosine(pairs)) < _LEAST_COSINE:
        raise CheckpointError(
            f"the weights of {trained.base!r} and {source!r} have a cosine similarity of {cosine:.2f}, as models that "
            "were trained apart have; name the model that was extended with --base",
            page="wrong-base",
        )
    with torch.no_grad():
        for own, other in pairs:
            # Exact at both ends, and where both are equal.
            own.lerp_(other, weight)
    return trained._replace(base_weight=weight)


def write_scaled_adapter(model: Any, adapter: Path, base_weight: float, folder: Path) -> None:
    """Writes an adapter that makes the weighted mean of its own: additions are scaled, whole tensors averaged.

    Args:
        model: the base model, which is changed.
        adapter: folder of the adapter.
        base_weight: share of the base.
        folder: where to write.
    """
    adapted: Any = load_additions(model, adapter)
    module: Any
    with torch.no_grad():
        for module in adapted.get_base_model().modules():
            if is_lora_layer(module):
                for ups in (module.lora_B, module.lora_embedding_B):
                    for up in ups.parameters():
                        up.mul_(1 - base_weight)
            elif hasattr(module, "modules_to_save"):
                whole = module.modules_to_save["default"].parameters()
                for own, other in zip(whole, module.original_module.parameters(), strict=True):
                    own.lerp_(other, base_weight)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    share_weights(folder)


def merge_notes(trained: Trained) -> list[str]:
    """What users of a merged model need to know; empty for a model that is not merged."""
    if trained.base_weight is None:
        return []
    return [
        f"The weights are {trained.base_weight:g} of {trained.base}'s and {1 - trained.base_weight:g} of the extended "
        "model's. What was measured of the extended model, in the card of its run too, does not hold for this one: "
        "measure it with skipwise eval, on short text (--task regression) and long",
        "Where both models can be kept, skipwise serve on the run answers short requests by the unchanged base model; "
        "a mean is for programs that serve everything with one model",
    ]


def _pairs(base: Any, trained: Trained) -> list[tuple[Tensor, Tensor]]:
    """Each parameter of the extended model, without rows that the base lacks, and the same one of the base.

    Raises:
        CheckpointError: they have other names or shapes.
    """
    model: Any = trained.model
    own, other = dict(model.named_parameters()), dict(base.named_parameters())
    tables = [
        module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    ]
    odd = sorted(own.keys() ^ other.keys())
    pairs = []
    for name in (name for name in own if name in other):
        ours, theirs = own[name].data, other[name].data
        if any(own[name] is table for table in tables):
            ours = ours[: len(theirs)]
        if ours.shape != theirs.shape:
            odd.append(f"{name} of {tuple(theirs.shape)} for {tuple(own[name].shape)}")
        pairs.append((ours, theirs))
    if odd:
        raise CheckpointError(
            f"the base model {trained.base!r} has other weights than {str(trained.folder)!r} ({odd[0]}"
            f"{', ...' if len(odd) > 1 else ''}); name the model that was extended with --base",
            page="wrong-base",
        )
    return pairs


def _cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Cosine similarity of all matrices together; norms are near 1 in every model."""
    matrices = [pair for pair in pairs if pair[0].ndim > 1]
    product = sum(float((own * other).sum()) for own, other in matrices)
    sizes = [sum(float(pair[side].norm()) ** 2 for pair in matrices) ** 0.5 for side in (0, 1)]
    return product / max(sizes[0] * sizes[1], 1e-30)

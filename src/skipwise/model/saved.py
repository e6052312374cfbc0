"""Verify a saved checkpoint: load it with the transformers library and compare its weights with the model in memory.

For a large model only the first layers are loaded, into a model of the same class. The names and conversions take the
same path, without the time and memory that the whole model needs.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from skipwise.errors import CheckpointError
from skipwise.model.extend import with_first_layers
from skipwise.model.rotary import text_config
from skipwise.model.source import quiet_transformers

logger = logging.getLogger("skipwise")

LIMIT_BYTES = 2 * 10**9
"""Limit on the weights that are loaded for verification. One layer is always loaded, even if it is larger."""


def layers_to_reread(model: PreTrainedModel, limit_bytes: int = LIMIT_BYTES) -> int:
    """How many leading layers, together with all weights outside the layers, fit into a limit; at least one.

    Args:
        model: with all of its layers.
        limit_bytes: limit on the size of these weights in memory, in bytes.
    """
    within = 0
    for num_layers in range(1, text_config(model.config).num_hidden_layers + 1):
        if num_layers > 1 and weight_bytes(first_layers(model, num_layers)) > limit_bytes:
            break
        within = num_layers
    return within


def first_layers(model: PreTrainedModel, num_layers: int) -> dict[str, Tensor]:
    """A model's weights by name, without the layers after the first `num_layers`."""
    later = tuple(
        f"{path}.{index}."
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == text_config(model.config).num_hidden_layers
        for index in range(num_layers, len(module))
    )
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(later)}


def weight_bytes(weights: dict[str, Tensor]) -> int:
    """Size of the tensors in memory, in bytes. A tensor with several names counts once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())


def wrongly_saved(model: PreTrainedModel, folder: str | Path, num_layers: int) -> dict[str, float]:
    """Finds the weights that differ between a saved folder and the model in memory.

    Args:
        model: the model that was saved.
        folder: the checkpoint; it may contain only the first layers.
        num_layers: number of leading layers to compare.

    Returns:
        Largest absolute difference by name, for weights that differ. Infinite if a weight is missing or has another
        shape.
    """
    own_code: dict[str, Any] = {"trust_remote_code": type(model).__module__.startswith("transformers_modules")}
    with quiet_transformers():
        config = with_first_layers(AutoConfig.from_pretrained(folder, **own_code), num_layers)
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=model.dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **own_code,
        )
    loaded, report = found
    absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    read = {name: tensor for name, tensor in loaded.state_dict().items() if name not in absent}
    own = first_layers(model, num_layers)
    if num_layers < text_config(model.config).num_hidden_layers:
        # Tensors whose width depends on the number of layers (Gemma 4's per-layer embeddings) cannot be compared.
        shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
        own = {name: tensor for name, tensor in own.items() if shapes.get(name, tensor.shape) == tensor.shape}
    return differences(read, own)


@torch.no_grad()
def differences(read: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference by name, for weights that are not equal.

    Args:
        read: loaded weights by name. The difference is infinite if a weight is missing or has another shape.
        own: the model's weights by name. They are rounded to the dtype of the loaded weights before the comparison.
    """
    off = {}
    for name, tensor in own.items():
        if name not in read or read[name].shape != tensor.shape:
            off[name] = float("inf")
            continue
        found = read[name].detach().cpu()
        rounded = tensor.detach().cpu().to(found.dtype)
        if not torch.equal(found, rounded):
            largest = (found.float() - rounded.float()).abs().max().item()
            off[name] = largest if math.isfinite(largest) else float("inf")
    return off


def check_saved(model: PreTrainedModel, folder: str | Path, *, layers: int | None = None) -> None:
    """Loads a saved model, or its first layers if it is large, and compares the weights with those in memory.

    Args:
        model: a plain model with all of its layers, or with all weights but those of later layers than `layers`.
        folder: where `save_model` wrote it.
        layers: number of leading layers to compare; None for as many as are quickly loaded.

    Raises:
        CheckpointError: the weights in the folder differ from the model's.
    """
    few = layers or layers_to_reread(model)
    logger.info(f"checking the saved weights: {few} of {text_config(model.config).num_hidden_layers} layers")
    if wrong := wrongly_saved(model, folder, few):
        name, difference = max(wrong.items(), key=lambda item: item[1])
        raise CheckpointError(
            f"{str(folder)!r} does not hold the weights that were trained: {len(wrong)} tensors differ, {name} by "
            f"{difference:.2g}; check the disk, and save again from the run's last checkpoint with --resume",
            page="weights-differ",
        )

"""What was saved, read again by the transformers library: weights of a folder against those of the model in memory.

Of a large model some layers do: a model of the same class and only its first layers is loaded, which takes the same
path through names and conversions, and neither the time nor the memory of the whole.
"""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from skipwise.errors import CheckpointError
from skipwise.model.rotary import text_config
from skipwise.model.source import quiet_transformers

logger = logging.getLogger("skipwise")

LIMIT_BYTES = 2 * 10**9
"""Weights that are read again at most, where one layer is not more."""


def layers_to_reread(model: PreTrainedModel, limit_bytes: int = LIMIT_BYTES) -> int:
    """How many of a model's first layers, with all that is in no layer, are within a limit of bytes; one at least.

    Args:
        model: whole.
        limit_bytes: as they lie in memory.
    """
    within = 0
    for num_layers in range(1, text_config(model.config).num_hidden_layers + 1):
        if num_layers > 1 and weight_bytes(first_layers(model, num_layers)) > limit_bytes:
            break
        within = num_layers
    return within


def first_layers(model: PreTrainedModel, num_layers: int) -> dict[str, Tensor]:
    """A model's weights by name without those of its later layers."""
    later = tuple(
        f"{path}.{index}."
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == text_config(model.config).num_hidden_layers
        for index in range(num_layers, len(module))
    )
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(later)}


def weight_bytes(weights: dict[str, Tensor]) -> int:
    """Bytes of tensors in memory, each counted once however many names it has."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())


def wrongly_saved(model: PreTrainedModel, folder: str | Path, num_layers: int) -> dict[str, float]:
    """Which of a model's weights a folder gives back as others.

    Args:
        model: that was saved there.
        folder: whose weights may be those of its first layers alone.
        num_layers: how many of these to look at.

    Returns:
        Largest difference by name; infinite where a weight is not there or has another shape.
    """
    own_code: dict[str, Any] = {"trust_remote_code": type(model).__module__.startswith("transformers_modules")}
    with quiet_transformers():
        config = _with_first_layers(AutoConfig.from_pretrained(folder, **own_code), num_layers)
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
        # What is as wide as there are layers (of Gemma 4, embeddings for each of them) is no part of fewer.
        shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
        own = {name: tensor for name, tensor in own.items() if shapes.get(name, tensor.shape) == tensor.shape}
    return differences(read, own)


@torch.no_grad()
def differences(read: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, float]:
    """How far weights that were read are from a model's own, by name, for those that are not the same.

    Args:
        read: by name; one that is missing, or has another shape, is infinitely far off.
        own: by name. Rounding to the dtype of what was read is no difference.
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


def check_saved(model: PreTrainedModel, folder: str | Path) -> None:
    """Reads again what was saved of a model, as far as it takes no long time.

    Args:
        model: plain and whole.
        folder: where `save_model` wrote it.

    Raises:
        CheckpointError: the folder has other weights than the model.
    """
    few, layers = layers_to_reread(model), text_config(model.config).num_hidden_layers
    logger.info(f"reading the saved weights again: {few} of {layers} layers")
    if wrong := wrongly_saved(model, folder, few):
        name, difference = max(wrong.items(), key=lambda item: item[1])
        raise CheckpointError(
            f"{str(folder)!r} does not hold the weights that were trained: {len(wrong)} tensors differ, {name} by "
            f"{difference:.2g}; see that the disk is sound, and save again from the run's last checkpoint by --resume"
        )


def _with_first_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The config of the same model with its first layers only."""
    cut = copy.deepcopy(config)
    text = text_config(cut)
    whole = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, name, value[:num_layers])
    if shared := getattr(text, "num_kv_shared_layers", None):
        # The last so many layers of Gemma 3n and 4 have no keys and values of their own.
        text.num_kv_shared_layers = max(0, num_layers - (whole - shared))
    text.num_hidden_layers = num_layers
    return cut

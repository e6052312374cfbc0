"""The weights of a model split by FSDP2 as those of a plain one, layer by layer: low-rank additions merged, in full
precision where the base is in 4 bits.

peft merges inside of modules. So each part is put into a twin of the model whose other weights have no memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skipwise.config import QloraTuning, Tuning
from skipwise.model import dequantized, empty_twin, is_four_bit, put_tensor
from skipwise.train.fsdp import parts, plain_name
from skipwise.train.tuning import apply_tuning, is_adapted, is_lora_layer


@torch.no_grad()
def plain_parts(model: Any, tuning: Tuning, dtype: torch.dtype | None = None) -> Iterator[dict[str, Tensor]]:
    """Weights by name of a plain model that computes what a split one does, a part at a time.

    All processes go through it together; each part is whole in all of them.

    Args:
        model: as trained, with or without low-rank additions.
        tuning: by which it was trained.
        dtype: of the weights of a base in 4 bits; others keep theirs.
    """
    if not is_adapted(model):
        yield from parts(model)
        return
    quantized = isinstance(tuning, QloraTuning)
    base: Any = model.get_base_model()
    plain = empty_twin(base, torch.float32 if quantized else None)
    own = set(plain.state_dict())
    twin: Any = apply_tuning(plain, tuning)
    layers = dict(model.named_modules()) if quantized else {}
    for part in parts(model):
        merged = _merged(twin, {name: _in_full(name, tensor, layers) for name, tensor in part.items()}, dtype)
        yield {name: tensor for name, tensor in merged.items() if name in own}


def _in_full(name: str, tensor: Tensor, layers: dict[str, Any]) -> Tensor:
    """A parameter, dequantized if it is the weight of a layer in 4 bits; beside such layers, on the CPU as they are."""
    path, _, leaf = name.rpartition(".")
    if path in layers and leaf == "weight" and is_four_bit(layers[path]):
        return dequantized(layers[path], tensor)
    return tensor.cpu() if layers else tensor


def _merged(twin: Any, part: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A part by plain names, with its additions merged; what they were is in it too, under names of their own."""
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    buffers = {plain_name(name): tensor for name, tensor in part.items() if name not in parameters}
    part = {name: tensor for name, tensor in part.items() if name in parameters}
    empty = {name: parameters[name] for name in part}
    # What is trained in full beside additions may be wider than the model's own, which is in the part too.
    dtypes = {plain_name(name): tensor.dtype for name, tensor in part.items() if ".modules_to_save." not in name}
    for name, tensor in part.items():
        put_tensor(twin, name, nn.Parameter(tensor, requires_grad=False))
    paths = {path for path, module in twin.named_modules() if is_lora_layer(module)}
    touched = {path for path in paths if any(name.startswith(f"{path}.") for name in part)}
    # Inner ones first: experts have additions around additions.
    for path in sorted(touched, key=len, reverse=True):
        twin.get_submodule(path).merge()
    plain = buffers | {
        plain_name(name): twin.get_parameter(name).detach().to(dtype or dtypes[plain_name(name)])
        for name in sorted(part, key=lambda name: ".modules_to_save." in name)  # Over what they have replaced.
    }
    for path in touched:
        twin.get_submodule(path).merged_adapters.clear()
    for name, parameter in empty.items():
        put_tensor(twin, name, parameter)
    return plain


def filled(twin: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    """A plain model with these weights, in place; others stay without memory."""
    for name, tensor in weights.items():
        if not tensor.is_meta:
            put_tensor(twin, name, nn.Parameter(tensor, requires_grad=False))
    twin.tie_weights()
    return twin

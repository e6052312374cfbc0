"""FSDP2: parameters, gradients and optimizer state split over all processes by PyTorch's `fully_shard`.

Each process holds rows of every parameter, and optimizes these. A layer's parameters are gathered when it computes, and
freed after that; its gradients are summed over the processes and split again. What is outside of the layers
(embeddings, last norm, head) stays gathered through a step.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from skipwise.errors import UnsupportedModelError
from skipwise.model import put_tensor
from skipwise.names import first_line
from skipwise.train.tuning import is_adapted

# What peft puts into the names of a model's own parameters.
_ADDED = (".base_layer", ".modules_to_save.default", ".original_module")


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model, and of its towers, by name: what is gathered together."""
    plain: Any = model.get_base_model() if is_adapted(model) else model
    count = plain.config.get_text_config(decoder=True).num_hidden_layers
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, GradientCheckpointingLayer):
            found[name] = module
        elif isinstance(module, nn.ModuleList) and len(module) == count:  # Of a checkpoint's own code.
            found |= {f"{name}.{index}": layer for index, layer in enumerate(module)}
    return found


def require_splittable(skeleton: PreTrainedModel) -> None:
    """Refuses models that FSDP2 cannot split.

    Args:
        skeleton: the model without weights.

    Raises:
        UnsupportedModelError: a parameter is a single number, layers share one, or there are no layers to be found.
    """
    layers, why = layers_of(skeleton), ""
    owners: dict[int, set[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        if not parameter.ndim:
            why = f"parameters that are single numbers ({name})"
        inside = next((path for path in layers if name.startswith(f"{path}.")), "")
        owners.setdefault(id(parameter), set()).add(inside)
    if any(len(paths) > 1 for paths in owners.values()):
        why = "layers that share weights"
    if why or not layers:
        raise UnsupportedModelError(
            f"{type(skeleton).__name__} has {why or 'no list of its layers'}, so that FSDP2 cannot split it: train it "
            "by --launch ddp or zero3"
        )


def shard(model: nn.Module, rows: Mapping[str, Tensor], device: torch.device, precision: torch.dtype | None) -> None:
    """Splits a model over all processes, in place. All processes call this.

    Args:
        model: as it is trained, with or without low-rank additions; whole, or with stand-ins for the parameters in
            `rows`.
        rows: this process's rows of parameters, by their names in the plain model (`skipwise.model.shards`).
        device: of this process.
        precision: 16-bit dtype of autocast, None without. Weights are gathered in bfloat16 if it is that; gradients
            are summed in float32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if precision is torch.bfloat16:
        policy = MixedPrecisionPolicy(precision, torch.float32, cast_forward_inputs=False)
    filled = {name: plain for name in _all_names(model) if (plain := plain_name(name)) in rows}
    if lost := set(rows) - set(filled.values()):
        raise RuntimeError(f"weights that were read have no place in the model: {', '.join(sorted(lost)[:3])}")
    _without_memory(model, filled)
    # Not what peft puts around it, as validation does not enter by that.
    root: Any = model.get_base_model() if is_adapted(model) else model
    for module in (*layers_of(model).values(), root):
        for other in _of_other_dtypes(module):
            fully_shard(other, mesh=mesh, mp_policy=policy)
        if module is root or any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    if filled:
        _fill(model, {name: rows[plain] for name, plain in filled.items()})


def _of_other_dtypes(model: nn.Module) -> list[nn.Module]:
    """Modules whose trained parameters have another dtype than most: what is gathered together has to have one."""
    owners = [
        (module, parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    sizes = Counter[torch.dtype]()
    for _, parameter in owners:
        sizes[parameter.dtype] += parameter.numel()
    most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    found = dict.fromkeys(module for module, parameter in owners if parameter.dtype != most)
    return [*reversed(found)]  # Inner ones first.


def plain_name(name: str) -> str:
    """The name in the plain model of a parameter of one with low-rank additions."""
    name = name.removeprefix("base_model.model.")
    for added in _ADDED:
        name = name.replace(added, "")
    return name


def split_again(model: nn.Module) -> None:
    """Frees what a pass without gradients, such as validation, has left gathered: what is outside of the layers."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(parameter: Tensor) -> Tensor:
    """A parameter, gathered from all processes, which call this together."""
    gathered: Any = parameter.detach()
    return gathered.full_tensor() if isinstance(gathered, DTensor) else gathered


def parts(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters of each layer by name, gathered in turn, and last those outside of the layers, with all buffers
    that belong to a checkpoint.

    All processes go through it together; none keeps more than it likes to.
    """
    split_again(model)
    inside: set[str] = set()
    for path, layer in layers_of(model).items():
        named = {f"{path}.{name}": parameter for name, parameter in layer.named_parameters()}
        inside |= set(named)
        yield {name: whole(parameter) for name, parameter in named.items()}
    stored = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    yield buffers | {name: whole(parameter) for name, parameter in model.named_parameters() if name not in inside}


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes an optimizer's state, each process its own part. All processes call this."""
    split_again(model)
    try:
        checkpoint.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder)
    except CheckpointException as error:  # Which is no Exception, and has those of all processes.
        failures: list[Any] = [one[0] if isinstance(one, tuple) else one for one in error.failures.values()]
        raise OSError(first_line(failures[0]) if failures else "its parts cannot be written") from error


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Reads an optimizer's state, each process its own part, whatever the number of those that wrote it."""
    state = get_optimizer_state_dict(model, optimizer)
    checkpoint.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, state)


def _all_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def _without_memory(model: nn.Module, names: Mapping[str, str]) -> None:
    """Moves parameters to the meta device; tied ones stay one."""
    moved: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in names:
            empty = nn.Parameter(
                torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad
            )
            put_tensor(model, name, moved.setdefault(id(parameter), empty))


def _fill(model: nn.Module, rows: Mapping[str, Tensor]) -> None:
    """Puts this process's rows into the parameters on the meta device."""
    made: dict[int, nn.Parameter] = {}
    owners: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in rows:
            continue
        if id(parameter) not in made:
            own = rows[name]
            # Norms and embeddings that are trained beside low-rank additions have frozen twins.
            own = own.to(parameter.dtype, copy=own.data_ptr() in seen)
            seen.add(own.data_ptr())
            spread: Any = parameter
            filled = DTensor.from_local(
                own, spread.device_mesh, spread.placements, run_check=False, shape=spread.shape, stride=spread.stride()
            )
            made[id(parameter)] = nn.Parameter(filled, parameter.requires_grad)
        owners[name] = made[id(parameter)]
    # FSDP looks again at what it manages when a state is loaded.
    model.load_state_dict(owners, strict=False, assign=True)

"""Models for a group of processes that never hold one whole: each process reads its rows of every weight.

The transformers library reads the rows from safetensors, with the conversions of each model family; `apart` takes
them out of its model. What is left has no weights: each parameter is a stand-in that shows shape, dtype and device, and
takes no memory.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from skipwise.model.extend import put_tensor, without_parameters
from skipwise.model.source import locate, own_config, quiet_transformers
from skipwise.model.stored import stored_as

_WHOLE = ("gptj", "baichuan")
"""Types of models that become another family's while they are loaded."""


def reads_rows(source: str | Path, skeleton: PreTrainedModel) -> bool:
    """Whether `load_model(source, in_shards=True)` reads rows, and not all of the weights.

    That takes safetensors that are neither quantized nor in another family's layout. The library cannot join experts
    for a process that gets none of them.

    Args:
        source: as for `load_model`.
        skeleton: the model without weights.
    """
    place, processes = locate(source, weights=False), torch.distributed.get_world_size()
    is_converted = own_config(place).get("model_type") in _WHOLE
    few = any(parameter.ndim > 2 and len(parameter) < processes for parameter in skeleton.parameters())
    return place.gguf_file is None and not is_converted and stored_as(skeleton.config) is None and not few


def rows_of(skeleton: PreTrainedModel) -> Any:
    """The `distributed_config` of `from_pretrained` by which each process reads its rows of every parameter."""
    from transformers.distributed import DistributedConfig

    # Which modules are gathered together does not matter, as the model is taken apart again; of this style, they come
    # after all that the family names.
    plan = {skeleton.base_model_prefix: "keep_full_weight"}
    return DistributedConfig(fsdp_size=torch.distributed.get_world_size(), fsdp_plan=plan)


def apart(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Takes a model that was read in rows apart.

    Args:
        model: as `load_model(in_shards=True)` returns it.

    Returns:
        A plain model with stand-ins for parameters, and this process's rows of each by name: of the first axis,
        cut as by `torch.chunk`. For a model that was read whole, the model itself and no rows.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model, {}
    vars(model.config).pop("distributed_config", None)
    plain = empty_twin(model)
    rows: dict[str, Tensor] = {}
    made: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert isinstance(parameter, DTensor), name
        rows[name] = parameter.to_local().detach()
        # Tied weights stay one parameter.
        stand_in = made.setdefault(id(parameter), nn.Parameter(_stand_in(parameter)))
        put_tensor(plain, name, stand_in)
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    for name, buffer in model.named_buffers():
        if name not in computed:
            put_tensor(plain, name, buffer)
    return plain.train(model.training), rows


def empty_twin(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A plain model of the same class and config whose parameters are on the meta device; not in 4 bits.

    Args:
        model: without low-rank additions; split by FSDP2 or not.
        dtype: of the parameters; None for the model's own.
    """
    own: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    config: Any = model.config
    if getattr(config, "quantization_config", None) is not None:
        config = copy.deepcopy(config)
        del config.quantization_config
    with quiet_transformers():
        twin = without_parameters(own, config, dtype or model.dtype)
        twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin


def _stand_in(like: Tensor) -> Tensor:
    """A tensor of this shape and dtype over a single number."""
    return torch.zeros(1, dtype=like.dtype).expand(like.shape)

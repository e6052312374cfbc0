"""What the transformers library makes of the content of a `config.json`: the judge of how skipwise reads it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from skipwise.model.extend import common_names
from skipwise.model.rotary import rotary_tables, text_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import RopeTable, eras

_CLASSES: tuple[Any, ...] = (AutoModelForCausalLM, AutoModel)
# Rotary settings are never taken from here: reading them is what is judged.
_ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", eras.ORIGINAL)
# Base that config classes have where nobody chose one for the family; it says nothing about a model.
_NOBODYS_THETA = 10_000.0
# Numbers of a tensor that is not made: no rotary table has so many, and joined experts have a hundred times more.
_LARGE = 1 << 24


class _LargeOnesUnmade(TorchFunctionMode):
    """Large new tensors have a shape and no memory, before a module can make parameters of them."""

    _MAKING = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._MAKING:
            unmade = func(*args, **{**kwargs, "device": "meta"})
            if unmade.numel() >= _LARGE:
                return unmade
        return func(*args, **kwargs)


def library_config(config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """The library's config object for the content of a `config.json`; None where it has no class for the model.

    Raises:
        Exception: the library refuses it; of any kind.
    """
    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    with quiet_transformers():
        return AutoConfig.for_model(**copy.deepcopy(dict(config)))


def library_defaults(config: PreTrainedConfig) -> dict[str, Any]:
    """What a decoder's config has whether its file says it or not; rotary settings aside, but for a family's own base.

    Published configs of Gemma 3 leave out the window, the heads and the base, for example.
    """
    decoder = text_config(config)
    found = {name: value for name, value in common_names(decoder).items() if name not in _ROTARY}
    base = getattr(type(decoder), "default_theta", _NOBODYS_THETA)
    base = base.get("global", base.get("full_attention")) if isinstance(base, dict) else base
    return found | ({} if base in (None, _NOBODYS_THETA) else {"rope_theta": base})


def library_tables(config: PreTrainedConfig, length: int) -> dict[str, RopeTable]:
    """The rotary tables that the library computes with at inputs of `length` tokens, by module as in `rotary_tables`.

    The model is built without its weights, which costs little at any size, also for a moment; no tables where there is
    no class for it.

    Raises:
        Exception: the library cannot build it; of any kind.
    """
    decoder = copy.deepcopy(text_config(config))
    library_class = next((each for each in _CLASSES if type(decoder) in each._model_mapping), None)
    if library_class is None:
        return {}
    with quiet_transformers(), init_empty_weights(include_buffers=False), no_init_weights(), _LargeOnesUnmade():
        model = library_class.from_config(decoder)
    shape = (3, 1, 1) if "mrope_section" in (decoder.rope_parameters or {}) else (1, 1)  # time, height and width
    positions = torch.full(shape, length - 1)
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for layer, kind in types.items() if isinstance(types, dict) else [(None, types)]:
            # These take their table from the input's length.
            if kind in ("dynamic", "longrope"):
                module(torch.zeros(1), positions, *([layer] if layer else []))
    return rotary_tables(model)

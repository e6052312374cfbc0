"""What the transformers library computes from a `config.json`: the reference for how skipwise reads configs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from skipwise.model.extend import common_names
from skipwise.model.rotary import rotary_tables, text_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import RopeTable, eras

_CLASSES: tuple[Any, ...] = ((MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM), (MODEL_MAPPING, AutoModel))
# Rotary settings are never taken from the library's defaults, because reading them is what the library checks.
_ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", eras.ORIGINAL)
# Default base of config classes whose family has not chosen one; it says nothing about a model.
_GENERIC_THETA = 10_000.0
# Tensors with at least this many elements get no memory. Rotary tables are far smaller; fused experts are a hundred
# times larger.
_LARGE = 1 << 24


class _LargeTensorsOnMeta(TorchFunctionMode):
    """Puts large new tensors on the meta device, before a module makes parameters from them."""

    _MAKING = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._MAKING:
            unmade = func(*args, **{**kwargs, "device": "meta"})
            if unmade.numel() >= _LARGE:
                return unmade
        return func(*args, **kwargs)


def library_config(config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """The library's config object for the content of a `config.json`, or None if it has no class for the model.

    Raises:
        Exception: of any type, if the library rejects the config.
    """
    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    with quiet_transformers():
        return AutoConfig.for_model(**copy.deepcopy(dict(config)))


def library_defaults(config: PreTrainedConfig) -> dict[str, Any]:
    """The decoder's settings including the defaults of its config class.

    Rotary settings are left out, except a base that the family itself defines. Published configs of Gemma 3, for
    example, omit the window, the number of heads and the base.
    """
    decoder = text_config(config)
    found = {name: value for name, value in common_names(decoder).items() if name not in _ROTARY}
    base = getattr(type(decoder), "default_theta", _GENERIC_THETA)
    base = base.get("global", base.get("full_attention")) if isinstance(base, dict) else base
    return found | ({} if base in (None, _GENERIC_THETA) else {"rope_theta": base})


def library_tables(config: PreTrainedConfig, length: int) -> dict[str, RopeTable]:
    """The rotary tables that the library uses for inputs of `length` tokens, by module as in `rotary_tables`.

    The model is built without memory for its weights, so this is cheap at any size. Empty if the library has no class
    for the model.

    Raises:
        Exception: of any type, if the library cannot build the model.
    """
    decoder = copy.deepcopy(text_config(config))
    library_class = next((each for known, each in _CLASSES if type(decoder) in known), None)
    return {} if library_class is None else built_tables(lambda: library_class.from_config(decoder), length)


def built_tables(build: Callable[[], PreTrainedModel], length: int) -> dict[str, RopeTable]:
    """The rotary tables of a model for inputs of `length` tokens, by module as in `rotary_tables`.

    Args:
        build: builds the model; its weights get no memory.
        length: in tokens.

    Raises:
        Exception: of any type, if the model cannot be built.
    """
    with quiet_transformers(), init_empty_weights(include_buffers=False), no_init_weights(), _LargeTensorsOnMeta():
        model = build()
    rope = text_config(model.config).rope_parameters or {}
    shape = (3, 1, 1) if "mrope_section" in rope else (1, 1)  # time, height and width
    positions = torch.full(shape, length - 1)
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for layer, kind in types.items() if isinstance(types, dict) else [(None, types)]:
            # The table of these types depends on the input's length.
            if kind in ("dynamic", "longrope"):
                module(torch.zeros(1), positions, *([layer] if layer else []))
    return rotary_tables(model)

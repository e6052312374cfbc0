"""Decoders whose linear layers are in 4 bits, by the package bitsandbytes through the transformers library.

    memory     of a weight of n numbers: ceil(n / 2) bytes, and its scales (`skipwise.memory.four_bit_bytes`)
    kept       embeddings, head, norms, biases, and experts that are joined into one tensor, in the model's dtype

Source: QLoRA, arXiv 2305.14314, section 3.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from skipwise.config import QloraTuning
from skipwise.errors import ConfigError
from skipwise.model.gptj import is_gptj
from skipwise.model.source import locate


class FourBits(NamedTuple):
    """How a model's linear layers are quantized while it is loaded, and where.

    Attributes:
        settings: of the transformers library.
        device: where each weight is quantized as soon as it is read, so that no whole model in full is ever there.
    """

    settings: BitsAndBytesConfig
    device: torch.device


def four_bits(
    tuning: QloraTuning, device: torch.device, *, compute: torch.dtype, storage: torch.dtype = torch.uint8
) -> FourBits:
    """The quantization that a tuning asks for.

    Args:
        tuning: of the run.
        device: where to.
        compute: dtype of the products.
        storage: dtype that four bits are packed into: of engines that split a model that of the shards, as they would
            leave bytes whole, or cast them.

    Raises:
        ConfigError: as `require_bitsandbytes`.
    """
    require_bitsandbytes()
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=tuning.quant,
        bnb_4bit_use_double_quant=tuning.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=storage,
    )
    return FourBits(settings, device)


def require_bitsandbytes() -> None:
    """Refuses to go on without the package.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "setting 'tuning.kind' is 'qlora' and the bitsandbytes package is missing; run: pip install "
            "'skipwise[qlora]', or train by lora"
        )


def check_quantizable(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuses what cannot be loaded in 4 bits.

    Args:
        source: as for `load_model`.
        config: its own, as `AutoConfig` reads it.

    Raises:
        ConfigError: the package is missing, or the model is quantized already, or is rebuilt by `load_model`.
    """
    require_bitsandbytes()
    place = locate(source, weights=False)
    without = "give the checkpoint that it was made of, or train by lora"
    if place.gguf_file is not None:
        raise ConfigError(f"model is {str(source)!r}, a GGUF file, and qlora quantizes full weights: {without}")
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model {str(source)!r} is quantized already, and qlora quantizes full weights: train by lora, or make "
            'them full once, and train NEW: python -c "from skipwise.model import load_model as l, save_model as s; '
            f"s(*l({str(source)!r}, dtype='auto'), 'NEW')\""
        )
    if is_gptj(config):
        raise ConfigError(
            f"model {str(source)!r} is a GPT-J, whose weights are reordered while it is loaded: load it with "
            "load_model, write it with save_model once, and train what that leaves by qlora"
        )


def four_bit_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers, by name, that are in 4 bits once a model is loaded so: all but the head.

    Args:
        model: not quantized, on any device; without numbers will do.
    """
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    # As the library asks: subclasses of a linear layer compute something of their own.
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }


def is_four_bit(module: nn.Module) -> bool:
    """Whether a linear layer's weight is in 4 bits."""
    return hasattr(module, "quant_state") and isinstance(module, nn.Linear)


def keep_packed_as_trained(model: nn.Module) -> None:
    """Has 4-bit layers leave their weights as they are when they are evaluated on a CPU.

    bitsandbytes would pack them anew for CPUs that multiply in bfloat16: with scales rounded, and for good, so that
    training after a validation would go on over other weights and without gradients.
    """
    for module in model.modules():
        if is_four_bit(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


@torch.no_grad()
def check_read_as_stored(model: nn.Module) -> None:
    """Refuses 4-bit layers that bitsandbytes multiplies by other weights than it has stored.

    Its code for CPUs with AVX-512 (seen in 0.50.2) takes every row's first scale to be a new one, which it is not where
    a block of 64 weights reaches into the next row. Layers of one shape are alike, so one of each is looked at.

    Raises:
        ConfigError: there is such a layer.
    """
    seen: set[torch.Size] = set()
    modules: dict[str, Any] = dict(model.named_modules())
    for name, layer in modules.items():
        state: Any = layer.quant_state if is_four_bit(layer) else None
        if state is None or state.shape in seen or layer.weight.device.type != "cpu":
            continue
        seen.add(state.shape)
        width = state.shape[-1]
        if width % state.blocksize and not torch.equal(dequantized(layer), _read(layer, state.shape)):
            raise ConfigError(
                f"setting 'tuning.kind' is 'qlora', and on this CPU bitsandbytes misreads its 4-bit weights of "
                f"{name!r}, whose rows of {width} are no whole blocks of {state.blocksize}: train by lora, "
                "or on an accelerator"
            )


@torch.no_grad()
def dequantized(layer: Any) -> Tensor:
    """What a 4-bit layer has stored: its (out, in) weight in float32, on the CPU."""
    # As one row, as rows that end inside a block are misread on some CPUs (`check_read_as_stored`).
    return _read(layer, torch.Size([1, layer.quant_state.shape.numel()]))


def _read(layer: Any, shape: torch.Size) -> Tensor:
    """The stored weight, read as one of this shape."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    weight = layer.weight
    state = copy.copy(layer.quant_state)
    state.dtype, state.shape = torch.float32, shape
    return dequantize_4bit(weight.detach(), state).cpu().view(layer.quant_state.shape)

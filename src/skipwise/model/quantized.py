"""Decoders with 4-bit linear layers, quantized by bitsandbytes through the transformers library.

    memory          a weight of n elements takes ceil(n / 2) bytes plus its scales (`skipwise.memory.four_bit_bytes`)
    not quantized   embeddings, head, norms, biases, and experts fused into one tensor; they keep the model's dtype

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
from skipwise.model._transformers import kept_in_float32
from skipwise.model.gptj import is_gptj
from skipwise.model.source import locate


class FourBits(NamedTuple):
    """How and where a model's linear layers are quantized during loading.

    Attributes:
        settings: quantization settings of the transformers library.
        device: each weight is quantized there as soon as it is read, so the full-precision model is never in memory as
            a whole.
    """

    settings: BitsAndBytesConfig
    device: torch.device


def four_bits(
    tuning: QloraTuning, device: torch.device, *, compute: torch.dtype, storage: torch.dtype = torch.uint8
) -> FourBits:
    """The 4-bit quantization that the run's tuning settings ask for.

    Args:
        tuning: tuning settings of the run.
        device: device that the weights are quantized on.
        compute: dtype of the matrix products.
        storage: dtype that the 4-bit values are packed into. Engines that shard a model need the dtype of the shards:
            they would not shard uint8, or would cast it.

    Raises:
        ConfigError: bitsandbytes is not installed.
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
    """Raises ConfigError if the package bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "setting 'tuning.kind' is 'qlora' and the bitsandbytes package is missing; run: pip install "
            "'skipwise[qlora]', or train with lora",
            page="missing-extra",
        )


def check_quantizable(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuses models that cannot be loaded in 4 bits.

    Args:
        source: as for `load_model`.
        config: the model's own config, as `AutoConfig` reads it.

    Raises:
        ConfigError: bitsandbytes is missing, the model is already quantized, or `load_model` converts its weights.
    """
    require_bitsandbytes()
    place = locate(source, weights=False)
    without = "give the checkpoint that it was made from, or train with lora"
    if place.gguf_file is not None:
        raise ConfigError(
            f"model {str(source)!r} is a GGUF file, and qlora needs unquantized weights: {without}",
            page="quantized-checkpoint",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model {str(source)!r} is already quantized, and qlora needs unquantized weights: train with lora, or "
            'dequantize once, and train NEW: python -c "from skipwise.model import load_model as l, save_model as s; '
            f"s(*l({str(source)!r}, dtype='auto'), 'NEW')\"",
            page="quantized-checkpoint",
        )
    if is_gptj(config):
        raise ConfigError(
            f"model {str(source)!r} is a GPT-J, whose weights are reordered while it is loaded, which qlora cannot do: "
            "load it once with load_model, write it with save_model, and train the result with qlora"
        )


def four_bit_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers, by name, that 4-bit loading quantizes: all except the head.

    Args:
        model: not quantized, on any device, including meta.
    """
    kept = [*get_keys_to_not_convert(model), *kept_in_float32(model)]
    # The library also requires the exact type, because subclasses of a linear layer compute something else.
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }


def is_four_bit(module: nn.Module) -> bool:
    """Whether this is a linear layer with a 4-bit weight."""
    return hasattr(module, "quant_state") and isinstance(module, nn.Linear)


def keep_packed_as_trained(model: nn.Module) -> None:
    """Stops 4-bit layers from repacking their weights when they are evaluated on a CPU.

    On CPUs with bfloat16 products bitsandbytes repacks them permanently, with rounded scales. After a validation,
    training would then continue with other weights and without gradients.
    """
    for module in model.modules():
        if is_four_bit(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


@torch.no_grad()
def check_read_as_stored(model: nn.Module) -> None:
    """Refuses 4-bit layers that bitsandbytes computes with weights other than the stored ones.

    Its code for CPUs with AVX-512 (seen in 0.50.2) assumes that each row starts a new block. This is wrong if a block
    of 64 weights continues in the next row. Layers of the same shape behave alike, so one layer per shape is checked.

    Raises:
        ConfigError: a layer is misread.
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
                f"{name!r}, whose rows of {width} are not a multiple of its block size {state.blocksize}: train with "
                "lora, or on an accelerator"
            )


@torch.no_grad()
def dequantized(layer: Any, packed: Tensor | None = None) -> Tensor:
    """The stored weight of a 4-bit layer: float32 (out, in), on the CPU.

    Args:
        layer: with its weight and how that was quantized.
        packed: its weight, if the layer itself has only a part.
    """
    # Read as a single row, because some CPUs misread rows that end inside a block (`check_read_as_stored`).
    return _read(layer, torch.Size([1, layer.quant_state.shape.numel()]), packed)


def _read(layer: Any, shape: torch.Size, packed: Tensor | None = None) -> Tensor:
    """Dequantizes the layer's weight as if it had this shape; the result has the layer's own shape."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    weight = layer.weight if packed is None else packed
    state = copy.copy(layer.quant_state)
    state.dtype, state.shape = torch.float32, shape
    return dequantize_4bit(weight.detach(), state).cpu().view(layer.quant_state.shape)

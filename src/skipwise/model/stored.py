"""Checkpoints with quantized weights: dequantize them on loading where possible.

    fp8, mxfp8, mxfp4, metal, compressed-tensors    dequantized by the transformers library while it loads
    bitsandbytes                                    loaded as stored, then dequantized layer by layer
    gptq, awq and the like                          left quantized: they can be evaluated, but not trained

A dequantized model is a plain model, and is saved as one.
"""

import importlib.util
import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.model._transformers import forget_conversions, uneven_blocks_dequantized
from skipwise.model.quantized import dequantized, is_four_bit
from skipwise.model.rotary import text_config

_SETTINGS = "quantization_config"
_BITSANDBYTES = "bitsandbytes"
_PACKAGES = {_BITSANDBYTES: "bitsandbytes", "compressed-tensors": "compressed_tensors"}
# Formats that `unpack_checkpoint` reads.
_UNPACKED_FROM_FILES = ("gptq", "awq")
_IN_BLOCKS = ("fp8", "mxfp8")
_SCALES = ("weight_scale_inv", "weight_scale", "_scales", ".SCB", ".absmax")


def stored_as(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The quantization settings in a checkpoint's config, or None if it is not quantized."""
    settings = getattr(config, _SETTINGS, None) or getattr(text_config(config), _SETTINGS, None)
    return settings if settings is None or isinstance(settings, dict) else settings.to_dict()


def method_of(settings: dict[str, Any]) -> str:
    """The name of the quantization format: `fp8`, `gptq`, ..."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return _BITSANDBYTES
    method = settings.get("quant_method")
    return str(getattr(method, "value", method))


class StoredWeights(NamedTuple):
    """What is known about quantized weights without loading them.

    Attributes:
        method: name of the format.
        is_trainable: whether `load_model` dequantizes the format.
        weight_bytes: stored size in bytes; None if the files are not available locally.
    """

    method: str
    is_trainable: bool
    weight_bytes: int | None


def stored_weights(source: str | Path, config: PreTrainedConfig) -> StoredWeights | None:
    """How the weights of a checkpoint are quantized, or None if they are not.

    Args:
        source: as for `load_model`.
        config: the model's own config, as `AutoConfig` reads it.
    """
    settings = stored_as(config)
    if settings is None:
        return None
    method, sizes = method_of(settings), []
    # The pattern excludes copies of the weights, such as Mistral's `consolidated.safetensors`.
    for path in Path(source).expanduser().glob("model*.safetensors"):
        with path.open("rb") as file:
            # The format is 8 bytes with the header's length, then the header, then the tensors.
            sizes.append(path.stat().st_size - 8 - int.from_bytes(file.read(8), "little"))
    # A Git LFS pointer holds no weights; the size computed from it is not positive.
    known = sum(sizes) if sizes and min(sizes) > 0 else None
    return StoredWeights(method, method == _BITSANDBYTES or _dequantizes(method), known)


def check_trainable(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuses a checkpoint whose weights cannot be trained; reads only its config.

    Args:
        source: as for `load_model`.
        config: the model's own config, as `AutoConfig` reads it.

    Raises:
        ConfigError: the format cannot be dequantized on loading, or the package that reads it is missing. The message
            says what to do.
    """
    stored = stored_weights(source, config)
    if stored is None:
        return
    method = stored.method
    if method in _PACKAGES and importlib.util.find_spec(_PACKAGES[method]) is None:
        raise ConfigError(
            f"model {str(source)!r} is stored as {method}, and the package that reads it is missing: pip install "
            f"{method}",
            page="missing-extra",
        )
    if stored.is_trainable:
        return
    cure = "train the checkpoint that it was made from"
    if method in _UNPACKED_FROM_FILES:
        folder, fetch = repr(str(source)), ""
        if not Path(source).is_dir():
            folder, fetch = f"s({folder})", "from huggingface_hub import snapshot_download as s; "
        cure = (
            f'unpack its weights once, and train NEW: python -c "{fetch}from skipwise.model import '
            f"unpack_checkpoint as u; u({folder}, 'NEW')\""
        )
    raise ConfigError(
        f"model {str(source)!r} is stored as {method}, which cannot be trained: {cure}", page="quantized-checkpoint"
    )


def ask_for_plain_weights(source: str, config: PreTrainedConfig) -> str | None:
    """Sets the config so that the library dequantizes while it loads the model, if it can for this format.

    Returns:
        The name of the format, or None if the model is not quantized.

    Raises:
        UnsupportedModelError: the library does not know the format. It would load the packed values as weights.
    """
    settings = stored_as(config)
    if settings is None:
        return None
    method = method_of(settings)
    if method != _BITSANDBYTES and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model {source!r} is stored as {method}, which the transformers library does not read (it reads "
            f"{', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}): give the checkpoint that it was made from",
            page="quantized-checkpoint",
        )
    if _dequantizes(method):
        setattr(config, _SETTINGS, {**settings, "dequantize": True})
    return method


def blocks_as_stored(method: str | None) -> AbstractContextManager[None]:
    """Corrects what the library makes of partial blocks while it loads a format with a scale per block."""
    return uneven_blocks_dequantized() if method in _IN_BLOCKS else nullcontext()


def make_plain(model: Any, method: str, dtype: str | torch.dtype) -> None:
    """Turns a model loaded from quantized weights into a plain model on the CPU, if its format can be dequantized.

    Args:
        model: loaded with a config that `ask_for_plain_weights` has set; changed in place.
        method: the return value of `ask_for_plain_weights`.
        dtype: the dtype that was asked for.
    """
    if method == _BITSANDBYTES:
        _dequantize_layers(model)
    if method == _BITSANDBYTES or _dequantizes(method):
        forget_quantization(model)
        model.to("cpu")
        if dtype is torch.float32:
            model.float()  # transformers 5.21 leaves dequantized mxfp4 in bfloat16, in which its numbers are exact.


def check_nothing_is_packed(source: str, unexpected: Iterable[str]) -> None:
    """Refuses quantized weights that the config does not declare: the library has loaded them without their scales.

    Args:
        source: the model's name, for the message.
        unexpected: names of tensors in the checkpoint that the model does not have.

    Raises:
        CheckpointError: some of these tensors are scales.
    """
    if scales := sorted(name for name in unexpected if name.endswith(_SCALES)):
        raise CheckpointError(
            f"model {source!r} holds packed weights (scales: {scales[0]} and {len(scales) - 1} more), but its "
            "config.json has no quantization_config: download the checkpoint again, with its own config",
            page="quantized-checkpoint",
        )


def forget_quantization(model: Any) -> None:
    """Removes the marks of quantization from a dequantized model. With them, saving would quantize it again or fail."""
    for holder in (model.config, text_config(model.config)):
        if hasattr(holder, _SETTINGS):
            delattr(holder, _SETTINGS)
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_device_map"):
        if name in vars(model):
            delattr(model, name)
    model.is_quantized = False
    forget_conversions(model)


def _dequantizes(method: str) -> bool:
    """Whether the library can dequantize this format while it loads."""
    settings = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return settings is not None and "dequantize" in inspect.signature(settings.__init__).parameters


@torch.no_grad()
def _dequantize_layers(model: PreTrainedModel) -> None:
    for name, module in list(model.named_modules()):
        layer: Any = module
        if is_four_bit(module):
            weight = dequantized(module)
        elif getattr(getattr(layer, "weight", None), "SCB", None) is not None:
            # int8 rows in which 127 stands for the row's scale (LLM.int8(), arXiv 2208.07339, section 2).
            weight = layer.weight.float() * layer.weight.SCB[:, None] / 127
        else:
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(weight.to(model.dtype))
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))

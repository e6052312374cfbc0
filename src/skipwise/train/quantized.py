"""QLoRA: loading a base in 4 bits, and making a plain model in full precision of what was trained.

The additions are merged into the dequantized weights, not into the original ones: they were trained on the former, and
may compensate for what 4 bits lose. So merged, the logits are within 1e-4 of the trained model's; with the original
weights they are more than a hundred times as far off (docs/results/qlora.md, on one model). The sum is taken in float32
on the CPU, over a base that is loaded again, so that no device holds the whole model in full precision, and nothing is
quantized twice.
"""

from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedModel

from skipwise.config import QloraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.model import FourBits, dequantized, four_bit_layers, four_bits, is_four_bit
from skipwise.train.arguments import mixed_precision
from skipwise.train.tuning import apply_tuning, merged

_BASE = ".base_layer"


def quantization_of(
    config: RunConfig, arguments: "transformers.TrainingArguments", base: PreTrainedConfig
) -> FourBits | None:
    """How a run loads its base; None if it is not quantized."""
    if not isinstance(config.tuning, QloraTuning):
        return None
    compute = mixed_precision(arguments) or run_dtype(config, base)
    # FSDP shards tensors of the dtype that it gathers, and casts others to it.
    storage = compute if config.parallel.shard else torch.uint8
    device: Any = PartialState().device
    return four_bits(config.tuning, device, compute=compute, storage=storage)


def run_dtype(config: RunConfig, base: PreTrainedConfig) -> torch.dtype:
    """Dtype of the parameters that a run does not quantize, and of the model that it leaves."""
    if config.dtype == "auto":
        return base.dtype if isinstance(base.dtype, torch.dtype) else torch.float32
    return getattr(torch, config.dtype)


def share_in_four_bits(skeleton: PreTrainedModel) -> float:
    """The share of a model's weights that would be in 4 bits.

    Raises:
        ConfigError: it is zero.
    """
    layers = four_bit_layers(skeleton)
    if not layers:
        raise ConfigError(
            f"setting 'tuning.kind' is 'qlora', and {type(skeleton).__name__} has no linear layer that bitsandbytes "
            "quantizes; train by lora"
        )
    inside: Any = sum(layer.weight.numel() for layer in layers.values())  # pyright: ignore
    return inside / sum(parameter.numel() for parameter in skeleton.parameters())


@torch.no_grad()
def merged_in_full(tuned: Any, plain: PreTrainedModel, tuning: QloraTuning, dtype: torch.dtype) -> Any:
    """The plain model: dequantized weights, with the additions that were trained on them merged in.

    Args:
        tuned: the trained model, a base in 4 bits with low-rank additions, on any device.
        plain: the same base, not quantized, in float32 on the CPU; it is changed in place.
        tuning: of the run.
        dtype: of the result.

    Returns:
        `plain`, which computes what `tuned` does, up to rounding.
    """
    for name, module in tuned.get_base_model().named_modules():
        if is_four_bit(module):
            layer: Any = plain.get_submodule(name.removesuffix(_BASE))
            layer.weight.copy_(dequantized(module))
    again: Any = apply_tuning(plain, tuning)
    trained = dict(tuned.named_parameters(remove_duplicate=False))
    for name, parameter in again.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(trained[name])
    inner: Any = merged(again)
    return inner.to(dtype)


def give_back(tuned: Any) -> None:
    """Frees the device memory of a trained model, which is unusable afterwards, whoever still refers to it."""
    for module in tuned.modules():
        if is_four_bit(module):
            module.quant_state = module.weight.quant_state = None
    for parameter in tuned.parameters():
        parameter.data, parameter.grad = parameter.data.new_empty(0), None

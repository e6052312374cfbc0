"""The private names of transformers and torch, except those of the Trainer (`train/_trainer.py`) and of attention
kernels (`runtime/_transformers.py`).

Everything here can change with a release of the library. `tests/model/test_contracts.py` asks the library about each
name. `gguf_file.py` replaces the reader of the package gguf.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers.utils.hub import cached_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def attention_of(config: "PreTrainedConfig") -> str:
    """The attention implementation that a model of this config uses: `sdpa`, `eager`, ..."""
    return config._attn_implementation  # pyright: ignore[reportReturnType]


def set_attention(config: "PreTrainedConfig", implementation: str | None) -> None:
    """Sets the implementation in a config and its sub-configs; a model built from it already uses it at once.

    `model.set_attn_implementation` is the library's own way for a built model. For a config it has none.
    """
    config._attn_implementation = implementation


def copy_kernels(config: "PreTrainedConfig", into: "PreTrainedConfig") -> None:
    """Copies the choice of kernels, which `to_dict` leaves out, without that of sub-configs."""
    into._attn_implementation_internal = config._attn_implementation
    into._experts_implementation_internal = config._experts_implementation


def kept_in_float32(model: Any) -> list[str]:
    """Names of modules that the library keeps in float32 when it loads a model in half precision."""
    return list(model._keep_in_fp32_modules or ())


def forget_conversions(model: Any) -> None:
    """Removes the conversions of loading, which saving would run in reverse: it would quantize the weights again.

    Those of the model's family are not lost: without a record the library looks them up by class.
    """
    model._weight_conversions = None


@contextmanager
def saving_in_every_process(model: Any) -> Iterator[None]:
    """Context in which `model.save_pretrained` writes in every process of a group, not in the first alone."""
    model.should_save_on_this_rank = lambda *_, **__: True
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def set_engine(tokenizer: Any, engine: Tokenizer) -> None:
    """Replaces what a fast tokenizer computes with."""
    tokenizer._tokenizer = engine


def find_file(name: str, file: str) -> str | None:
    """Path of a checkpoint's file on this machine, or None if the checkpoint has none of that name.

    Args:
        name: a folder or a hub name.
        file: name of the file.

    Raises:
        OSError: the hub refuses to tell.
    """
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False)


@contextmanager
def uneven_blocks_dequantized() -> Iterator[None]:
    """Corrects the library's dequantization of fp8 weights whose size is not a multiple of the block size.

    The library assumes that blocks divide a weight evenly. With 192 rows and blocks of 128, it multiplies the first 96
    rows by the first block's scale. It rejects 576 rows, which DeepSeek-V3 has.
    """
    import torch
    from torch.nn import functional
    from transformers.integrations import finegrained_fp8

    operation: Any = finegrained_fp8.Fp8Dequantize
    evenly = operation._dequantize_one

    def dequantize(self: Any, quantized: torch.Tensor, scales: torch.Tensor, *more: Any, **how: Any) -> torch.Tensor:
        block = getattr(self.hf_quantizer.quantization_config, "weight_block_size", None)
        if block is None or scales.ndim < 2 or quantized.dtype != torch.float8_e4m3fn:
            return evenly(self, quantized, scales, *more, **how)
        rows, columns = quantized.shape[-2:]
        below, beside = (size * grid for size, grid in zip(block, scales.shape[-2:], strict=True))
        if not (0 <= below - rows < block[0] and 0 <= beside - columns < block[1]):
            return evenly(self, quantized, scales, *more, **how)  # The weight has another block size.
        padded = functional.pad(quantized.float(), (0, beside - columns, 0, below - rows))
        return evenly(self, padded, scales, *more, **how)[..., :rows, :columns].contiguous()

    operation._dequantize_one = dequantize
    try:
        yield
    finally:
        operation._dequantize_one = evenly


int8_product: Any = getattr(torch.ops.aten, "_weight_int8pack_mm", None)
"""`inputs @ (codes * steps[:, None]).T` for bfloat16 inputs (rows, in) and steps (out,) and int8 codes (out, in)."""


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them they are slower than float32."""
    here = torch.cpu.get_capabilities()
    return bool(here.get("avx512_bf16") or here.get("amx_bf16"))

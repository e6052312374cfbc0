"""Checkpoints with quantized weights, and by plain loops the numbers that they stand for.

Each `write_` function copies a plain checkpoint and returns all weights by name, float32, as they are meant to be read.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

_Weight = torch.Tensor
_Stored = dict[str, torch.Tensor]
BLOCK = 16
# What 4 bits of sign, exponent and mantissa (1, 2, 1) stand for: OCP Microscaling Formats 1.0, table 5.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def _packed_copy(
    source: Path,
    folder: Path,
    settings: dict[str, object],
    pack: Callable[[torch.Tensor], tuple[_Stored, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Copies a checkpoint with its linear layers packed.

    Args:
        source: plain.
        folder: where to.
        settings: `quantization_config` of the copy.
        pack: gives, for the weight of a layer, tensors by the ending of their name, and the numbers that they mean.

    Returns:
        All weights by name, float32, as they are meant to be read.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    stored: _Stored = {}
    meant: _Stored = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = meant[name] = weight.float()
            continue
        tensors, meant[name] = pack(weight)
        stored |= {name.removesuffix("weight") + ending: tensor for ending, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    set_config(folder, settings)
    return meant


def write_fp8(source: Path, folder: Path, block: int = BLOCK) -> dict[str, torch.Tensor]:
    """Float8 with a scale for each block of rows and columns (Qwen3-FP8 has 128; the last block may have fewer)."""

    def pack(weight: torch.Tensor) -> tuple[_Stored, torch.Tensor]:
        rows, columns = weight.shape
        scales = torch.zeros(-(-rows // block), -(-columns // block))
        packed, whole = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, columns)
        for i in range(len(scales)):
            for j in range(scales.shape[1]):
                at = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
                scales[i, j] = weight[at].abs().max() / 448
                packed[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
                whole[at] = packed[at].float() * scales[i, j]
        return {"weight": packed, "weight_scale_inv": scales}, whole

    settings: dict[str, object] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head"],
    }
    return _packed_copy(source, folder, settings, pack)


def write_compressed_tensors(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Float8 with a scale for each row, as the package compressed-tensors stores it."""

    def pack(weight: torch.Tensor) -> tuple[_Stored, torch.Tensor]:
        scales = weight.abs().amax(dim=1, keepdim=True) / 448
        packed = (weight / scales).to(torch.float8_e4m3fn)
        whole = torch.stack([row.float() * scale for row, scale in zip(packed, scales, strict=True)])
        return {"weight": packed, "weight_scale": scales}, whole

    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    settings: dict[str, object] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return _packed_copy(source, folder, settings, pack)


def write_mxfp4(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The experts of a gpt-oss in mxfp4: two numbers per byte, and a power of two for each 32 of a row."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    stored = load_file(source / "model.safetensors")
    meant = {name: weight.float() for name, weight in stored.items()}
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, outside = stored.pop(name).shape
        shape = (experts, outside, inside // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, shape, generator=generator, dtype=torch.uint8)
        for expert in range(experts):
            for row in range(outside):
                for column in range(inside):
                    group, at = divmod(column, 32)
                    byte = int(blocks[expert, row, group, at // 2])
                    value = E2M1[byte >> 4 if at % 2 else byte & 15]
                    meant[name][expert, column, row] = value * 2.0 ** (int(scales[expert, row, group]) - 127)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    set_config(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return meant


def write_bitsandbytes(source: Path, folder: Path, bits: int) -> dict[str, torch.Tensor]:
    """bitsandbytes' 4 bits (nf4) or 8 bits, as the transformers library writes them."""
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.float32)
    shapes = {name: weight.shape for name, weight in load_file(source / "model.safetensors").items()}
    shutil.copytree(source, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    meant = {}
    for name, shape in shapes.items():
        if bits == 8 and name.replace(".weight", ".SCB") in stored:
            scales = stored[name.replace(".weight", ".SCB")]
            meant[name] = torch.stack(
                [row.float() * scale / 127 for row, scale in zip(stored[name], scales, strict=True)]
            )
        elif bits == 4 and f"{name}.absmax" in stored:
            packed, values = stored[name].flatten().tolist(), stored[f"{name}.quant_map"].tolist()
            scales, number = stored[f"{name}.absmax"].tolist(), shape.numel()
            # The first of two is in the upper half of a byte.
            halves = [packed[i // 2] & 15 if i % 2 else packed[i // 2] >> 4 for i in range(number)]
            meant[name] = torch.tensor([values[half] * scales[i // 64] for i, half in enumerate(halves)]).view(shape)
        else:
            meant[name] = stored[name].float()
    return meant


def write_gptq(source: Path, folder: Path, bits: int = 4, version: str = "gptq") -> dict[str, torch.Tensor]:
    """Random numbers in linear layers, as GPTQ packs them, with inputs in shuffled groups."""
    less = 1 if version == "gptq" else 0
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": True, "checkpoint_format": version}

    def pack(numbers: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "qweight": packed_words(numbers.T, bits, range(32 // bits)).T.contiguous(),
            "qzeros": packed_words((zeros - less) % 2**bits, bits, range(32 // bits)),
        }

    return _write_in_groups(source, folder, settings, bits, pack, shuffled=True)


def write_awq(source: Path, folder: Path) -> dict[str, torch.Tensor]:
    """As `write_gptq`, as AWQ packs 4 bits: lowest first, columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(numbers: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"qweight": packed_words(numbers, 4, order), "qzeros": packed_words(zeros, 4, order)}

    return _write_in_groups(source, folder, settings, 4, pack, shuffled=False)


def _write_in_groups(
    source: Path,
    folder: Path,
    settings: dict[str, object],
    bits: int,
    words: Callable[[torch.Tensor, torch.Tensor], _Stored],
    shuffled: bool,
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def pack(weight: torch.Tensor) -> tuple[_Stored, torch.Tensor]:
        outputs, inputs = weight.shape
        groups = inputs // 16
        numbers = torch.randint(0, 2**bits, (inputs, outputs), generator=generator)
        zeros = torch.randint(0, 2**bits, (groups, outputs), generator=generator)
        scales = (torch.rand(groups, outputs, generator=generator) * 0.01 + 0.001).half()
        group_of = torch.randperm(inputs, generator=generator) % groups if shuffled else torch.arange(inputs) // 16
        whole = torch.zeros(outputs, inputs)
        for i in range(inputs):
            for j in range(outputs):
                group = group_of[i]
                whole[j, i] = float(numbers[i, j] - zeros[group, j]) * float(scales[group, j])
        packed = words(numbers, zeros) | {"scales": scales} | ({"g_idx": group_of.int()} if shuffled else {})
        return packed, whole

    return _packed_copy(source, folder, settings, pack)


def packed_words(numbers: torch.Tensor, bits: int, order: Sequence[int]) -> torch.Tensor:
    """Rows of whole numbers in words of 32 bits, lowest bits first, in this order of columns within a word."""
    rows, columns = numbers.shape
    each = len(order)
    words = [
        [sum(int(numbers[i, j * each + order[k]]) << (bits * k) for k in range(each)) for j in range(columns // each)]
        for i in range(rows)
    ]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def set_config(folder: Path, quantization: dict[str, object]) -> None:
    """Says in a checkpoint's config how its weights are stored."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))

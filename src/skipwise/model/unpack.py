"""Convert GPTQ and AWQ checkpoints to plain weights. This needs only their files, and no accelerator.

    GPTQ   qweight (in * bits / 32, out), qzeros (groups, out * bits / 32), scales (groups, out), g_idx (in)
    AWQ    qweight (in, out / 8), qzeros (groups, out / 8), scales (groups, out); 4 bits, columns in another order

Both pack integers q into 32-bit words, lowest bits first. A weight is `(q - zero) * scale`, with one zero and one scale
per group of inputs and output. GPTQ files of version 1 store each zero minus one.

Source: GPTQ, arXiv 2210.17323, as AutoGPTQ and GPTQModel pack it; AWQ, arXiv 2306.00978, as AutoAWQ packs it (gemm).
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skipwise.bars import Bar
from skipwise.errors import CheckpointError, ConfigError
from skipwise.files import new_folder

_SHARD_BYTES = 4 * 10**9
_PACKED = (".qweight", ".qzeros", ".scales", ".g_idx")
_INDEX = "model.safetensors.index.json"
_OF_PACKED_WEIGHTS = (_INDEX, "quantize_config.json", "quant_config.json")
# The column, of eight, that each 4-bit field of a word belongs to; lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_checkpoint(source: str | Path, output: str | Path) -> Path:
    """Writes a copy of a GPTQ or AWQ checkpoint with plain weights, in the dtype that its config names.

    Args:
        source: the checkpoint's folder.
        output: a folder that does not exist yet.

    Returns:
        The output folder.

    Raises:
        ConfigError: the checkpoint is in neither format, or the output exists.
        CheckpointError: a layer is packed in an unknown way, or a file cannot be read or written.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if output.exists():
        raise ConfigError(f"{str(output)!r} exists; name a new folder", page="output-taken")
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        weight = _reader_of(config.pop("quantization_config", None) or {})
        with new_folder(output) as complete:
            for file in source.iterdir():
                if file.is_file() and file.suffix != ".safetensors" and file.name not in _OF_PACKED_WEIGHTS:
                    shutil.copy(file, complete)
            (complete / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float16")
            _write(_plain_tensors(source, weight, dtype), complete)
    except (OSError, SafetensorError, JSONDecodeError) as error:
        raise CheckpointError(
            f"{str(source)!r} cannot be read, or {str(output)!r} written: {error}", page="cannot-write"
        ) from error
    return output


def _reader_of(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    method = settings.get("quant_method")
    if method == "awq":
        return awq_weight
    if method == "gptq":
        is_second = settings.get("checkpoint_format") == "gptq_v2"
        return lambda packed: gptq_weight(packed, zero_offset=0 if is_second else 1)
    raise ConfigError(
        f"the checkpoint is stored as {method}; give a checkpoint that is stored as gptq or awq",
        page="quantized-checkpoint",
    )


def gptq_weight(packed: Mapping[str, Tensor], *, zero_offset: int) -> Tensor:
    """The (out, in) float32 weight, from a layer's `qweight`, `qzeros`, `scales` and optional `g_idx`."""
    scales, qweight = packed["scales"], packed["qweight"]
    groups, num_out = scales.shape
    bits = 32 * packed["qzeros"].shape[1] // num_out
    if bits not in (2, 4, 8) or (len(packed["qzeros"]), qweight.shape[1]) != scales.shape:
        raise ValueError(f"{bits} bits in words of shape {tuple(qweight.shape)}; only 2, 4 and 8 bits are supported")
    numbers = _unpacked(qweight.T, bits).T
    zeros = (_unpacked(packed["qzeros"], bits) + zero_offset) & (2**bits - 1)
    group_of = packed.get("g_idx")
    if group_of is None:
        group_of = torch.arange(len(numbers)) // (len(numbers) // groups)
    return ((numbers - zeros[group_of]) * scales.float()[group_of]).T.contiguous()


def awq_weight(packed: Mapping[str, Tensor]) -> Tensor:
    """The (out, in) float32 weight, from a layer's `qweight`, `qzeros` and `scales`."""
    scales, qweight = packed["scales"], packed["qweight"]
    groups, num_out = scales.shape
    if qweight.shape[1] * 8 != num_out or len(qweight) % groups:
        raise ValueError(f"words of shape {tuple(qweight.shape)}; only AWQ's gemm layout with 4 bits is supported")
    place = torch.tensor(_AWQ_ORDER).argsort()
    numbers, zeros = (
        _unpacked(packed[name], 4).view(-1, num_out // 8, 8)[..., place].reshape(-1, num_out)
        for name in ("qweight", "qzeros")
    )
    group_of = torch.arange(len(numbers)) // (len(numbers) // groups)
    return ((numbers - zeros[group_of]) * scales.float()[group_of]).T.contiguous()


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Unpacks (rows, columns) 32-bit words to (rows, columns * 32 / bits) integers, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).flatten(1)


def _plain_tensors(
    source: Path, weight: Callable[[Mapping[str, Tensor]], Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of a checkpoint with its name; packed layers become plain weights."""
    files = [safe_open(path, framework="pt") for path in sorted(source.glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    stems = {name.removesuffix(".qweight") for name in where if name.endswith(".qweight")}
    for name in Bar(sorted(where), desc=f"unpacking {source}", unit="tensor"):
        stem, dot, part = name.rpartition(".")
        if stem not in stems or dot + part not in _PACKED:
            tensor = where[name].get_tensor(name)
            yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor
        elif part == "qweight":
            names = {part[1:]: stem + part for part in _PACKED if stem + part in where}
            packed = {part: where[each].get_tensor(each) for part, each in names.items()}
            try:
                plain = weight(packed)
            except (KeyError, IndexError, RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"layer {stem!r} of {str(source)!r} is packed in an unknown way: {error}",
                    page="quantized-checkpoint",
                ) from error
            yield f"{stem}.weight", plain.to(dtype)


def _write(tensors: Iterator[tuple[str, Tensor]], output: Path) -> None:
    """Writes tensors one by one into shards of bounded size, and then their index."""
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    number = written = 0

    def close() -> None:
        nonlocal number, shard
        number += 1
        file = f"model-{number:05}.safetensors"
        save_file(shard, output / file, {"format": "pt"})
        index.update(dict.fromkeys(shard, file))
        shard = {}

    for name, tensor in tensors:
        if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > _SHARD_BYTES:
            close()
        shard[name] = tensor
        written += tensor.nbytes
    close()
    (output / _INDEX).write_text(json.dumps({"metadata": {"total_size": written}, "weight_map": index}, indent=2))

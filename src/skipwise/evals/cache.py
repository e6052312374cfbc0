"""Samples that were measured before, kept by the content of everything they depend on.

    <cache>/evals/<key>/<process>.jsonl      one line a sample: its index and the sample

The key hashes the model's weights, tables and settings, not its path, so that the same checkpoint costs nothing
wherever it lies, and another one behind the same path is measured anew; and the code that makes samples, so that no
record mixes two versions of it. Each process appends to a file of its own as soon as a sample is there: what an
interrupted run has measured is not measured again.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
import transformers

from skipwise import __version__
from skipwise.model import attention_of
from skipwise.records.results import Sample

# Packages that samples are made by.
_CODE = ("evals", "runtime", "records")
_HASHED_BYTES = 64 * 2**20
# Settings that loading and saving change, and nothing is computed from. The type of numbers is hashed with each tensor.
_INCIDENTAL = ("architectures", "transformers_version", "dtype", "torch_dtype")


class SampleCache:
    """Samples on disk.

    Args:
        folder: where they are kept; by default `evals` in `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        root = Path(os.environ.get("SKIPWISE_CACHE") or "~/.cache/skipwise").expanduser()
        self.folder = Path(folder) if folder is not None else root / "evals"

    def read(self, key: str) -> dict[int, Sample]:
        """All samples of a key by index; a line that a crash cut short is passed over."""
        samples: dict[int, Sample] = {}
        for file in sorted((self.folder / key).glob("*.jsonl")):
            # Bytes: a crash may cut a letter in two, and texts have more ends of line than a file of JSON has.
            for line in file.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    samples[entry["index"]] = entry["sample"]
                except (ValueError, TypeError, KeyError):
                    continue
        return samples

    def writer(self, key: str) -> IO[str]:
        """A file of this process for samples of a key; `write_sample` adds to it."""
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{os.uname().nodename}-{os.getpid()}.jsonl").open("a", encoding="utf-8")
        # Begins a line of its own, should an earlier process of this number have been cut off within one.
        file.write("\n")
        return file


def write_sample(file: IO[str], index: int, sample: Sample) -> None:
    """Adds one sample and hands it to the system at once."""
    file.write(json.dumps({"index": index, "sample": sample}, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def cache_key(**parts: Any) -> str:
    """Key of everything that samples depend on, as JSON values; versions of the libraries join them."""
    parts["versions"] = library_versions()
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def library_versions() -> dict[str, str]:
    """Versions of what computes samples."""
    return {"skipwise": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def hash_code(task: type) -> str:
    """SHA-256 of the sources that samples are made by, and of a task's own module, wherever that lies."""
    return _hash_files(frozenset({getattr(sys.modules[task.__module__], "__file__", None) or ""}))


@cache
def _hash_files(files: frozenset[str]) -> str:
    digest = hashlib.sha256()
    own = (file for package in _CODE for file in (Path(__file__).parents[1] / package).rglob("*.py"))
    for file in sorted({*own, *(Path(name) for name in files if name)}):
        digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """SHA-256 of a model's class, settings, end tokens, parameters and buffers: rotary tables are among the buffers.

    Where it was loaded from is no part of it, nor whether it is split over processes: all of them call this then.
    """
    from torch.distributed.tensor import DTensor

    # FSDP gives each model that it splits a class of its own, named so.
    digest = hashlib.sha256(type(model).__name__.removeprefix("FSDP").encode())
    settings: Mapping[str, Any] = model.config.to_dict()
    settings = {name: value for name, value in settings.items() if name not in _INCIDENTAL and name[0] != "_"}
    settings["attention"] = str(attention_of(model.config))
    settings["end_tokens"] = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    # Additions that are not merged: their strength is no parameter.
    settings["additions"] = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    digest.update(json.dumps(settings, sort_keys=True, default=_as_text).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole: Any = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        flat = whole.reshape(-1).contiguous().view(torch.uint8)
        for begin in range(0, flat.numel(), _HASHED_BYTES):
            # Bit for bit, piece by piece: a large tensor of an accelerator is not copied as a whole.
            digest.update(flat[begin : begin + _HASHED_BYTES].cpu().numpy().data)
    return digest.hexdigest()


def _as_text(value: Any) -> str:
    return str(sorted(value, key=str) if isinstance(value, set | frozenset) else value)

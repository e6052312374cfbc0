"""A cache of samples by the content of everything they depend on.

    <cache>/evals/<key>/<process>.jsonl      one line per sample: its index and the sample
    <cache>/evals/<key>.npy                  NLLs of one input

The key hashes the model's weights, tables and settings, not its path: a copy of a checkpoint finds its samples, and
another checkpoint at the same path does not. It also hashes the code that makes samples. Each process appends every
sample to its own file at once, so that an interrupted run can continue.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from skipwise import __version__
from skipwise.files import cache_folder
from skipwise.model import attention_of
from skipwise.records.results import Sample

# The packages that make samples.
_CODE = ("evals", "runtime", "records")
_HASHED_BYTES = 64 * 2**20
# Settings that loading and saving change, and that no number depends on. The dtype is hashed with each tensor.
_INCIDENTAL = ("architectures", "transformers_version", "dtype", "torch_dtype")


class SampleCache:
    """Samples on disk.

    Args:
        folder: their folder; the default is `evals` in `$SKIPWISE_CACHE` or `~/.cache/skipwise`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        root = cache_folder()
        self.folder = Path(folder) if folder is not None else root / "evals"

    def read(self, key: str) -> dict[int, Sample]:
        """All samples of a key by index, without lines that a crash truncated."""
        samples: dict[int, Sample] = {}
        for file in sorted((self.folder / key).glob("*.jsonl")):
            # As bytes: a crash may cut a character in two, and `splitlines` knows more line ends than JSON lines do.
            for line in file.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    samples[entry["index"]] = entry["sample"]
                except (ValueError, TypeError, KeyError):
                    continue
        return samples

    def add(self, key: str, samples: Mapping[int, Sample]) -> None:
        """Appends samples of a key, by index, to this process's file.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        if not samples:
            return
        lines = (
            json.dumps({"index": index, "sample": sample}, ensure_ascii=False, allow_nan=False)
            for index, sample in samples.items()
        )
        # An empty line first: an earlier process with the same number may have crashed within a line.
        text = "\n".join(["", *lines, ""])
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{os.uname().nodename}-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)

    def read_array(self, key: str) -> np.ndarray | None:
        """The array of a key, or None."""
        try:
            return np.load(self.folder / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def keep_array(self, key: str, array: np.ndarray) -> None:
        """Writes the array of a key, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / f"{key}-{os.uname().nodename}-{os.getpid()}.half"
        with half.open("wb") as file:
            np.save(file, array)
        half.replace(self.folder / f"{key}.npy")


def cache_key(**parts: Any) -> str:
    """The key of everything that samples depend on, given as JSON values, and of the libraries' versions."""
    parts["versions"] = library_versions()
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute samples."""
    return {"skipwise": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def hash_code(task: type) -> str:
    """SHA-256 of the packages that make samples and of a task's own module."""
    return _hash_files(frozenset({getattr(sys.modules[task.__module__], "__file__", None) or ""}))


@cache
def _hash_files(files: frozenset[str]) -> str:
    digest = hashlib.sha256()
    own = (file for package in _CODE for file in (Path(__file__).parents[1] / package).rglob("*.py"))
    for file in sorted({*own, *(Path(name) for name in files if name)}):
        digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """SHA-256 of a model's class, settings, end tokens, parameters and buffers, which include rotary tables.

    It does not depend on the model's path, nor on whether it is split over processes; if so, all of them must call it.
    """
    from torch.distributed.tensor import DTensor

    # FSDP gives each model that it splits a class of its own with this prefix.
    digest = hashlib.sha256(type(model).__name__.removeprefix("FSDP").encode())
    settings: Mapping[str, Any] = model.config.to_dict()
    settings = {name: value for name, value in settings.items() if name not in _INCIDENTAL and name[0] != "_"}
    settings["attention"] = str(attention_of(model.config))
    settings["end_tokens"] = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    # The scale of an adapter is not a parameter.
    settings["additions"] = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    digest.update(json.dumps(settings, sort_keys=True, default=_as_text).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole: Any = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        flat = whole.reshape(-1).contiguous().view(torch.uint8)
        for begin in range(0, flat.numel(), _HASHED_BYTES):
            # In pieces, so that a large tensor is not copied from an accelerator as a whole.
            digest.update(flat[begin : begin + _HASHED_BYTES].cpu().numpy().data)
    return digest.hexdigest()


def _as_text(value: Any) -> str:
    return str(sorted(value, key=str) if isinstance(value, set | frozenset) else value)

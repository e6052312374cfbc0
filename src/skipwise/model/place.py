"""Where a model is: a folder, a hub name or a GGUF file. This module loads no library, so it can check early."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from skipwise.errors import CheckpointError, ConfigError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
"""Suffixes of weights that can run code when they are opened."""
TO_SAFETENSORS = (
    'if you trust where they come from, convert them once: python -c "from transformers import AutoModelForCausalLM as '
    "M; M.from_pretrained('OLD', use_safetensors=False).save_pretrained('NEW')\", copy the tokenizer files, load NEW"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model is, in the terms of transformers.

    Attributes:
        name: a folder, or a name on the hub.
        gguf_file: name of the GGUF file in that folder; None for a checkpoint.
    """

    name: str
    gguf_file: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the model is a local folder; otherwise its name is one on the hub."""
        return Path(self.name).is_dir()

    @property
    def file_arguments(self) -> dict[str, str]:
        """Keyword arguments of `from_pretrained` for a GGUF file; empty otherwise."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    def __str__(self) -> str:
        return str(Path(self.name) / self.gguf_file) if self.gguf_file else self.name


EMBEDDED = "embedded"
"""Name of the small model that comes with the package."""

_EMBEDDED_FOLDER = Path(__file__).parents[1] / "demo" / "base"


def find_place(source: str | Path) -> ModelSource:
    """Finds what `source` means, without a look at weights or the hub.

    Args:
        source: a checkpoint folder, a hub name (`org/name`), the path of a `.gguf` file, or `embedded`.

    Raises:
        CheckpointError: nothing is there, or it is no model.
        ConfigError: it is a GGUF file and the `gguf` package is not installed.
    """
    path = Path(source).expanduser()
    if str(source) == EMBEDDED and not path.exists():
        path = _EMBEDDED_FOLDER
    if path.suffix == ".gguf":
        return _place_of_gguf(path)
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(
                f"model is {str(path)!r}, a pickle, which can run any code; {TO_SAFETENSORS}", page="untrusted-code"
            )
        raise CheckpointError(
            f"model is the file {str(path)!r}; give the folder around it, or a .gguf file", page="not-found"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"model is {str(path)!r}, which has no config.json; give the folder that save_pretrained wrote"
            )
        return ModelSource(name=str(path))
    if not _HUB_NAME.fullmatch(str(source)):
        raise CheckpointError(
            f"model is {str(source)!r} and no such folder exists; give a checkpoint folder, a hub name such as "
            "org/name, or a .gguf file",
            page="not-found",
        )
    return ModelSource(name=str(source))


def named_path(source: str | Path) -> Path:
    """The path of a model whose last part is a name; `.` and `..` are resolved, since they have none."""
    path = Path(source).expanduser()
    return path.resolve() if path.name in ("", "..") else path


def path_beside(source: str | Path, ending: str) -> Path:
    """Output path for what is made from a model: beside it, with an ending; for a hub name, in this folder."""
    path = named_path(source)
    folder = path.parent if path.exists() else Path()
    return folder / f"{path.name.removesuffix('.gguf')}-{ending}"


def _place_of_gguf(path: Path) -> ModelSource:
    if not path.is_file():
        raise CheckpointError(
            f"model is {str(path)!r} and no such file exists; check the path of the .gguf file", page="not-found"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"model is {str(path)!r} and the gguf package is missing; run: pip install 'skipwise[gguf]'",
            page="missing-extra",
        )
    return ModelSource(name=str(path.parent), gguf_file=path.name)

"""GGUF files to run: found where an export left them, or exported; and what a file says of its windows and tokens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from skipwise.errors import CheckpointError, ConfigError
from skipwise.export.earlier import is_export_of
from skipwise.export.gguf import read_gguf
from skipwise.export.gguf_tokenizer import set_splits
from skipwise.model.gguf_file import read_once
from skipwise.model.place import ModelSource, find_place
from skipwise.model.tokenizer import load_tokenizer


class GgufWindows(NamedTuple):
    """What a GGUF file says of its window.

    Attributes:
        original: of pre-training, in tokens.
        target: most tokens of a text.
        cache_bytes: of the KV cache in 16 bits, for each token; None if not all layers cache alike.
    """

    original: int
    target: int
    cache_bytes: int | None


def gguf_file(
    source: str,
    folder: Path,
    told: Callable[[str], None],
    *,
    dtype: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The GGUF file of a model: the source itself, an earlier export of it, or a new one.

    Args:
        source: a .gguf file, or a model that `export` takes.
        folder: of its export, there already or to be made. Where it has another export, one beside it is taken, with
            the number format in its name.
        told: called with what is done, before it is.
        dtype: number format of the weights; None takes any that is there, else the format that `export` chooses.
        base, trust_remote_code: as for `export`.

    Raises:
        ConfigError: the source is a file and a number format is given, or both folders hold something else.
        CheckpointError, UnsupportedModelError: as for `export`.
    """
    place = find_place(source)
    if place.gguf_file is not None:
        if dtype is not None:
            raise ConfigError(f"--dtype is {dtype!r}, and {source!r} has its number format already; leave --dtype out")
        return Path(str(place))
    folders = (folder, folder.with_name(f"{folder.name}-{dtype or 'f16'}"))
    for one in folders:
        if is_export_of(one, source, to="gguf", dtype=dtype):
            file = next(one.glob("*.gguf"))
            told(f"{file} is the GGUF file of {source}, made before")
            return file
    free = next((one for one in folders if not one.exists()), None)
    if free is None:
        raise ConfigError(
            f"{str(folders[0])!r} and {str(folders[1])!r} are there and neither is a GGUF export of {source!r} as it "
            "is now; put them aside",
            page="output-taken",
        )
    told(f"exporting {source} to {free}, once: a GGUF file, which is loaded again and compared")
    from skipwise.export import export

    export(source, to="gguf", output=free, dtype=dtype, base=base, trust_remote_code=trust_remote_code, progress=True)
    return next(free.glob("*.gguf"))


def read_windows(file: Path) -> GgufWindows:
    """What a GGUF file says of its window.

    Raises:
        CheckpointError: it cannot be read, or does not say.
    """
    try:
        with read_once(_place(file)):
            entries = read_gguf(file).entries
        target = int(entries["context_length"])
        original = int(entries.get("rope.scaling.original_context_length") or target)
        return GgufWindows(min(original, target), target, _cache_bytes(entries))
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"GGUF file {str(file)!r} cannot be read ({error}); make or get it again") from error


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, which splits text as llama.cpp does.

    Raises:
        UnsupportedModelError: it splits text in a way that is not known here.
        CheckpointError: it cannot be read.
    """
    tokenizer = load_tokenizer(_place(file))
    with read_once(_place(file)):
        set_splits(tokenizer, file)
    return tokenizer


def _place(file: Path) -> ModelSource:
    return ModelSource(name=str(file.parent), gguf_file=file.name)


def _cache_bytes(entries: Mapping[str, Any]) -> int | None:
    heads = entries.get("attention.head_count_kv")
    if not isinstance(heads, int) or "attention.sliding_window" in entries:
        return None
    width = entries["embedding_length"] // entries["attention.head_count"]
    widths = (entries.get(f"attention.{name}_length", width) for name in ("key", "value"))
    return 2 * entries["block_count"] * heads * sum(widths)

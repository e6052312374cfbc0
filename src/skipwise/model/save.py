"""Write checkpoint folders that both transformers 5 and readers of the transformers 4 format understand."""

import json
import shutil
import stat
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from skipwise.errors import CheckpointError
from skipwise.files import new_folder, replace_file
from skipwise.imports import without
from skipwise.model._transformers import saving_in_every_process
from skipwise.model.extend import decoder_key, scaled_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import with_both_eras

CONFIG_FILE = "config.json"
KEPT_CONFIG_FILE = "config.before-calibration.json"
# The config keys that a new attention factor changes, apart from those of the transformers 4 format.
_CHANGED = (
    "rope_parameters",
    "original_attention_factor",
    "original_max_position_embeddings",
    "original_rope_theta",
)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    *,
    state_dict: dict[str, Any] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes a checkpoint folder that both transformers 5 and readers of the transformers 4 format understand.

    A new folder appears only when it is complete. In an existing folder, files are replaced in place.

    Args:
        model: as returned by `load_model`, trained or not.
        tokenizer: the model's tokenizer; None writes none.
        folder: where to write; missing parents are created.
        state_dict: weights by name to write instead of the model's own: the gathered weights of a sharded model, or
            only some of them.
        shard_bytes: size limit of a weights file; None for the transformers library's default.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    limit: dict[str, Any] = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    try:
        with nullcontext(folder) if folder.exists() else new_folder(folder) as written:
            # Asked whether it is DeepSpeed's, accelerate would load that for a model that no engine has touched.
            with quiet_transformers(), without("deepspeed"):
                model.save_pretrained(written, state_dict=state_dict, **limit)
                if tokenizer is not None:
                    tokenizer.save_pretrained(written)
            share_weights(written)
            _add_legacy_keys(model.config, written)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint folder {str(folder)!r} cannot be written ({error}); choose another",
            page="cannot-write",
        ) from error


def save_in_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    parts: Iterable[dict[str, Tensor]],
) -> None:
    """Writes a checkpoint folder like that of `save_model`, by all processes of a group together.

    Each part becomes a file. As many parts as there are processes are gathered, and then written at the same time; a
    process holds its own of them, and the one that is being gathered.

    Args:
        model: the model; its own weights are not looked at.
        tokenizer: as for `save_model`.
        folder: where to write; it exists. All processes see the same one.
        parts: weights by name, the same parts in all processes; the names of all parts are those of the whole model.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = Path(folder)
    try:
        if rank == 0:
            _without_parts(folder)
        torch.distributed.barrier()
        written: dict[tuple[int, str], tuple[list[str], int]] = {}
        own: tuple[int, dict[str, Tensor]] | None = None
        number = -1
        for number, part in enumerate(filter(None, parts)):
            if number % processes == rank:
                own = number, part
            del part
            if number % processes == processes - 1 and own is not None:
                written |= _written_part(model, folder, *own)
                own = None
        if own is not None:
            written |= _written_part(model, folder, *own)
        gathered: list[Any] = [None] * processes
        torch.distributed.all_gather_object(gathered, written)
        if rank == 0:
            _put_together(folder, {key: value for each in gathered for key, value in each.items()})
            if tokenizer is not None:
                with quiet_transformers():
                    tokenizer.save_pretrained(folder)
            share_weights(folder)
            _add_legacy_keys(model.config, folder)
        torch.distributed.barrier()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint folder {str(folder)!r} cannot be written ({error}); make room or repair the disk",
            page="cannot-write",
        ) from error


def _written_part(
    model: PreTrainedModel, folder: Path, number: int, part: dict[str, Tensor]
) -> dict[tuple[int, str], tuple[list[str], int]]:
    """Writes a part beside the others; names and bytes by its number and file. The first has all but the weights."""
    aside, written = folder / f".part-{number}", {}
    with saving_in_every_process(model), quiet_transformers(), without("deepspeed"):
        model.save_pretrained(aside, state_dict=part)
    for file in sorted(aside.iterdir()):
        if file.suffix == ".safetensors":
            written[number, file.name] = _names_and_bytes(file)
            file.rename(folder / f".part-{number}-{file.name}")
        elif number == 0 and file.name != SAFE_WEIGHTS_INDEX_NAME:
            file.replace(folder / file.name)
    shutil.rmtree(aside)
    return written


def _put_together(folder: Path, written: dict[tuple[int, str], tuple[list[str], int]]) -> None:
    """Gives the files of all parts their names, and writes the index."""
    weight_map, total = {}, 0
    for index, ((number, name), (names, size)) in enumerate(sorted(written.items()), start=1):
        final = f"model-{index:05}-of-{len(written):05}.safetensors"
        (folder / f".part-{number}-{name}").replace(folder / final)
        weight_map |= dict.fromkeys(names, final)
        total += size
    entry = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", "utf-8")


def _without_parts(folder: Path) -> None:
    """Deletes what an interrupted `save_in_parts` has left."""
    for left in folder.glob(".part-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _names_and_bytes(weights: Path) -> tuple[list[str], int]:
    """The names of the tensors in a safetensors file, and their size."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return [name for name in header if name != "__metadata__"], weights.stat().st_size - 8 - length


def save_config(config: PreTrainedConfig, folder: str | Path) -> None:
    """Writes `config.json` as `save_model` does, without weights.

    Args:
        config: of the whole model, not only of its decoder.
        folder: where to write; created if it does not exist.
    """
    config.save_pretrained(folder)
    _add_legacy_keys(config, Path(folder))


def share_weights(folder: str | Path) -> None:
    """Gives the weights the file permissions of the config. safetensors makes them readable only to their owner."""
    config = next(Path(folder).glob("*config.json"))
    for weights in Path(folder).glob("*.safetensors"):
        weights.chmod(stat.S_IMODE(config.stat().st_mode))


def _add_legacy_keys(config: PreTrainedConfig, folder: Path) -> None:
    path = folder / CONFIG_FILE
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(_readable(written, decoder_key(config)), encoding="utf-8")


def save_attention_scale(folder: str | Path, config: PreTrainedConfig, scale: float, *, keep: bool = False) -> None:
    """Writes a new attention factor into the config of a checkpoint folder, and changes nothing else.

    The file is replaced atomically: a reader finds either the old config or the new one.

    Args:
        folder: the checkpoint.
        config: the model's config, as returned by `read_config`.
        scale: multiplies the attention factor that the model was trained with.
        keep: keep a copy of the config from before the first calibration as `config.before-calibration.json`.

    Raises:
        CheckpointError: the config cannot be read or written.
        ConfigError: the config cannot hold an attention factor for the model's interpolation.
    """
    path, key = Path(folder) / CONFIG_FILE, decoder_key(config)
    new = scaled_config(config, scale).to_dict()
    changed = {name: value for name, value in (new[key] if key else new).items() if name in _CHANGED}
    try:
        before = path.read_text(encoding="utf-8")
        written = json.loads(before)
        decoder = {**(written[key] if key else written), **changed}
        decoder.pop("rope_scaling", None)  # Readers would use this old entry instead of the changed one.
        written = {**written, key: decoder} if key else decoder
        if keep and "original_attention_factor" not in (json.loads(before)[key] if key else json.loads(before)):
            replace_file(path.with_name(KEPT_CONFIG_FILE), before)
        replace_file(path, _readable(written, key))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read or written ({error}); give a whole checkpoint", page="cannot-write"
        ) from error


def _readable(written: dict[str, Any], key: str | None) -> str:
    """The text of a `config.json` for readers of both formats; `key` as `decoder_key` returns it."""
    readable = {**written, key: with_both_eras(written[key])} if key else with_both_eras(written)
    return json.dumps(readable, indent=2, sort_keys=True) + "\n"

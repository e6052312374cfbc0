"""The checkpoints of a run in training order, and loading one."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from skipwise.config import QloraTuning
from skipwise.errors import CheckpointError, ConfigError
from skipwise.model import LoadedModel, four_bits, load_model, original_window, read_config
from skipwise.names import first_line
from skipwise.records.runs import Run
from skipwise.train.durable import damage, sealed_checkpoints
from skipwise.train.quantized import merged_in_full, run_dtype
from skipwise.train.tuning import load_additions, merged

_ADAPTER_FILE = "adapter_config.json"


class RunCheckpoint(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        step: optimizer steps done.
        folder: its folder; the run's own for the finished model.
    """

    step: int
    folder: Path


def run_checkpoints(folder: Path) -> list[RunCheckpoint]:
    """All complete checkpoints of a run, the finished model last.

    Raises:
        ConfigError: it holds no run, or no checkpoint yet.
    """
    found = {step: RunCheckpoint(step, path) for step, path in sealed_checkpoints(folder).items()}
    if (record := Run.open(folder).record()) is not None:
        # Replaces the last checkpoint, which has the same model.
        found[record["steps"]] = RunCheckpoint(record["steps"], folder)
    if not found:
        raise ConfigError(
            f"{str(folder)!r} holds no checkpoint of a run (checkpoint-<step>/, skipwise.json); give the output folder "
            "of 'skipwise extend', or leave out --all-checkpoints"
        )
    return sorted(found.values())


def load_checkpoint(checkpoint: RunCheckpoint, run_folder: Path, **how: Any) -> LoadedModel:
    """Loads a checkpoint as a plain model, with low-rank additions merged into the weights they were trained on.

    Args:
        checkpoint: one of `run_checkpoints`.
        run_folder: the run's output folder.
        **how: `dtype`, `attention` and `trust_remote_code` as for `load_model`.

    Raises:
        CheckpointError: it is damaged.
        CheckpointError, UnsupportedModelError, ConfigError: as for `load_model`.
    """
    if checkpoint.folder != run_folder and (reason := damage(checkpoint.folder)) is not None:
        raise CheckpointError(f"{checkpoint.folder.name} is damaged: {reason}; delete it, or evaluate another")
    if not (checkpoint.folder / _ADAPTER_FILE).exists():
        return load_model(checkpoint.folder, **how)
    config = Run.open(run_folder).config()
    if config is None:
        raise CheckpointError(
            f"{checkpoint.folder.name} is a LoRA adapter, and no run.yaml beside it names its base model",
            page="wrong-base",
        )
    base = read_config(config.model, original=config.original, trust_remote_code=how.get("trust_remote_code", False))
    window = config.resolve_window(original_window(base))

    def load(**other: Any) -> LoadedModel:
        built_in = {"interpolation": config.build_interpolation(), "window": window, "original": config.original}
        return load_model(config.model, **built_in, **{**how, **other})

    tuning, loaded = config.tuning, load()
    try:
        if isinstance(tuning, QloraTuning):
            # The additions belong to weights that were quantized from the run's own dtype.
            dtype = run_dtype(config, base)
            device = torch.accelerator.current_accelerator() or torch.device("cpu")
            quantized = load(dtype=dtype, quantization=four_bits(tuning, device, compute=dtype))
            tuned = load_additions(quantized.model, checkpoint.folder)
            model = merged_in_full(tuned, load(dtype="float32").model, tuning, loaded.model.dtype)
        else:
            model = merged(load_additions(loaded.model, checkpoint.folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"adapter {str(checkpoint.folder)!r} does not fit {config.model!r}: {first_line(error)}",
            page="wrong-base",
        ) from error
    return LoadedModel(model.eval(), loaded.tokenizer)

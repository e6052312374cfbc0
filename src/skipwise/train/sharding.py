"""Which engines divide a run, and models that DeepSpeed shards: loaded whole, trained so, gathered at the end."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers.integrations import deepspeed

from skipwise.config import RunConfig
from skipwise.config.parallel import refuse_to_calibrate
from skipwise.errors import ConfigError
from skipwise.train.durable import OPTIMIZER_SHARDS
from skipwise.train.tuning import is_adapted


def is_zero3(arguments: "transformers.TrainingArguments") -> bool:
    """Whether DeepSpeed shards parameters too: stage 3 of ZeRO."""
    return arguments.deepspeed is not None and arguments.hf_deepspeed_config.is_zero3()


def check_sharding(config: RunConfig, arguments: "transformers.TrainingArguments") -> None:
    """Refuses two engines at a time, and what needs the whole model of a sharded one.

    Raises:
        ConfigError: one of these.
    """
    if config.parallel.shard and arguments.deepspeed is not None:
        raise ConfigError(
            "setting 'parallel.shard' is true, and training.deepspeed splits the model too: leave one of them out",
            page="parallel-run",
        )
    if config.calibrate and is_zero3(arguments):
        refuse_to_calibrate()


def check_processes(config: RunConfig, arguments: "transformers.TrainingArguments", checkpoint: Path | None) -> None:
    """Refuses shards for one process, and a checkpoint that another engine has written in its own form.

    Raises:
        ConfigError: one of these.
    """
    if config.parallel.shard and arguments.world_size == 1:
        raise ConfigError(
            "setting 'parallel.shard' is true, and this run has one process: give --launch fsdp2 --nproc with a number "
            "of processes",
            page="parallel-run",
        )
    if checkpoint is None:
        return
    in_shards = (checkpoint / OPTIMIZER_SHARDS).is_dir()
    if config.parallel.shard and not in_shards:
        raise ConfigError(
            f"setting 'parallel.shard' is true, and {checkpoint.name} was not written by --launch fsdp2: go on with "
            "the engine that the run was begun with",
            page="run-changed",
        )
    if in_shards and arguments.deepspeed is not None:
        raise ConfigError(
            f"training.deepspeed is set, and {checkpoint.name} was written by --launch fsdp2: go on with that",
            page="run-changed",
        )


@contextlib.contextmanager
def loaded_whole(arguments: "transformers.TrainingArguments") -> Iterator[None]:
    """Context in which models are built whole.

    Else transformers would let DeepSpeed shard each weight as it is made, and a sharded model without an engine can
    neither be probed nor given low-rank additions.
    """
    if arguments.deepspeed is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def keep_for_the_loss(model: Any, arguments: "transformers.TrainingArguments") -> None:
    """Tells ZeRO's stage 3 that the loss, computed in the whole model's forward pass, needs the head's weights.

    DeepSpeed gathers weights only for the forward pass of the layer that owns them.

    Args:
        model: as given to the Trainer, with or without low-rank additions.
        arguments: of the run.
    """
    if not is_zero3(arguments):
        return
    import deepspeed as engine  # pyright: ignore[reportMissingImports]

    plain = model.get_base_model() if is_adapted(model) else model
    for child in plain.children():
        if child is not plain.base_model:
            for parameter in child.parameters():
                engine.zero.register_external_parameter(model, parameter)


def gathered(trainer: "transformers.Trainer", rebuild: Callable[[], Any]) -> Any:
    """The trained model, whole, in the memory of the first process; in the others, the sharded model.

    Args:
        trainer: that has trained a sharded model; all processes call this.
        rebuild: builds the model as it was before training, on the CPU.
    """
    state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return trainer.model
    whole: Any = rebuild()
    kept: set[str] = set()
    if is_adapted(whole):
        # Frozen weights are as they were built, and engines do not gather them in 4 bits.
        named = list(whole.named_parameters(remove_duplicate=False))
        kept = {name for name, parameter in named if not parameter.requires_grad}
        state = {name: state[name] for name, parameter in named if parameter.requires_grad and name in state}
    # Some engines name tied weights only once.
    missing, unexpected = whole.load_state_dict(state, strict=False)
    shared = tied_names(whole) | kept
    if lost := [name for name in missing if name not in shared] + unexpected:
        raise RuntimeError(f"weights of the split model are not those of the whole one: {', '.join(lost[:3])}")
    return whole


def tied_names(model: nn.Module) -> set[str]:
    """All names of the parameters that have more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}

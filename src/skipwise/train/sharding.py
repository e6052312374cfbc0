"""Models that are split over processes, by FSDP or DeepSpeed: loaded whole, trained in shards, gathered at the end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import transformers
from torch import nn
from transformers.integrations import deepspeed

from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.train.tuning import is_adapted


def is_sharded(arguments: "transformers.TrainingArguments") -> bool:
    """Whether no process holds the whole model while it is trained: FSDP, or stage 3 of ZeRO."""
    return bool(arguments.fsdp) or (arguments.deepspeed is not None and arguments.hf_deepspeed_config.is_zero3())


def check_sharding(config: RunConfig, arguments: "transformers.TrainingArguments") -> None:
    """Refuses what a split model cannot do.

    Raises:
        ConfigError: FSDP on a CPU, or a calibration after training.
    """
    if arguments.fsdp and arguments.device.type == "cpu":
        raise ConfigError(
            "setting 'training.fsdp' splits the model over accelerators, and this run computes on the CPU, where it "
            "would stay whole in each process: leave it out"
        )
    if config.calibrate and is_sharded(arguments):
        raise ConfigError(
            "setting 'calibrate' reads long documents with the whole model, and this run splits it over processes: "
            "leave it out, and call `skipwise calibrate` on what the run leaves"
        )


@contextlib.contextmanager
def loaded_whole(arguments: "transformers.TrainingArguments") -> Iterator[None]:
    """Within, models are built whole: transformers would hand DeepSpeed each weight as it is made, and a model of
    shards without their engine can neither be probed nor given low-rank additions."""
    if arguments.deepspeed is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def keep_for_the_loss(model: Any, arguments: "transformers.TrainingArguments") -> None:
    """Tells ZeRO's stage 3 that the loss, which is taken in the whole model's forward pass, needs the head's weights.

    DeepSpeed holds weights only around the layer that owns them; the gradient of the chunked loss is made before.

    Args:
        model: what is given to the Trainer, with or without low-rank additions.
        arguments: of the run.
    """
    if arguments.deepspeed is None or not arguments.hf_deepspeed_config.is_zero3():
        return
    import deepspeed as engine  # pyright: ignore[reportMissingImports]

    plain = model.get_base_model() if is_adapted(model) else model
    for child in plain.children():
        if child is not plain.base_model:
            for parameter in child.parameters():
                engine.zero.register_external_parameter(model, parameter)


def gathered(trainer: "transformers.Trainer", rebuild: Callable[[], Any]) -> Any:
    """The trained model, whole, in the memory of the first process; in the others the one that was trained.

    Args:
        trainer: that has trained a split model; all processes call this.
        rebuild: the model as it was before training, on the CPU.
    """
    state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return trainer.model
    whole: Any = rebuild()
    kept: set[str] = set()
    if is_adapted(whole):
        # What is frozen is as it is built; in 4 bits it is more than an engine gathers.
        named = list(whole.named_parameters(remove_duplicate=False))
        kept = {name for name, parameter in named if not parameter.requires_grad}
        state = {name: state[name] for name, parameter in named if parameter.requires_grad and name in state}
    # Of weights that are shared some engines name one only.
    missing, unexpected = whole.load_state_dict(state, strict=False)
    shared = tied_names(whole) | kept
    if lost := [name for name in missing if name not in shared] + unexpected:
        raise RuntimeError(f"weights of the split model are not those of the whole one: {', '.join(lost[:3])}")
    return whole


def tied_names(model: nn.Module) -> set[str]:
    """Names of parameters that are another's under a second name, each of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}

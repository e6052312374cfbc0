"""The run's `training` settings over the paper's, and `transformers.TrainingArguments` from them."""

import dataclasses
import logging
import os
from typing import Any

import torch

from skipwise.config import RunConfig
from skipwise.config.defaults import GLOBAL_BATCH, LEARNING_RATE, STEPS, WARMUP_STEPS
from skipwise.errors import ConfigError
from skipwise.imports import without_four_bits
from skipwise.launch import deepspeed_settings
from skipwise.names import did_you_mean
from skipwise.train.context import num_groups
from skipwise.train.sharding import check_sharding

with without_four_bits():  # What belongs to the Trainer loads peft.
    from transformers import TrainingArguments

logger = logging.getLogger("skipwise")

_KNOWN = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
_SWITCHES = {f.name for f in dataclasses.fields(TrainingArguments) if f.type in (bool, bool | None)}
# Later releases of transformers 5 renamed it, and warn about the old name.
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _KNOWN else "gradient_checkpointing"

_DEFAULTS: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "per_device_train_batch_size": 1,
    CHECKPOINTING: True,
    f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
    "optim": "adamw_torch_fused",
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
}
# Settings of TrainingArguments that a run makes elsewhere, and where.
_SAID_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "num_train_epochs": "training.max_steps",
    "eval_strategy": "validation.every_steps",
    "eval_steps": "validation.every_steps",
    "eval_on_start": "validation, which always measures before training",
    "resume_from_checkpoint": "the flag --resume",
    "parallelism_config": "parallel.context",
    "fsdp": "parallel.shard; one that was begun with it cannot be resumed by this version",
    "fsdp_config": "parallel.shard",
    "remove_unused_columns": "nothing; items have no unused columns",
}
# Variables by which `accelerate launch` passes DeepSpeed's settings to its processes.
_LAUNCHED_DEEPSPEED = ("CONFIG_FILE", "ZERO_STAGE", "OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE")


def training_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that training runs with: the run's own over the paper's.

    Raises:
        ConfigError: a name that `transformers.TrainingArguments` does not have or that is set elsewhere, or a value of
            the wrong kind.
    """
    for name in config.training:
        if name in _SAID_ELSEWHERE:
            raise ConfigError(f"setting 'training.{name}' is not for here; a run says it by {_SAID_ELSEWHERE[name]}")
        if name not in _KNOWN:
            hint = did_you_mean(name, _KNOWN).strip() or "see transformers.TrainingArguments"
            raise ConfigError(f"setting 'training.{name}' is unknown; {hint}")
    settings = {**_DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available()}
    for name, value in config.training.items():
        # YAML reads the word `no` as false.
        value = "no" if name.endswith("_strategy") and value is False else value
        settings[name.replace("gradient_checkpointing", CHECKPOINTING)] = value
    for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"):
        value = settings.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"setting 'training.{name}' is {value!r}; give a whole number of 1 or more")
    for name in sorted(_SWITCHES.intersection(config.training)):
        value = config.training[name]
        # Text such as "maybe" is true in Python, and would turn the switch on.
        if not isinstance(value, bool | None):
            raise ConfigError(f"setting 'training.{name}' is {value!r}; give true or false")
    for name in ("learning_rate", "weight_decay", "max_grad_norm"):
        value = settings.get(name, 0.0)
        # NaN compares as False, so it is refused too.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"setting 'training.{name}' is {value!r}; give a number of 0 or more, such as 2e-5")
    at_a_time = settings["per_device_train_batch_size"] * num_groups(config)
    # The paper's ten of a thousand steps; a tenth of few steps, which would all be warm-up.
    settings.setdefault("warmup_steps", min(WARMUP_STEPS, settings["max_steps"] // 10))
    settings.setdefault("gradient_accumulation_steps", max(1, GLOBAL_BATCH // at_a_time))
    return settings


def training_arguments(config: RunConfig) -> TrainingArguments:
    """`training_settings` as the Trainer takes them, with validation before training.

    Raises:
        ConfigError: settings that cannot be used together or on this machine, or need a package that is missing.
    """
    settings, every = training_settings(config), config.validation.every_steps
    settings |= _launched_engine(settings)
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1 and not settings.get("bf16")  # Which is refused below.
    if (settings.get("deepspeed") or several) and not torch.accelerator.is_available():
        # By itself, accelerate would take each process for the only one.
        settings.setdefault("use_cpu", True)
    if every is None:
        every = max(1, round(settings["max_steps"] / 4))
    try:
        arguments = TrainingArguments(
            **settings,
            output_dir=str(config.output_folder),
            seed=config.seed,
            data_seed=config.seed,
            eval_strategy="steps" if every else "no",
            eval_steps=every or None,
            eval_on_start=True,
            remove_unused_columns=False,
        )
        if arguments.report_to:
            from transformers.integrations import get_reporting_integration_callbacks

            # The Trainer makes its trackers last; made here once, a missing package is found before any work.
            for tracker in get_reporting_integration_callbacks(arguments.report_to):
                tracker()
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        if settings.get("bf16") and not settings.get("use_cpu") and not torch.accelerator.is_available():
            raise ConfigError(
                "setting 'training.bf16' is true, and there is no accelerator here to compute in it: leave it out, "
                "or add training.use_cpu: true to do so on the CPU",
                page="parallel-run",
            ) from error
        raise ConfigError(f"settings under 'training' cannot be used: {' '.join(str(error).split())}") from error
    check_sharding(config, arguments)
    if arguments.n_gpu > 1:
        from skipwise.train._trainer import use_one_accelerator

        logger.warning(
            f"{arguments.n_gpu} GPUs are visible, and one is used. "
            f"To use all: torchrun --nproc-per-node {arguments.n_gpu} -m skipwise extend ..."
        )
        use_one_accelerator(arguments)
    return arguments


def mixed_precision(arguments: TrainingArguments) -> torch.dtype | None:
    """The 16-bit dtype that the Trainer computes in by autocast, or None; `accelerate launch` may set it as well."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    name = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else launched
    # With fp8, the rest is computed in bfloat16.
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}.get(name)


def _launched_engine(settings: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed as `accelerate launch` was told to use it, as settings of `training`.

    Raises:
        ConfigError: it was told to use FSDP, by which it would split a model that this run has split already.
    """
    asked = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")}
    if asked["FSDP"]:
        raise ConfigError(
            "accelerate launch is told to use FSDP, which a run does by itself: start it by skipwise extend --launch "
            "fsdp2, or by torchrun with --set parallel.shard=true",
            page="parallel-run",
        )
    if settings.get("deepspeed") or not asked["DEEPSPEED"]:
        return {}
    told = {name: os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", "none") for name in _LAUNCHED_DEEPSPEED}
    if (file := told.pop("CONFIG_FILE")) != "none":
        return {"deepspeed": file}
    stage = told.pop("ZERO_STAGE")
    if left_out := sorted(name.lower() for name, value in told.items() if value != "none"):
        logger.warning(f"of accelerate launch {', '.join(left_out)} is left out; it takes it by deepspeed_config_file")
    return {"deepspeed": deepspeed_settings(2 if stage == "none" else int(stage))}

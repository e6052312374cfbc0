"""Engines that train one model in several processes: what `training` says for each, in the engine's own settings.

ddp     each process holds the whole model
fsdp2   parameters, gradients and optimizer split, by PyTorch (FSDP of version 2)
zero2   gradients and optimizer split, by DeepSpeed
zero3   parameters, too
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipwise.errors import ConfigError

DEFAULT_PORT = 29400
SECONDS_TO_STOP = 600
LAUNCHED = "SKIPWISE_LAUNCHED"
"""Tells the processes by which flags they were started."""

# Settings of `training` that choose an engine; one at most is there.
ENGINE_SETTINGS = ("fsdp", "fsdp_config", "deepspeed")


def fsdp_settings() -> dict[str, Any]:
    """What transformers hands to FSDP: layer by layer, split again after each forward pass, checkpoints whole."""
    return {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
    }


def deepspeed_settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's own config for a stage of ZeRO; what is `auto` the Trainer fills in from the run."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        # So that checkpoints, and the model at the end, hold whole weights.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto"),
        **dict.fromkeys(("gradient_accumulation_steps", "gradient_clipping"), "auto"),
    }


ENGINES: dict[str, dict[str, dict[str, Any]]] = {
    "ddp": {},
    "fsdp2": {"fsdp_config": fsdp_settings()},
    "zero2": {"deepspeed": deepspeed_settings(2)},
    "zero3": {"deepspeed": deepspeed_settings(3)},
}
"""Of each engine the setting of `training` that takes a file, and what stands in the file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a run is started in several processes, by torchrun's elastic agent.

    Attributes:
        engine: a name of `ENGINES`.
        processes: on each machine.
        machines: how many; the same command is given on each of them.
        rendezvous: host, or host:port, that all of several machines reach; one of them.
        max_restarts: how often all processes are started anew after one has failed; they go on from the last
            checkpoint.

    Raises:
        ConfigError: for an unknown engine, numbers below one, or several machines without a place to meet.
    """

    engine: str
    processes: int
    machines: int = 1
    rendezvous: str | None = None
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"--launch is {self.engine!r}; known: {', '.join(ENGINES)}")
        for flag, value, least in (
            ("--nproc", self.processes, 1),
            ("--nnodes", self.machines, 1),
            ("--max-restarts", self.max_restarts, 0),
        ):
            if value < least:
                raise ConfigError(f"{flag} is {value}; give {least} or more")
        if self.machines > 1 and not self.rendezvous:
            raise ConfigError(
                f"--nnodes is {self.machines}, and the machines need a place to meet: give --rdzv HOST or HOST:PORT "
                "with the name of one of them, the same on all"
            )
        if self.rendezvous and not self.rendezvous.rpartition(":")[2].isdecimal() and ":" in self.rendezvous:
            raise ConfigError(f"--rdzv is {self.rendezvous!r}; give HOST or HOST:PORT, such as node0:{DEFAULT_PORT}")

    def write(self, training: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Writes the engine's config file, and gives a run's `training` settings with it in place.

        Args:
            training: the run's own settings.
            folder: where to; it is made.

        Raises:
            OSError: it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in training.items() if name not in ENGINE_SETTINGS}
        for name, content in ENGINES[self.engine].items():
            file = folder / f"{self.engine}.json"
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            settings[name] = str(file)
        if "fsdp_config" in settings:
            settings["fsdp"] = True
        return settings

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that starts the processes on this machine, each of them `skipwise` with these arguments."""
        here = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        if self.machines == 1:
            here += ["--standalone"]
        else:
            host = self.rendezvous or ""
            place = host if ":" in host else f"{host}:{DEFAULT_PORT}"
            here += ["--nnodes", str(self.machines), "--rdzv-backend", "c10d", "--rdzv-endpoint", place]
            here += ["--rdzv-id", "skipwise"]
        # A step, and a checkpoint of all of a large model, take longer than the half minute that torchrun would wait.
        here += ["--shutdown-timeout", str(SECONDS_TO_STOP)]
        return [*here, "--max-restarts", str(self.max_restarts), "-m", "skipwise", *arguments]

    def flags(self) -> list[str]:
        """The flags of `skipwise extend` that start as many again, on this machine."""
        several = ["--nnodes", str(self.machines), "--rdzv", self.rendezvous or ""] if self.machines > 1 else []
        return ["--launch", self.engine, "--nproc", str(self.processes), *several]

    def environment(self) -> dict[str, str]:
        """This process's environment, with what the processes need in it."""
        environment = dict(os.environ) | {LAUNCHED: shlex.join(self.flags())}
        if self.machines == 1:
            # Otherwise torch 2.13 shares one store over all restarts, and the new may find the addresses of the dead.
            environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        # Of torch's own calls, whose next names DeepSpeed does not use yet.
        environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.distributed.c10d_logger")
        return environment

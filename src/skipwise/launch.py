"""Engines for distributed training, their settings, and the command that starts the processes.

ddp     each process holds the whole model
fsdp2   parameters, gradients and optimizer state sharded by PyTorch (FSDP2): `parallel.shard`
zero2   gradients and optimizer state sharded by DeepSpeed
zero3   parameters, gradients and optimizer state sharded by DeepSpeed
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipwise.errors import ConfigError

DEFAULT_PORT = 29400
SECONDS_TO_STOP = 600
LAUNCHED = "SKIPWISE_LAUNCHED"
"""Environment variable with the flags that the processes were started with."""


def deepspeed_settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's config for a ZeRO stage; the Trainer fills in values that are `auto`."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        # Checkpoints and the final model then hold full weights.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto"),
        **dict.fromkeys(("gradient_accumulation_steps", "gradient_clipping"), "auto"),
    }


ENGINES: dict[str, dict[str, Any] | None] = {
    "ddp": None,
    "fsdp2": None,
    "zero2": deepspeed_settings(2),
    "zero3": deepspeed_settings(3),
}
"""For each engine, DeepSpeed's config; None for an engine of PyTorch's own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run in several processes, started by torchrun's elastic agent.

    Attributes:
        engine: a key of `ENGINES`.
        processes: number of processes per machine.
        machines: number of machines; each is given the same command.
        rendezvous: host or host:port of one of the machines, reachable from all; needed for several machines.
        max_restarts: how often all processes are restarted after one fails; they resume from the last checkpoint.

    Raises:
        ConfigError: an unknown engine, a number out of range, or several machines without a valid rendezvous.
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
                f"--nnodes is {self.machines}, and several machines need a rendezvous: give --rdzv HOST or HOST:PORT "
                "of one of them, the same on all",
                page="parallel-run",
            )
        if self.rendezvous and not self.rendezvous.rpartition(":")[2].isdecimal() and ":" in self.rendezvous:
            raise ConfigError(
                f"--rdzv is {self.rendezvous!r}; give HOST or HOST:PORT, such as node0:{DEFAULT_PORT}",
                page="parallel-run",
            )

    def write(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Writes DeepSpeed's config file if the engine is DeepSpeed's, and returns a run's settings with this engine.

        Args:
            settings: of a run, with any engine or none.
            folder: folder for the file; created if missing.

        Raises:
            OSError: the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        training = {name: value for name, value in settings.get("training", {}).items() if name != "deepspeed"}
        if (content := ENGINES[self.engine]) is not None:
            file = folder / f"{self.engine}.json"
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            training["deepspeed"] = str(file)
        parallel = {**settings.get("parallel", {}), "shard": self.engine == "fsdp2"}
        return {**settings, "training": training, "parallel": parallel}

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that starts this machine's processes, each running `skipwise` with these arguments."""
        here = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        if self.machines == 1:
            here += ["--standalone"]
        else:
            host = self.rendezvous or ""
            place = host if ":" in host else f"{host}:{DEFAULT_PORT}"
            here += ["--nnodes", str(self.machines), "--rdzv-backend", "c10d", "--rdzv-endpoint", place]
            here += ["--rdzv-id", "skipwise"]
        # A step and a full checkpoint of a large model take longer than torchrun's default of 30 seconds.
        here += ["--shutdown-timeout", str(SECONDS_TO_STOP)]
        return [*here, "--max-restarts", str(self.max_restarts), "-m", "skipwise", *arguments]

    def flags(self) -> list[str]:
        """The flags of `skipwise extend` that start the same processes again on this machine."""
        several = ["--nnodes", str(self.machines), "--rdzv", self.rendezvous or ""] if self.machines > 1 else []
        return ["--launch", self.engine, "--nproc", str(self.processes), *several]

    def environment(self) -> dict[str, str]:
        """Environment for the processes: this process's own, with additions."""
        environment = dict(os.environ) | {LAUNCHED: shlex.join(self.flags())}
        if self.machines == 1:
            # Otherwise torch 2.13 keeps one store over all restarts, and new processes may find addresses of dead ones.
            environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        # DeepSpeed still uses names that torch has deprecated.
        environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.distributed.c10d_logger")
        return environment

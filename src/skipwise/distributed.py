"""The state of this process in a distributed run."""

import atexit
from datetime import timedelta

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The rank and device of this process; on CPUs if there is no accelerator."""
    close_group_at_exit()
    # A rank without work waits for ranks that evaluate long inputs; the default timeout is ten minutes.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


def close_group_at_exit() -> None:
    """Closes the process group at interpreter exit, whoever created it. May be called repeatedly.

    An open group would be destroyed with the process's static objects. If a gloo thread still runs then, a process that
    has finished its work ends by SIGABRT ("terminate called without an active exception"), and its launcher reports a
    failed run.
    """
    atexit.unregister(_close_group)
    atexit.register(_close_group)


def _close_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

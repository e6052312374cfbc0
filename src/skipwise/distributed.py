"""This process among those of a distributed run."""

import atexit
from datetime import timedelta

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """This process and its device; where there is no accelerator, of a run on CPUs."""
    close_group_at_exit()
    # A rank that has nothing to measure waits for one that has a long input; the default gives up after ten minutes.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


def close_group_at_exit() -> None:
    """Has the process group closed before the interpreter ends, whoever started it and however often this is called.

    A group that still stands then is torn down among the process's static objects; now and then a thread of gloo is
    still running, and a process that has done all its work ends by SIGABRT ("terminate called without an active
    exception"), which its launcher reports as a failed run.
    """
    atexit.unregister(_close_group)
    atexit.register(_close_group)


def _close_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""Peak memory, of an accelerator's allocator or of this process."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """The most memory in use since this object was made; `of` says what is counted."""

    def __init__(self, device: torch.device) -> None:
        self._highest = 0
        self._read, self.of = _counter(device)

    def look(self) -> int:
        """The peak up to now, in bytes."""
        self._highest = max(self._highest, self._read())
        return self._highest


def _counter(device: torch.device) -> tuple[Callable[[], int], str]:
    """A function that reads the peak from now on, or memory in use where no peak is kept; and what it counts."""
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "reset_peak_memory_stats"):
        backend.reset_peak_memory_stats(device)
        return lambda: backend.max_memory_allocated(device), f"peak of {device.type} allocator"
    if device.type != "cpu" and hasattr(backend, "driver_allocated_memory"):
        return backend.driver_allocated_memory, f"{device.type} driver, looked up"
    with contextlib.suppress(OSError):
        # 5 sets the high-water mark of the resident set back to what is resident now (Linux, proc_pid_clear_refs(5)).
        _CLEAR_REFS.write_text("5")
        _high_water_bytes()
        return _high_water_bytes, "high-water mark of process"
    return lambda: psutil.Process().memory_info().rss, "process, looked up"


def _high_water_bytes() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no VmHWM")

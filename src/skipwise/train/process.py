"""What a run takes from the machine: peak memory, and signals that ask it to stop."""

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil
import torch

_NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "no memory for")


def reset_peak_bytes() -> None:
    """Starts measuring the accelerator's peak memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak of the accelerator's memory, or of the whole process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def room_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of its accelerator, or of the machine within its limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    here = psutil.Process().memory_info()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    rooms = [psutil.virtual_memory().available // beside]
    with contextlib.suppress(ImportError):
        import resource

        for limit, taken in ((resource.RLIMIT_AS, here.vms), (resource.RLIMIT_DATA, getattr(here, "data", 0))):
            soft = resource.getrlimit(limit)[0]
            if soft != resource.RLIM_INFINITY:
                rooms.append(soft - taken)
    rooms += rooms_of_groups()
    return max(0, min(rooms))


def rooms_of_groups(told: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the control groups of this process, and those around them, leave of memory; empty without limits.

    Pages of files that the system would take back do not count as taken.
    """
    rooms: list[int] = []
    with contextlib.suppress(OSError):
        for line in told.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if "memory" not in kinds and kinds:
                continue
            limit, taken = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            )
            top = root / kinds if kinds else root
            group = top / path.lstrip("/")
            for each in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    most, used = int((each / limit).read_text()), int((each / taken).read_text())
                    stat = dict(line.split() for line in (each / "memory.stat").read_text().splitlines())
                    rooms.append(most - used + int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))
                if each == top:
                    break
    return rooms


def free_memory() -> None:
    """Returns unreferenced memory before something large is made."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the machine ran out of memory; on a CPU, torch says so only in the message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in str(error).lower() for phrase in _NO_MEMORY
    )


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM call the handler. Only the main thread can listen; others change nothing."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, replaced in before.items():
            signal.signal(number, replaced)

"""What a run takes of the machine: seconds, peak memory, and how it is told to stop."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

_NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "no memory for")


class Stopwatch:
    """Seconds since it was made, and the peak of memory."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._begun

    @property
    def peak_bytes(self) -> int:
        """As `peak_bytes`."""
        return peak_bytes()


def peak_bytes() -> int:
    """Peak of the accelerator's memory, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> None:
    """Gives back what nobody holds any more, before something large is made anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, of an accelerator or of the machine; on a CPU torch says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in str(error).lower() for phrase in _NO_MEMORY
    )


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM call the handler; only the main thread can listen, elsewhere nothing changes."""
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

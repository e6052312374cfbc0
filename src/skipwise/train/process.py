"""What a run takes of the machine: seconds, peak memory, one heap for all threads, and how it is told to stop."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch


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
        """Peak of the accelerator's memory, or of the whole process where there is none."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        import resource
        import sys

        # Kibibytes on Linux, bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def use_one_malloc_arena(*, gradient_checkpointing: bool) -> None:
    """Lets all threads allocate from one heap, where the C library is glibc; elsewhere does nothing.

    Autograd runs the backward pass in a thread of its own, and glibc gives each thread its own heap: what the forward
    pass frees would then never serve the backward pass. On a CPU that is several hundred megabytes of a training step.

    Args:
        gradient_checkpointing: also keeps activations out of the heap, each in a mapping of its own. Recomputing mixes
            short-lived blocks with those that stay, and the heap fills with holes; without it there are few, and the
            time that mapping costs buys nothing.
    """
    import ctypes

    arena_max, mmap_threshold, trim_threshold = -8, -3, -1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_threshold, (2 if gradient_checkpointing else 8) * 2**20)
        mallopt(trim_threshold, 16 * 2**20)

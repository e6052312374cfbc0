"""Work in a thread that ends with it, so that its pool of OpenMP threads ends, too."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# An interrupt may end the thread before it says that it is over.
_LOOK_SECONDS = 0.1


def in_own_thread(work: Callable[[], Result]) -> Result:
    """Does the work in a new thread, waits for it, and returns what it returned, or raises what it raised.

    For what a process computes on its main thread before another thread computes for good. Each thread that runs
    PyTorch's CPU operators gets a pool of OpenMP threads, which lives as long as the thread. With a second pool there
    are more OpenMP threads than cores; GNU's OpenMP, which PyTorch has on Linux, then lets idle ones sleep at once, and
    each operator has to wake them. Decoding with small operators took twice as long.

    An interrupt (Ctrl-C), or whatever else a signal raises here, ends the work at its next Python instruction. The
    thread is over when this returns or raises: a process that ends while a thread is inside PyTorch is aborted.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            is_over.set()

    thread = threading.Thread(target=run, name="skipwise-start", daemon=True)
    stopped: BaseException | None = None
    thread.start()
    # Not `join`: one that is interrupted takes the thread for ended (Python 3.11).
    while thread.is_alive():
        try:
            is_over.wait(_LOOK_SECONDS)
        except BaseException as error:
            stopped = error
            _raise_in(thread, KeyboardInterrupt)
    if stopped is not None:
        raise stopped
    if errors:
        raise errors[0]
    return results[0]


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raises an error in a thread, at its next Python instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))

"""Work in a thread that ends with it, so that its pool of OpenMP threads ends, too."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Result:
    """Does the work in a new thread, waits for it, and returns what it returned, or raises what it raised.

    For what a process computes on its main thread before another thread computes for good. Each thread that runs
    PyTorch's CPU operators gets a pool of OpenMP threads, which lives as long as the thread. With a second pool there
    are more OpenMP threads than cores; GNU's OpenMP then lets idle ones sleep at once, and each operator has to wake
    them. Decoding with small operators took twice as long.

    An interrupt (Ctrl-C) ends the work at its next Python instruction.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="skipwise-start", daemon=True)
    thread.start()
    try:
        # Not `join`: one that is interrupted takes the thread for ended (Python 3.11).
        wait([done])
    except KeyboardInterrupt:
        # The interpreter must not end while a thread is inside PyTorch: the process would be aborted.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
        )
        wait([done])
        raise
    thread.join()
    return done.result()

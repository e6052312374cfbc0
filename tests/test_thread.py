"""Work before a server computes: its OpenMP threads end with it, by the kernel's own list of threads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skipwise.runtime.thread import in_own_thread

TASKS = Path("/proc/self/task")

COUNTED = """
import os, time
import torch
from skipwise.runtime.thread import in_own_thread

def product():
    return torch.ones(512, 512) @ torch.ones(512, 512)

def tasks(most):
    # A thread that was joined leaves the kernel's list a moment later.
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) <= most:
            break
        time.sleep(0.01)
    return len(os.listdir("/proc/self/task"))

at_first = tasks(0)
in_own_thread(product)
after = tasks(at_first)
product()
print(at_first, after, tasks(0))
"""

INTERRUPTED = """
import signal, time
import torch
from skipwise.runtime.thread import in_own_thread

# A process that a shell starts in the background ignores interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
deadline = time.monotonic() + 60

def work():
    try:
        print("at work", flush=True)
        while time.monotonic() < deadline:
            torch.ones(64, 64) @ torch.ones(64, 64)
    finally:
        print("the work is over", flush=True)
        time.sleep(PAUSE)

try:
    in_own_thread(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_work_returns_and_raises() -> None:
    def fails() -> None:
        raise LookupError("of the work")

    assert in_own_thread(lambda: 3) == 3
    with pytest.raises(LookupError, match="of the work"):
        in_own_thread(fails)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the kernel does not list a process's threads here")
def test_the_threads_of_operators_end_with_the_work() -> None:
    """What the main thread computes itself keeps a thread for good: that is what the work must not leave."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    at_first, after, on_main = map(int, done.stdout.split())
    assert after == at_first
    assert on_main > at_first


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_ends_the_work_and_no_process_is_aborted(times: int) -> None:
    """Twice, as an impatient user does it: the second comes while the work is ending."""
    script = INTERRUPTED.replace("PAUSE", "1.0" if times == 2 else "0.0")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "the work is over\n"
            if times == 2:
                process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60)[0] == "interrupted\n"
        finally:
            process.kill()
    assert process.returncode == 0

"""Processes that begin with torch and skipwise imported, which costs each process of its own seconds.

They are forked from a server that imports once for all tests, and are processes as any other: signals, exit codes and
environment are theirs.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "peft",
        "pytest",
        "skipwise.cli.extend",
        "skipwise.doctor",
        "skipwise.train.extending",
        "torch.distributed.fsdp",
        "torch._dynamo",
    ]
    + [f"transformers.models.{family}.modeling_{family}" for family in ("llama", "mistral")]
)


@dataclass
class Forked:
    """Processes that were started together, first to last by rank."""

    processes: list[Any] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @property
    def stdout(self) -> str:
        return self._said(".out")

    @property
    def stderr(self) -> str:
        return self._said(".err")

    def _said(self, kind: str) -> str:
        return "".join(Path(self.folder.name, f"{i}{kind}").read_text() for i in range(len(self.processes)))

    @property
    def returncode(self) -> int | None:
        """The first exit code that is not 0; None while one runs."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, timeout: float = 500) -> int:
        """Exit code of all; as with torchrun, one that fails takes the others with it."""
        end = time.monotonic() + timeout
        while running := [process for process in self.processes if process.exitcode is None]:
            wait([process.sentinel for process in running], max(0, end - time.monotonic()))
            if any(process.exitcode for process in self.processes) or time.monotonic() > end:
                for process in running:
                    process.join(10)  # The same may have come to the others, who are to say so.
                self.kill()
        assert self.returncode is not None
        return self.returncode

    def until(self, words: str, timeout: float = 500) -> None:
        """Waits for these words on stdout or stderr."""
        end = time.monotonic() + timeout
        while words not in self.stdout + self.stderr:
            if time.monotonic() > end:
                self.kill()
            assert self.returncode is None, self.stdout + self.stderr
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        for process in self.processes:
            os.kill(process.pid, signal.SIGINT)


def _free_port() -> int:
    """A port that nobody listens on, below those that the system gives to whoever asks for any: seconds pass until the
    group's first process has it, and other sockets are opened meanwhile."""
    while True:
        port = secrets.randbelow(12_000) + 20_000  # Whatever a test has seeded.
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def start(code: str | Callable[..., Any], *arguments: Any, processes: int | None = None, **environment: str) -> Forked:
    """Starts a process that runs code; or so many, as torchrun does.

    Args:
        code: Python, or `-m NAME` of a module, or a function of a module that can be imported.
        arguments: the command line, or the function's.
        processes: of one group, which know of each other by their environment; None: one that knows of no group.
        environment: variables beside those of this process.
    """
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    started = Forked()
    for rank in range(processes or 1):
        own = {**os.environ, **environment}
        if processes:
            own |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        output = Path(started.folder.name, str(rank))
        for kind in (".out", ".err"):
            output.with_suffix(kind).touch()
        process = _SERVER.Process(target=_run, args=(code, arguments, own, output))
        process.start()
        started.processes.append(process)
    return started


def launched(
    code: str | Callable[..., Any], *arguments: Any, processes: int | None = None, **environment: str
) -> Forked:
    """The same, when they have ended, and all well."""
    done = start(code, *arguments, processes=processes, **environment)
    assert done.wait() == 0, done.stderr
    return done


def _run(code: str | Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], output: Path) -> None:
    for number, kind in ((1, ".out"), (2, ".err")):
        with output.with_suffix(kind).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()
    # What runs in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if callable(code):
            code(*arguments)
            return
        module = code.removeprefix("-m ")
        sys.argv = [module, *map(str, arguments)]
        if module != code:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # A child of this kind ends without.

"""Servers of another program behind this one: one server for each mode, with the same keys, limits and answers.

Prompts are tokenized here and sent on as token ids, so what was counted is what runs. What differs between programs is
a `Program`: the command of a server, its environment, fields of a request, and where an answer says how long it is.
"""

import asyncio
import contextlib
import ctypes
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from skipwise.errors import ConfigError
from skipwise.inference.engine import FinishReason, GenerationRequest, Mode
from skipwise.serve.backends import Backend, Prompts
from skipwise.serve.places import Places
from skipwise.serve.refusals import Refusal, shutting_down
from skipwise.serve.scheduler import Cost, Progress, Turns

_SECONDS_TO_STOP = 20.0
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program(ABC):
    """How the servers of an engine are started and asked.

    Attributes:
        name: of the engine.
        unmeasured: why nobody measured what requests cost before the servers are there.
        base, extended: what the server of each mode loads.
        arguments: more of them, of the command line.
        command_words: the command; its first word may be a path.
        ready_seconds: within which all servers have to answer.
    """

    name: ClassVar[str]
    unmeasured: ClassVar[str]

    base: str
    extended: str
    original_window: int
    target: int
    arguments: tuple[str, ...] = ()
    command_words: tuple[str, ...]
    ready_seconds: float = 1800.0

    def loaded(self, mode: Mode) -> tuple[str, int]:
        """What the server of a mode loads, and the most tokens of a request to it."""
        return (self.base, self.original_window) if mode == "short" else (self.extended, self.target)

    @abstractmethod
    def command(self, mode: Mode, port: int) -> list[str]:
        """The command of one mode's server, which only this machine can reach."""

    @abstractmethod
    def environment(self, token: str) -> Mapping[str, str]:
        """Variables beside this process's own; with them the server refuses requests without the token."""

    @abstractmethod
    def fields(self, request: GenerationRequest, salt: str) -> dict[str, Any]:
        """Fields of a completion beside those of OpenAI's API, or in their place.

        `salt` is that of the key that asks: what one key sent must not speed up the answer to another.
        """

    @abstractmethod
    def written(self, chunk: Mapping[str, Any]) -> int | None:
        """Tokens of the answer so far, if a chunk of it says so."""


class Front(Backend):
    """Answers by the servers of a program, which it starts and ends. `prompts` are of the tokenizer of both models."""

    def __init__(self, name: str, program: Program, prompts: Prompts, turns: Turns) -> None:
        super().__init__(name, program.original_window, program.target, prompts)
        self.program, self.unmeasured = program, program.unmeasured
        self._modes: tuple[Mode, ...] = ("short", "long") if len(self.models) > 1 else ("short",)
        self._places = {mode: Places(turns.slots(mode), turns) for mode in self._modes}
        self._addresses: dict[Mode, str] = {}
        self._processes: list[asyncio.subprocess.Process] = []
        self._watches: list[asyncio.Task[None]] = []
        self._token, self._pepper = secrets.token_hex(32), secrets.token_bytes(32)
        self._session: Any = None

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        running, waiting = zip(*(places.load for places in self._places.values()), strict=True)
        return sum(running), sum(waiting)

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request."""
        total, program = request.total_tokens, self.program
        if total > program.target:
            raise ConfigError(
                f"the request comes to {total} tokens; {program.target} is the most", page="length-does-not-fit"
            )
        return request.mode or ("short" if total <= program.original_window else "long")

    async def start(self) -> None:
        """Starts the servers and waits until they answer, or until this server is told to end.

        Raises:
            ConfigError: the program is not installed, ends at once, or takes too long.
        """
        import aiohttp

        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            # A connection for each request: a server closes one that was idle, perhaps as the next request is sent.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            # No proxy from the environment.
            trust_env=False,
        )
        try:
            for mode in self._modes:
                port = _free_port()
                command = self.program.command(mode, port)
                environment = {**os.environ, **self.program.environment(self._token)}
                process = await asyncio.create_subprocess_exec(
                    *command, env=environment, start_new_session=True, preexec_fn=_ends_with_parent()
                )
                self._processes.append(process)
                self._addresses[mode] = f"http://127.0.0.1:{port}"
            waits = zip(self._modes, self._processes, strict=True)
            await asyncio.gather(*(self._wait_until_ready(mode, process) for mode, process in waits))
            watched = zip(self._modes, self._processes, strict=True)
            self._watches = [asyncio.ensure_future(self._watch(mode, process)) for mode, process in watched]
        except FileNotFoundError as error:
            await self.stop()
            raise not_installed(self.program.command_words[0], self.program.name) from error
        except BaseException:
            await self.stop()
            raise

    async def _wait_until_ready(self, mode: Mode, process: asyncio.subprocess.Process) -> None:
        seconds = self.program.ready_seconds
        end = time.monotonic() + seconds
        while not self.is_draining:
            if process.returncode is not None:
                raise ConfigError(
                    f"{self.program.name}'s server of the {mode} mode ended {_how(process)} before it answered; its "
                    "output above says why",
                    page="server-start",
                )
            if await self._answers(mode):
                return
            if time.monotonic() >= end:
                raise ConfigError(
                    f"{self.program.name}'s server of the {mode} mode did not answer in {seconds:g} seconds",
                    page="server-start",
                )
            await asyncio.sleep(0.2)

    async def _watch(self, mode: Mode, process: asyncio.subprocess.Process) -> None:
        """Says that a server ended which nobody ended."""
        await process.wait()
        print(
            f"skipwise: {self.program.name}'s server of the {mode} mode ended {_how(process)}; requests to it are "
            "refused until this server is started again",
            file=sys.stderr,
            flush=True,
        )

    async def _answers(self, mode: Mode) -> bool:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5), self._session.get(f"{self._addresses[mode]}/health") as response:
                return response.status == 200
        return False

    async def is_healthy(self) -> bool:
        """Whether both servers answer."""
        if any(process.returncode is not None for process in self._processes):
            return False
        return all(await asyncio.gather(*(self._answers(mode) for mode in self._modes)))

    @asynccontextmanager
    async def run(self, owner: str, request: GenerationRequest, cost: Cost) -> AsyncIterator[AsyncIterator[Progress]]:
        """A context with the answer as it comes. Leaving it closes the connection, and the server stops."""
        mode = self.mode_of(request)
        if self.is_draining:
            raise shutting_down()
        began = time.perf_counter()
        try:
            await self._places[mode].take(owner)
        except asyncio.CancelledError:
            cost.wait_seconds = time.perf_counter() - began
            raise
        cost.wait_seconds = time.perf_counter() - began
        try:
            # The grace period may have ended while it waited.
            if self._session.closed:
                raise shutting_down()
            async with self._completion(mode, self._body(owner, mode, request)) as response:
                yield self._progress(response)
        finally:
            self._places[mode].leave(owner)

    def _body(self, owner: str, mode: Mode, request: GenerationRequest) -> dict[str, Any]:
        salt = hmac.new(self._pepper, owner.encode(), "sha256").hexdigest()
        return {
            "model": mode,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop),
            "stream": True,
            **self.program.fields(request, salt),
        }

    @asynccontextmanager
    async def _completion(self, mode: Mode, body: dict[str, Any]) -> AsyncIterator[Any]:
        import aiohttp

        try:
            response = await self._session.post(f"{self._addresses[mode]}/v1/completions", json=body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _failed(f"the engine of the {mode} mode does not answer") from error
        async with response:
            if response.status in (400, 413, 422):
                # Its words may quote the prompt; only the client who sent it gets them.
                message = await _message(response)
                raise Refusal(400, f"the engine refuses this request: {message}", code="invalid_request")
            if response.status != 200:
                raise _failed(f"the engine of the {mode} mode failed with status {response.status}")
            yield response

    async def _progress(self, response: Any) -> AsyncIterator[Progress]:
        import aiohttp

        counted, reason = 0, None
        try:
            async for line in response.content:
                if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                    continue
                chunk = json.loads(line[5:])
                if "error" in chunk:
                    yield Progress(error=_failed("the engine failed"))
                    return
                written = self.program.written(chunk)
                new = 0 if written is None else written - counted
                counted += new
                choice = (chunk.get("choices") or [{}])[0]
                reason = choice.get("finish_reason") or reason
                if choice.get("text") or new:
                    yield Progress(text=choice.get("text") or "", tokens=new)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            reason = None
        # Other reasons, such as `abort`, are of answers that are not complete.
        if reason in _FINISH:
            yield Progress(finish_reason=_FINISH[reason])
        else:
            yield Progress(error=_failed("the engine broke off"))

    async def stop(self) -> None:
        """Ends the servers. A second caller waits for the same end."""
        for watch in self._watches:
            watch.cancel()
        if self._session is not None:
            await self._session.close()
        for process in self._processes:
            _signal(process, signal.SIGTERM)
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), _SECONDS_TO_STOP)
            except TimeoutError:
                _signal(process, signal.SIGKILL)
                await process.wait()
        self._processes = []


def find_program(command: str, engine: str, how: str = "") -> str:
    """The path of a command, on PATH or beside this interpreter; `how` is how to install the engine.

    Raises:
        ConfigError: there is none.
    """
    beside = Path(sys.executable).with_name(command)
    found = shutil.which(command) or (str(beside) if beside.exists() else None)
    if found is None:
        raise not_installed(command, engine, how)
    return found


def not_installed(command: str, engine: str, how: str = "") -> ConfigError:
    """The error of a command that is not there."""
    return ConfigError(
        f"there is no command {command!r} here; install {engine}{how and f' ({how})'}, or serve with --engine embedded",
        page="missing-extra",
    )


def _how(process: asyncio.subprocess.Process) -> str:
    code = process.returncode or 0
    return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def _failed(reason: str) -> Refusal:
    return Refusal(503, f"{reason}; try again later", code="engine_error", retry_after=10)


async def _message(response: Any) -> str:
    with contextlib.suppress(Exception):
        body = await response.json()
        return str((body.get("error") or body).get("message"))[:500]
    return f"status {response.status}"


def _ends_with_parent() -> Callable[[], object] | None:
    """What a new process calls on Linux, so that it gets SIGTERM when this one is gone, killed or not; else None."""
    if sys.platform != "linux":
        return None
    # Looked up here, since little may be done between fork and exec.
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGTERM.value)


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    # The server has a session of its own, so its workers get the signal, too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

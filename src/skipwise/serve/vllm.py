"""vLLM behind this server: two of its servers, one for each mode, with the same keys, limits and answers in front.

Prompts are tokenized here and sent on as token ids, so what was counted is what runs. Each key's prompts have their own
salt; without it, vLLM would reuse one key's prompts from the prefix cache for another key.
"""

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.errors import ConfigError
from skipwise.inference.engine import FinishReason, GenerationRequest, Mode
from skipwise.serve.backends import Backend, Prompts
from skipwise.serve.refusals import Refusal, shutting_down
from skipwise.serve.scheduler import Cost, Progress, Turns

_SECONDS_TO_STOP = 20.0
_SECONDS_OF_A_REQUEST = 2.0  # a guess, for clients that are told when to try again
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How vLLM is started.

    Attributes:
        memory_shares: of each accelerator's memory, for the base and for the extended model.
        program: the command; its first word may be a path.
        ready_seconds: within which both servers have to answer.
    """

    base: str
    extended: str
    original_window: int
    target: int
    memory_shares: tuple[float, float] = (0.3, 0.6)
    arguments: tuple[str, ...] = ()
    program: tuple[str, ...] = ("vllm",)
    ready_seconds: float = 1800.0

    def command(self, mode: Mode, port: int) -> list[str]:
        """The command of one mode's server, which only this machine can reach."""
        model, window = (self.base, self.original_window) if mode == "short" else (self.extended, self.target)
        share = self.memory_shares[0 if mode == "short" else 1]
        return [
            *self.program,
            *("serve", model, "--served-model-name", mode),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--max-model-len", str(window), "--gpu-memory-utilization", f"{share:g}"),
            # The model's own defaults (top_k, penalties) would change what was asked for.
            *("--generation-config", "vllm"),
            *("--no-enable-log-requests", "--disable-uvicorn-access-log"),
            *self.arguments,
        ]

    def environment(self, token: str) -> dict[str, str]:
        """This process's environment, without usage reports to anybody, and with the token that requests need."""
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_DO_NOT_TRACK": "1"}
        return {**os.environ, **quiet, "VLLM_API_KEY": token}


class Places:
    """The places of a mode at vLLM. The next one goes to the owner with the fewest, then to who came first."""

    def __init__(self, places: int, turns: Turns) -> None:
        self._places, self._turns = places, turns
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def load(self) -> tuple[int, int]:
        """How many are taken, and how many requests wait."""
        return self._taken.total(), len(self._waiting)

    async def take(self, owner: str) -> None:
        """Waits for a place. Raises Refusal if too many wait already."""
        own = sum(one == owner for one, _ in self._waiting)
        self._turns.check_queue(len(self._waiting), own, _SECONDS_OF_A_REQUEST)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, turn))
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(owner)
            else:
                self._waiting = [one for one in self._waiting if one[1] is not turn]
            raise

    def leave(self, owner: str) -> None:
        """Gives a place back."""
        self._taken[owner] -= 1
        self._taken += Counter()  # forgets owners of none
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._taken.total() < self._places:
            place = min(range(len(self._waiting)), key=lambda one: (self._taken[self._waiting[one][0]], one))
            owner, turn = self._waiting.pop(place)
            if not turn.cancelled():
                self._taken[owner] += 1
                turn.set_result(None)


class Vllm(Backend):
    """Answers by vLLM's servers, which it starts and ends. `prompts` are of the tokenizer that both models have."""

    def __init__(self, name: str, settings: VllmSettings, prompts: Prompts, turns: Turns) -> None:
        super().__init__(name, settings.original_window, settings.target, prompts)
        self._settings = settings
        self._modes: tuple[Mode, ...] = ("short", "long") if len(self.models) > 1 else ("short",)
        self._places = {mode: Places(turns.slots(mode), turns) for mode in self._modes}
        self._addresses: dict[Mode, str] = {}
        self._processes: list[asyncio.subprocess.Process] = []
        self._token, self._pepper = secrets.token_hex(32), secrets.token_bytes(32)
        self._session: Any = None

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        running, waiting = zip(*(places.load for places in self._places.values()), strict=True)
        return sum(running), sum(waiting)

    def mode_of(self, request: GenerationRequest) -> Mode:
        """The mode of a request."""
        total, settings = request.total_tokens, self._settings
        if total > settings.target:
            raise ConfigError(
                f"the request comes to {total} tokens; {settings.target} is the most", page="length-does-not-fit"
            )
        return request.mode or ("short" if total <= settings.original_window else "long")

    async def start(self) -> None:
        """Starts the servers and waits until they answer, or until this server is told to end.

        Raises:
            ConfigError: vLLM is not installed, ends at once, or takes too long.
        """
        import aiohttp

        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=0),
            # No proxy from the environment.
            trust_env=False,
        )
        try:
            for mode in self._modes:
                port = _free_port()
                command = self._settings.command(mode, port)
                process = await asyncio.create_subprocess_exec(
                    *command, env=self._settings.environment(self._token), start_new_session=True
                )
                self._processes.append(process)
                self._addresses[mode] = f"http://127.0.0.1:{port}"
            waits = zip(self._modes, self._processes, strict=True)
            await asyncio.gather(*(self._wait_until_ready(mode, process) for mode, process in waits))
        except FileNotFoundError as error:
            await self.stop()
            program = self._settings.program[0]
            raise ConfigError(
                f"{program!r} is not installed here; install vLLM, or serve with --engine embedded",
                page="missing-extra",
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def _wait_until_ready(self, mode: Mode, process: asyncio.subprocess.Process) -> None:
        seconds = self._settings.ready_seconds
        end = time.monotonic() + seconds
        while not self.is_draining:
            if process.returncode is not None:
                raise ConfigError(
                    f"vLLM's server of the {mode} mode ended with code {process.returncode} before it answered; its "
                    "output above says why",
                    page="server-start",
                )
            if await self._answers(mode):
                return
            if time.monotonic() >= end:
                raise ConfigError(
                    f"vLLM's server of the {mode} mode did not answer in {seconds:g} seconds", page="server-start"
                )
            await asyncio.sleep(0.2)

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
        """A context with the answer as it comes. Leaving it closes the connection, and vLLM stops."""
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
        seed = {} if request.seed is None else {"seed": request.seed}
        return {
            "model": mode,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop),
            "stream": True,
            # Counts in each chunk, so that an answer that is broken off is counted, too.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "cache_salt": hmac.new(self._pepper, owner.encode(), "sha256").hexdigest(),
            **seed,
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
                # vLLM's words may quote the prompt; only the client who sent it gets them.
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
                written = (chunk.get("usage") or {}).get("completion_tokens", counted)
                new, counted = written - counted, written
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


def find_program() -> str:
    """The path of the command `vllm`, on PATH or beside this interpreter. Raises ConfigError if there is none."""
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm") or (str(beside) if beside.exists() else None)
    if found is None:
        raise ConfigError(
            "there is no command 'vllm' here; install vLLM, or serve with --engine embedded", page="missing-extra"
        )
    return found


def _failed(reason: str) -> Refusal:
    return Refusal(503, f"{reason}; try again later", code="engine_error", retry_after=10)


async def _message(response: Any) -> str:
    with contextlib.suppress(Exception):
        body = await response.json()
        return str((body.get("error") or body).get("message"))[:500]
    return f"status {response.status}"


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    # The server has a session of its own, so its workers get the signal, too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

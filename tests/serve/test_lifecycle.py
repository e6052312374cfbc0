"""What happens when many ask, when somebody leaves, and when the server is told to end."""

import asyncio
import http.client
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, cast

import openai
import pytest
from uvicorn.server import ServerState

from serve.standin import StandIn, answer_to
from skipwise.serve.app import _Stream, _while_connected
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

Serve = Callable[..., Any]


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_under_load_everyone_gets_an_answer_and_their_own(serve: Serve, clients: int) -> None:
    running = serve(StandIn(token_seconds=2e-6), turns=Turns(short_slots=4, long_slots=2))
    client = running.client(kind=openai.AsyncOpenAI, timeout=60)

    async def one(number: int) -> None:
        draws = random.Random(number)
        for turn in range(4):
            prompt = f"<client {number} turn {turn}>" * (draws.randrange(10, 40) if draws.random() < 0.3 else 1)
            new = draws.randrange(2, 30)
            arguments: dict[str, Any] = {"model": "stand-in", "prompt": prompt, "max_tokens": new}
            if draws.random() < 0.5:
                chunks = [chunk async for chunk in await client.completions.create(**arguments, stream=True)]
                text = "".join(chunk.choices[0].text for chunk in chunks)
            else:
                done = await client.completions.create(**arguments)
                text = done.choices[0].text
                assert done.skipwise["mode"] == ("long" if len(prompt) + new > 64 else "short")
            assert text == answer_to(prompt.encode(), new)

    async def everybody() -> None:
        await asyncio.gather(*map(one, range(clients)))

    asyncio.run(everybody())
    assert running.engine.open == set()
    assert running.backend.load == (0, 0)


def test_a_stream_that_is_made_while_its_request_is_cancelled_is_closed() -> None:
    """As when a server is told twice to end."""
    closed: list[str] = []

    class Connected:
        async def receive(self) -> dict[str, str]:
            return await asyncio.Future()

    async def no_events() -> AsyncGenerator[str]:
        yield ""

    async def work() -> _Stream:
        stack = AsyncExitStack()
        stack.callback(closed.append, "computation")
        request.cancel()  # Before whoever waits for the result runs again.
        return _Stream(no_events(), stack, {})

    async def serve() -> None:
        nonlocal request
        request = asyncio.ensure_future(_while_connected(cast(Any, Connected()), work()))
        with pytest.raises(asyncio.CancelledError):
            await request

    request: asyncio.Future[_Stream]
    asyncio.run(serve())
    assert closed == ["computation"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt", "new"), [("p" * 4000, 10), ("p", 4000)], ids=["prompt", "answer"])
def test_who_leaves_stops_what_computes(serve: Serve, stream: bool, prompt: str, new: int) -> None:
    running = serve(StandIn(token_seconds=0.001))
    with running.asked(prompt, new, stream=stream):
        running.wait_until(lambda: len(running.engine.log) > 5)
    running.wait_until(lambda: running.engine.open == set(), seconds=2)
    steps = len(running.engine.log)
    time.sleep(0.1)
    assert len(running.engine.log) == steps < 1000
    assert running.backend.load == (0, 0)
    assert running.logged(1)[0]["status"] == 499


def test_who_leaves_while_waiting_never_runs(serve: Serve) -> None:
    running = serve(StandIn(token_seconds=0.001), turns=Turns(short_slots=1))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(running.ask, "a", 60)
        running.wait_until(lambda: running.backend.load == (1, 0))
        with running.asked("w", 5):
            running.wait_until(lambda: running.backend.load == (1, 1))
        running.wait_until(lambda: running.backend.load[1] == 0)
        assert first.result()[0] == 200
    assert "w" not in running.engine.log


def test_who_leaves_while_a_text_is_tokenized_never_runs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve()
    began, go_on, inner = threading.Event(), threading.Event(), running.backend._prompts.ids

    def slow(prompt: Any) -> list[int]:
        began.set()
        assert go_on.wait(10)
        return inner(prompt)

    monkeypatch.setattr(running.backend._prompts, "ids", slow)
    with running.asked("w", 5):
        assert began.wait(5)
    time.sleep(0.2)
    go_on.set()
    assert running.ask("abc", 2)[0] == 200
    assert "w" not in running.engine.log


@pytest.mark.parametrize(("seconds", "aborted"), [(0.02, 0), (0.3, 1)])
def test_who_takes_no_answer_is_not_waited_for(seconds: float, aborted: int) -> None:
    class Transport:
        """Of a client that reads nothing."""

        aborted = 0

        def abort(self) -> None:
            self.aborted += 1

        def get_extra_info(self, name: str) -> None:
            return None

        def is_closing(self) -> bool:
            return False

        def close(self) -> None: ...

    async def run() -> int:
        server = Server(None, Address(), None)  # type: ignore[arg-type]
        server.config.load()
        kind: Any = server.config.http_protocol_class
        protocol = kind(server.config, ServerState(), {})
        protocol.reading_seconds, transport = 0.1, Transport()
        protocol.connection_made(transport)
        protocol.pause_writing()
        await asyncio.sleep(seconds)
        protocol.resume_writing()
        await asyncio.sleep(0.2)
        protocol.connection_lost(None)
        return transport.aborted

    assert asyncio.run(run()) == aborted


def test_overload_is_refused_with_a_time_to_come_back(serve: Serve) -> None:
    running = serve(StandIn(token_seconds=0.001), turns=Turns(short_slots=1, waiting=2))
    with ThreadPoolExecutor() as pool:
        answers = [one.result() for one in [pool.submit(running.ask, "abc", 60) for _ in range(12)]]
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert 3 <= statuses.count(200) < 12
    for status, content, headers in answers:
        if status == 503:
            assert content["error"]["code"] == "overloaded"
            assert int(headers["retry-after"]) >= 1
        else:
            assert content["choices"][0]["text"] == answer_to(b"abc", 60)


# The long request takes 0.8 seconds of the machine.
@pytest.mark.parametrize(("fair", "least", "most"), [(True, 0, 0.3), (False, 0.6, 10)])
def test_a_short_request_is_quick_beside_a_long_one(serve: Serve, fair: bool, least: float, most: float) -> None:
    running = serve(StandIn(token_seconds=2e-4), turns=Turns(fair=fair))
    with ThreadPoolExecutor() as pool:
        long = pool.submit(running.ask, "l" * 4000, 90)
        running.wait_until(lambda: len(running.engine.log) > 3)
        began = time.monotonic()
        assert running.ask("short", 5)[0] == 200
        assert least < time.monotonic() - began < most
        assert long.result()[0] == 200


def test_told_to_end_it_finishes_what_runs_and_refuses_what_is_new(serve: Serve) -> None:
    running = serve(StandIn(token_seconds=0.005), turns=Turns(short_slots=1))
    kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    with ThreadPoolExecutor() as pool:
        runs = pool.submit(running.ask, "abc", 60)
        running.wait_until(lambda: running.backend.load == (1, 0))
        waits = pool.submit(running.ask, "def", 10)
        running.wait_until(lambda: running.backend.load == (1, 1))
        kept.connect()
        ending = pool.submit(running.end)
        # In the moment before connections are closed the answer is 503; afterwards nobody is there.
        try:
            kept.request("GET", "/health")
            assert kept.getresponse().status == 503
        except (ConnectionError, http.client.HTTPException):
            pass
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            running.ask("new", 1)
        assert runs.result()[1]["choices"][0]["text"] == answer_to(b"abc", 60)
        assert waits.result()[1]["choices"][0]["text"] == answer_to(b"def", 10)
        ending.result()
    assert running.engine.open == set()


@pytest.mark.parametrize("twice", [False, True], ids=["after the grace period", "told twice"])
def test_what_is_cut_off_is_told_so(serve: Serve, twice: bool, capfd: Any) -> None:
    running = serve(StandIn(token_seconds=0.002), grace_seconds=60 if twice else 0.3)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(running.ask, "abc", 4000)
        running.wait_until(lambda: running.backend.load == (1, 0))
        stream = running.client().completions.create(model="stand-in", prompt="abc", max_tokens=4000, stream=True)
        next(iter(stream))
        began = time.monotonic()
        if twice:
            running.server.handle_exit(2, None)
        ending = pool.submit(running.end)
        with pytest.raises(openai.APIError) as error:
            for _ in stream:
                pass
        status, content, headers = whole.result()
        ending.result()
    assert time.monotonic() - began < 5
    assert error.value.code == content["error"]["code"] == "shutting_down"
    assert (status, headers["retry-after"]) == (503, "5")
    assert running.engine.open == set()
    assert "Traceback" not in capfd.readouterr().err


SERVER_OF_ITS_OWN = """
import sys
sys.path.insert(0, "tests")
from serve.standin import ByteTokenizer, StandIn
from skipwise.serve.app import create_app
from skipwise.serve.backends import Embedded
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

class Backend(Embedded):
    async def stop(self):
        await super().stop()
        print("stopped", flush=True)

backend, address = Backend(StandIn(), ByteTokenizer(), Turns()), Address(port=0)
server = Server(create_app(backend), address, backend, lambda: print("ready", flush=True))
server.run(sockets=[address.bind()])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up here")
@pytest.mark.parametrize("action", ["SIG_DFL", "SIG_IGN"])
def test_a_closed_terminal_ends_it_gracefully_unless_nohup_keeps_it(action: str) -> None:
    # Set in both cases, as these tests may be run under nohup themselves.
    code = f"import signal; signal.signal(signal.SIGHUP, signal.{action})\n" + SERVER_OF_ITS_OWN
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        if action == "SIG_IGN":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, "stopped\n", "")

"""What happens when many ask, when somebody leaves, and when the server is told to end."""

import asyncio
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from uvicorn.server import ServerState

from serve.standin import StandIn, answer_to
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


def ask(port: int, prompt: str, max_tokens: int, **fields: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": "stand-in", "prompt": prompt, "max_tokens": max_tokens, **fields})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_under_load_everyone_gets_an_answer_and_their_own(serve: Callable[..., Any], clients: int) -> None:
    running = serve(StandIn(token_seconds=2e-6), turns=Turns(short_slots=4, long_slots=2))
    client = openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=60)

    async def one(number: int) -> None:
        draws = random.Random(number)
        for turn in range(4):
            long = draws.random() < 0.3
            prompt = f"<client {number} turn {turn}>" * (draws.randrange(10, 40) if long else 1)
            new = draws.randrange(2, 30)
            expected = answer_to(prompt.encode(), new)
            arguments: dict[str, Any] = {"model": "stand-in", "prompt": prompt, "max_tokens": new}
            if draws.random() < 0.5:
                chunks = [chunk async for chunk in await client.completions.create(**arguments, stream=True)]
                text = "".join(chunk.choices[0].text for chunk in chunks)
            else:
                done = await client.completions.create(**arguments)
                text = done.choices[0].text
                assert done.skipwise["mode"] == ("long" if len(prompt) + new > 64 else "short")
            assert text == expected

    async def everybody() -> None:
        await asyncio.gather(*map(one, range(clients)))

    asyncio.run(everybody())
    assert running.engine.open == set()
    assert running.backend.load == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["prompt", "answer"])
def test_who_leaves_stops_what_computes(serve: Callable[..., Any], stream: bool, phase: str) -> None:
    running = serve(StandIn(token_seconds=0.001))
    prompt, new = ("p" * 4000, 10) if phase == "prompt" else ("p", 4000)
    body = json.dumps({"model": "stand-in", "prompt": prompt, "max_tokens": new, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as one:
        one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        running.wait_until(lambda: len(running.engine.log) > 5)
    running.wait_until(lambda: running.engine.open == set(), seconds=2)
    steps = len(running.engine.log)
    time.sleep(0.1)
    assert len(running.engine.log) == steps < 1000
    assert running.backend.load == (0, 0)


def test_who_leaves_while_waiting_never_runs(serve: Callable[..., Any]) -> None:
    running = serve(StandIn(token_seconds=0.001), turns=Turns(short_slots=1))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, running.port, "a", 60)
        running.wait_until(lambda: running.backend.load == (1, 0))
        body = json.dumps({"model": "stand-in", "prompt": "w", "max_tokens": 5}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as one:
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            running.wait_until(lambda: running.backend.load == (1, 1))
        running.wait_until(lambda: running.backend.load[1] == 0)
        assert first.result()[0] == 200
    assert "w" not in running.engine.log


def test_who_leaves_while_a_text_is_read_never_runs(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve()
    began, go_on, inner = threading.Event(), threading.Event(), running.backend._prompts.ids

    def slow(prompt: Any) -> list[int]:
        began.set()
        assert go_on.wait(10)
        return inner(prompt)

    monkeypatch.setattr(running.backend._prompts, "ids", slow)
    gone = socket.create_connection(("127.0.0.1", running.port))
    body = json.dumps({"model": "stand-in", "prompt": "w", "max_tokens": 5}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert began.wait(5)
    gone.close()
    time.sleep(0.2)
    go_on.set()
    assert ask(running.port, "abc", 2)[0] == 200
    assert "w" not in running.engine.log


def test_who_takes_no_answer_is_not_waited_for() -> None:
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

    async def run(seconds: float) -> int:
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

    assert asyncio.run(run(0.02)) == 0
    assert asyncio.run(run(0.3)) == 1


def test_overload_is_refused_with_a_time_to_come_back(serve: Callable[..., Any]) -> None:
    running = serve(StandIn(token_seconds=0.001), turns=Turns(short_slots=1, waiting=2))
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, running.port, "abc", 60) for _ in range(12)]
        answers = [one.result() for one in asked]
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert 3 <= statuses.count(200) < 12
    for status, content, headers in answers:
        if status == 503:
            assert "2 requests are waiting and 2 may" in content["error"]["message"]
            assert int(headers["retry-after"]) >= 1
        else:
            assert content["choices"][0]["text"] == answer_to(b"abc", 60)


def test_a_short_request_is_quick_beside_a_long_one(serve: Callable[..., Any]) -> None:
    def seconds(fair: bool) -> float:
        running = serve(StandIn(token_seconds=2e-4), turns=Turns(fair=fair))
        with ThreadPoolExecutor() as pool:
            long = pool.submit(ask, running.port, "l" * 4000, 90)
            running.wait_until(lambda: len(running.engine.log) > 3)
            began = time.monotonic()
            assert ask(running.port, "short", 5)[0] == 200
            passed = time.monotonic() - began
            assert long.result()[0] == 200
        return passed

    fair, unfair = seconds(True), seconds(False)
    # The long one takes 0.8 seconds of the machine.
    assert fair < 0.3
    assert unfair > 0.6


def test_told_to_end_it_finishes_what_runs_and_refuses_what_is_new(serve: Callable[..., Any]) -> None:
    running = serve(StandIn(token_seconds=0.005), turns=Turns(short_slots=1))
    kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    with ThreadPoolExecutor() as pool:
        runs, waits = pool.submit(ask, running.port, "abc", 60), None
        running.wait_until(lambda: running.backend.load == (1, 0))
        waits = pool.submit(ask, running.port, "def", 10)
        running.wait_until(lambda: running.backend.load == (1, 1))
        kept.connect()
        ending = threading.Thread(target=running.end)
        ending.start()
        # In the moment before connections are closed the answer is 503; afterwards nobody is there.
        try:
            kept.request("GET", "/health")
            assert kept.getresponse().status == 503
        except (ConnectionError, http.client.HTTPException):
            pass
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            ask(running.port, "new", 1)
        assert runs.result()[1]["choices"][0]["text"] == answer_to(b"abc", 60)
        assert waits.result()[1]["choices"][0]["text"] == answer_to(b"def", 10)
        ending.join()
    assert running.engine.open == set()


def test_when_the_grace_is_over_what_runs_is_told_so(serve: Callable[..., Any]) -> None:
    running = serve(StandIn(token_seconds=0.002), grace_seconds=0.3)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(ask, running.port, "abc", 4000)
        running.wait_until(lambda: running.backend.load == (1, 0))
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="stand-in", prompt="abc", max_tokens=4000, stream=True)
        next(iter(stream))
        began = time.monotonic()
        ending = pool.submit(running.end)
        with pytest.raises(openai.APIError, match="shut down before the answer was complete"):
            for _ in stream:
                pass
        assert whole.result()[0] == 503
        assert whole.result()[2]["retry-after"] == "5"
        ending.result()
        assert time.monotonic() - began < 5
    assert running.engine.open == set()


def test_told_twice_it_ends_at_once_and_says_so(serve: Callable[..., Any], capfd: Any) -> None:
    running = serve(StandIn(token_seconds=0.002), grace_seconds=60)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(ask, running.port, "abc", 4000)
        running.wait_until(lambda: running.backend.load == (1, 0))
        began = time.monotonic()
        running.server.handle_exit(2, None)
        running.end()
        assert time.monotonic() - began < 5
        status, content, headers = whole.result()
    assert (status, headers["retry-after"]) == (503, "5")
    assert "shut down before the answer was complete" in content["error"]["message"]
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
app = create_app(backend)
Server(app, address, backend, lambda: print("ready", flush=True)).run(sockets=[address.bind()])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up here")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_it_in_good_order_unless_nohup_keeps_it(ignored: bool) -> None:
    # Said in both cases, as these tests may be run under nohup themselves.
    action = "SIG_IGN" if ignored else "SIG_DFL"
    code = f"import signal; signal.signal(signal.SIGHUP, signal.{action})\n" + SERVER_OF_ITS_OWN
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, "stopped\n", "")

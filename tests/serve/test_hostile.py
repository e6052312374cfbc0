"""Hostile inputs: each gets the answer that the table says, none stops the server, and none is kept."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.hostile import CASES, CLOSED, GOOD, WRONG, Case, exchange, filled, get, http, of, start, status_of
from serve.running import HEAD
from skipwise.serve.gate import Bounds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    """The server and the keys."""
    with start(tmp_path_factory.mktemp("hostile")) as started:
        yield started


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_gets_its_answer(made: tuple[Any, dict[str, str]], case: Case, capfd: Any) -> None:
    running, keys = made
    answer = exchange(running.port, filled(case.request, keys))
    assert status_of(answer) == case.status, answer[:600]
    assert case.hint.encode() in answer
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"traceback" not in answer.lower()
    assert case.status not in (429, 503) or b"retry-after" in head
    assert "Traceback" not in capfd.readouterr().err
    assert status_of(exchange(running.port, filled(of(), keys))) == 200
    assert running.engine.open == set()


@pytest.mark.parametrize("slow", ["nothing", "a head", "a second head on the same connection", "a body"])
def test_what_comes_byte_by_byte_is_not_waited_for(made: tuple[Any, dict[str, str]], slow: str) -> None:
    running, keys = made
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head, _, body = filled(of(), keys).partition(b"\r\n\r\n")
    begins = {"a second head on the same connection": health, "a body": head + b"\r\n\r\n"}
    rest = {"nothing": b"", "a body": body[:-1]}.get(slow, health[:-4] * 3)
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as one:
        one.sendall(begins.get(slow, b""))
        answer = b"}" if begins.get(slow) != health else b""
        while not answer.endswith(b"}"):
            answer += one.recv(65536)
        began, said = time.monotonic(), None
        for byte in [bytes([byte]) for byte in rest] or [b""]:
            one.settimeout(0.05 if rest else 5)
            try:
                one.sendall(byte)
                said = one.recv(65536)
                break
            except TimeoutError:
                continue
            except OSError:
                said = b""
                break
    assert 0.3 < time.monotonic() - began < 3
    assert said is not None
    assert status_of(said) == (408 if slow == "a body" else CLOSED), said


def test_bodies_that_are_held_back_are_bounded_together(serve: Any) -> None:
    running = serve(bounds=Bounds(body_bytes=100_000, buffered_bytes=150_000, body_seconds=5))
    head = HEAD.encode() + b"Content-Length: 100000\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", running.port)) as one,
        socket.create_connection(("127.0.0.1", running.port)) as two,
    ):
        one.sendall(head + b" " * 90_000)
        time.sleep(0.2)
        two.sendall(head + b" " * 90_000)
        two.settimeout(3)
        assert status_of(two.recv(65536)) == 503


def test_without_keys_no_web_page_reaches_it_by_another_name_or_straight(serve: Any) -> None:
    port = serve().port
    well = ("localhost", f"127.0.0.1:{port}", "[::1]:80", "127.3.2.1:8000", "LOCALHOST:1")
    ill = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::2]", "10.0.0.1", "[")
    for host in (*well, *ill):
        request = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        assert status_of(exchange(port, request)) == (200 if host in well else 403), host
    well = ("http://localhost:3000", f"http://127.0.0.1:{port}")
    ill = ("https://evil.example", "http://localhost.evil.example", "null")
    for origin in (*well, *ill):
        # A request that browsers send without asking first.
        request = http(b'{"model": "stand-in", "prompt": "abc"}', key=None, headers=f"Origin: {origin}")
        answer = exchange(port, request)
        assert status_of(answer) == (200 if origin in well else 403), origin
        assert b"access-control" not in answer.lower()


def test_many_wrong_secrets_at_once_do_not_keep_others_out(made: tuple[Any, dict[str, str]]) -> None:
    running, keys = made
    guess = filled(of(), {GOOD: keys[WRONG]})
    with ThreadPoolExecutor(40) as pool:
        guesses = [pool.submit(exchange, running.port, guess) for _ in range(200)]
        assert status_of(exchange(running.port, filled(of(), keys), 5)) == 200
    assert {status_of(one.result()) for one in guesses} == {401}


def test_nothing_of_it_is_kept(made: tuple[Any, dict[str, str]]) -> None:
    running, keys = made
    for request in (of(model="zebracrossing"), get("/zebracrossing")):
        assert status_of(exchange(running.port, filled(request, keys))) == 404
    assert b"zebracrossing" not in exchange(running.port, filled(get("/metrics"), keys))

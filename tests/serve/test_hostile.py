"""Hostile inputs: each gets the answer that the table says, none stops the server, and none is kept."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve.hostile import (
    CASES,
    EXPIRED,
    GOOD,
    REVOKED,
    SHORT,
    WRONG,
    Case,
    exchange,
    filled,
    http,
    of,
    status_of,
)
from serve.running import Running
from serve.standin import ByteTokenizer, StandIn
from skipwise.serve.app import create_app
from skipwise.serve.audit import AuditLog
from skipwise.serve.backends import Embedded
from skipwise.serve.gate import Bounds
from skipwise.serve.keys import Keyring, Role, create_key, revoke_key, set_role
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns


def start(folder: Path) -> tuple[int, dict[str, str], Running]:
    """A server with keys of all kinds: its port, the keys, and itself."""
    path = folder / "keys.json"
    set_role(path, "short", Role(max_context=32, models=["stand-in"]))
    good = create_key(path, "good")
    keys = {
        GOOD: good,
        WRONG: good[:-4] + ("0000" if not good.endswith("0000") else "1111"),
        REVOKED: create_key(path, "gone"),
        EXPIRED: create_key(path, "late", seconds=0),
        SHORT: create_key(path, "small", role="short"),
    }
    revoke_key(path, keys[REVOKED])
    engine, address = StandIn(), Address(port=0, head_seconds=0.5, grace_seconds=2)
    backend = Embedded(engine, ByteTokenizer(), Turns())  # type: ignore[arg-type]
    bounds = Bounds(body_bytes=300_000, body_seconds=0.7)
    app = create_app(backend, keyring=Keyring(path), audit=AuditLog(folder / "audit.jsonl"), bounds=bounds)
    bound = address.bind()
    running = Running(Server(app, address, backend), bound, address.url(bound), engine, backend)
    running.begin()
    return running.port, keys, running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, str], Any]]:
    """Port, keys and server."""
    started = start(tmp_path_factory.mktemp("hostile"))
    yield started
    started[2].end()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_gets_its_answer(made: tuple[int, dict[str, str], Any], case: Case, capfd: Any) -> None:
    port, keys, running = made
    answer = exchange(port, filled(case.request, keys))
    assert status_of(answer) == case.status, answer[:600]
    assert case.hint.encode() in answer
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"traceback" not in answer.lower()
    if case.status in (429, 503):
        assert b"retry-after" in head
    assert "Traceback" not in capfd.readouterr().err
    assert status_of(exchange(port, filled(of(), keys))) == 200
    assert running.engine.open == set()


def closed_after(port: int, parts: list[bytes], pause: float) -> tuple[float, bytes]:
    """Sends slowly until the server has had enough; seconds, and what it said."""
    began, said = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.settimeout(pause)
        for part in parts:
            try:
                one.sendall(part)
                said += one.recv(65536)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        return time.monotonic() - began, said


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(made: tuple[int, dict[str, str], Any]) -> None:
    seconds, said = closed_after(made[0], [b"G", b"E", b"T", *[b" "] * 100], 0.1)
    assert 0.3 < seconds < 3
    assert said == b""


def test_a_second_head_on_the_same_connection_neither(made: tuple[int, dict[str, str], Any]) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", made[0]), timeout=5) as one:
        one.sendall(request)
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        for byte in request[:-4] * 3:
            try:
                one.sendall(bytes([byte]))
                time.sleep(0.05)
            except OSError:
                break
        assert time.monotonic() - began < 3


def test_a_connection_that_says_nothing_is_closed(made: tuple[int, dict[str, str], Any]) -> None:
    with socket.create_connection(("127.0.0.1", made[0]), timeout=5) as one:
        assert one.recv(1) == b""


def test_a_body_that_comes_byte_by_byte_is_not_waited_for(made: tuple[int, dict[str, str], Any]) -> None:
    port, keys, _ = made
    whole = filled(of(), keys)
    head, _, body = whole.partition(b"\r\n\r\n")
    parts = [head + b"\r\n\r\n", *(bytes([byte]) for byte in body[:-1])]
    seconds, said = closed_after(port, parts, 0.1)
    assert status_of(said) == 408, said
    assert 0.5 < seconds < 3


def test_bodies_that_are_held_back_are_bounded_together(serve: Any) -> None:
    bounds = Bounds(body_bytes=100_000, buffered_bytes=150_000, body_seconds=5)
    running = serve(bounds=bounds)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 100000\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", running.port)) as one,
        socket.create_connection(("127.0.0.1", running.port)) as two,
    ):
        one.sendall(head + b" " * 90_000)
        time.sleep(0.2)
        two.sendall(head + b" " * 90_000)
        two.settimeout(3)
        assert status_of(two.recv(65536)) == 503


def test_a_page_of_the_web_cannot_reach_a_server_without_keys_by_another_name(serve: Any) -> None:
    port = serve().port
    well = ("localhost", f"127.0.0.1:{port}", "[::1]:80", "127.3.2.1:8000", "LOCALHOST:1")
    ill = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::2]", "10.0.0.1", "[")
    for host, status in (*((host, 200) for host in well), *((host, 403) for host in ill)):
        request = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        assert status_of(exchange(port, request)) == status, host


def test_nor_straight_with_a_request_that_browsers_send_unasked(serve: Any) -> None:
    port = serve().port
    for origin, status in (
        ("http://localhost:3000", 200),
        (f"http://127.0.0.1:{port}", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ):
        request = http(b'{"model": "stand-in", "prompt": "abc"}', key=None, headers=f"Origin: {origin}\r\n")
        answer = exchange(port, request)
        assert status_of(answer) == status, origin
        assert b"access-control" not in answer.lower()


def test_many_wrong_secrets_at_once_do_not_keep_others_out(made: tuple[int, dict[str, str], Any]) -> None:
    port, keys, _ = made
    guess = filled(of(), {GOOD: keys[WRONG]})
    with ThreadPoolExecutor(40) as pool:
        guesses = [pool.submit(exchange, port, guess) for _ in range(200)]
        assert status_of(exchange(port, filled(of(), keys), 5)) == 200
    assert {status_of(one.result()) for one in guesses} == {401}


def test_nothing_of_it_is_kept(made: tuple[int, dict[str, str], Any], tmp_path: Path) -> None:
    port, keys, _ = made
    exchange(port, filled(of(model="zebracrossing"), keys))
    exchange(port, filled(b"GET /zebracrossing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", keys))
    assert b"zebracrossing" not in exchange(
        port,
        filled(http(method="GET", path="/metrics"), keys),
    )

"""A server in a thread of this process, on a free port, over an engine without a model."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from serve.standin import ByteTokenizer, StandIn
from skipwise.serve.app import create_app
from skipwise.serve.audit import AuditLog
from skipwise.serve.backends import Embedded
from skipwise.serve.gate import Bounds
from skipwise.serve.keys import Keyring
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Running:
    """A server that listens."""

    def __init__(self, server: Server, bound: socket.socket, url: str, engine: Any, backend: Any, log: Path) -> None:
        self.server, self.url, self.engine, self.backend, self.log = server, url, engine, backend, log
        self.port = bound.getsockname()[1]
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()
        self.wait_until(lambda: server.started)

    def end(self, timeout: float = 30) -> None:
        self.server.handle_exit(15, None)
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the server did not end"

    def client(self, key: str = "none", *, kind: Any = openai.OpenAI, **arguments: Any) -> Any:
        return kind(base_url=self.url + "/v1", api_key=key, max_retries=0, **arguments)

    def ask(self, prompt: str, max_tokens: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, content and headers of a completion."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", body(prompt, max_tokens), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}

    @contextmanager
    def asked(self, prompt: str, max_tokens: int, **fields: Any) -> Iterator[None]:
        """A client that asks for a completion and leaves at the end of the context."""
        content = body(prompt, max_tokens, **fields)
        with socket.create_connection(("127.0.0.1", self.port)) as one:
            one.sendall(f"{HEAD}Content-Length: {len(content)}\r\n\r\n{content}".encode())
            yield

    def logged(self, lines: int) -> list[dict[str, Any]]:
        """The audit log, when it has so many lines: each is written when its answer has gone."""
        self.wait_until(lambda: self.log.exists() and len(self.log.read_text().splitlines()) == lines)
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @staticmethod
    def wait_until(is_so: Callable[[], Any], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)


def body(prompt: str, max_tokens: int, **fields: Any) -> str:
    return json.dumps({"model": "stand-in", "prompt": prompt, "max_tokens": max_tokens, **fields})


@contextmanager
def serving(
    folder: Path,
    engine: Any = None,
    *,
    keys: Path | None = None,
    turns: Turns | None = None,
    bounds: Bounds | None = None,
    backend: Any = None,
    **address: Any,
) -> Iterator[Running]:
    engine = engine or StandIn()
    backend = backend or Embedded(engine, ByteTokenizer(), turns or Turns())  # type: ignore[arg-type]
    keyring, log = Keyring(keys) if keys else None, folder / "audit.jsonl"
    app = create_app(backend, keyring=keyring, audit=AuditLog(log), bounds=bounds, default_max_tokens=16)
    where = Address(port=0, **{"grace_seconds": 5.0, **address})
    where.check(keyring)
    bound = where.bind()
    running = Running(Server(app, where, backend), bound, where.url(bound), engine, backend, log)
    yield running
    if running.server.started and not running.server.should_exit:
        running.end()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers that end with the test; arguments as of `serving`."""
    with ExitStack() as stack:
        yield lambda *args, **how: stack.enter_context(serving(tmp_path, *args, **how))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """OpenAI's client of a server without keys."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running.client()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key file that is not there yet."""
    return tmp_path / "keys.json"

"""A server in a thread of this process, on a free port, over an engine of no model."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.standin import ByteTokenizer, StandIn
from skipwise.serve.app import create_app
from skipwise.serve.audit import AuditLog
from skipwise.serve.backends import Embedded
from skipwise.serve.gate import Bounds
from skipwise.serve.keys import Keyring
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns


class Running:
    """A server that listens.

    Attributes:
        url: its root.
        engine: whatever generates there.
    """

    def __init__(self, server: Server, bound: socket.socket, url: str, engine: Any, backend: Any) -> None:
        self.url, self.engine, self.backend, self.server = url, engine, backend, server
        self.port = bound.getsockname()[1]
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)

    def begin(self) -> None:
        self._thread.start()
        self.wait_until(lambda: self.server.started)

    def end(self, timeout: float = 30) -> None:
        self.server.handle_exit(15, None)
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the server did not end"

    @staticmethod
    def wait_until(is_so: Callable[[], Any], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, "it did not come to be so in time"
            time.sleep(0.01)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers that end with the test."""
    running: list[Running] = []

    def start(
        engine: Any = None,
        *,
        keys: Path | None = None,
        turns: Turns | None = None,
        bounds: Bounds | None = None,
        backend: Any = None,
        **address: Any,
    ) -> Running:
        engine = engine or StandIn()
        backend = backend or Embedded(engine, ByteTokenizer(), turns or Turns())  # type: ignore[arg-type]
        keyring = Keyring(keys) if keys else None
        app = create_app(
            backend, keyring=keyring, audit=AuditLog(tmp_path / "audit.jsonl"), bounds=bounds, default_max_tokens=16
        )
        where = Address(port=0, **{"grace_seconds": 5.0, **address})
        where.check(keyring)
        bound = where.bind()
        one = Running(Server(app, where, backend), bound, where.url(bound), engine, backend)
        one.begin()
        running.append(one)
        return one

    yield start
    for one in running:
        if one.server.started and not one.server.should_exit:
            one.end()

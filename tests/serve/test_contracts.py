"""What `skipwise.serve.listen` takes uvicorn and h11 to be, asked of these libraries themselves."""

import asyncio
import inspect
from typing import Any

import h11
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState


def protocol() -> Any:
    config = uvicorn.Config(None, http=H11Protocol, ws="none", lifespan="off")  # type: ignore[arg-type]
    config.load()
    assert config.http_protocol_class is H11Protocol
    return H11Protocol(config, ServerState(), {}, asyncio.new_event_loop())


def test_a_protocol_of_uvicorn_knows_the_state_of_the_client() -> None:
    one = protocol()
    one.loop.close()
    assert isinstance(one.conn, h11.Connection)
    assert one.conn.their_state is h11.IDLE
    one.conn.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert (one.conn.next_event(), one.conn.their_state) == (h11.NEED_DATA, h11.IDLE), "half a head is no request"
    one.conn.receive_data(b"\r\n")
    one.conn.next_event()
    assert one.conn.their_state is not h11.IDLE
    assert hasattr(one, "transport")


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (H11Protocol, "connection_made", ["transport"]),
        (H11Protocol, "data_received", ["data"]),
        (H11Protocol, "connection_lost", ["exc"]),
        (H11Protocol, "pause_writing", []),
        (H11Protocol, "resume_writing", []),
        (uvicorn.Server, "startup", ["sockets"]),
        (uvicorn.Server, "shutdown", ["sockets"]),
        (uvicorn.Server, "handle_exit", ["sig", "frame"]),
        (uvicorn.Server, "capture_signals", []),
    ],
)
def test_what_is_extended_is_there_and_called_as_before(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters)[1:] == parameters


def test_a_server_says_whether_it_ends_and_what_it_still_does() -> None:
    server = uvicorn.Server(uvicorn.Config(None))  # type: ignore[arg-type]
    assert (server.started, server.should_exit, server.force_exit) == (False, False, False)
    assert server.server_state.tasks == set()

"""From an application to a server on a port: where it listens, how long it waits for slow clients, and how it ends.

The only file that knows what uvicorn and h11 look like inside; `tests/serve/test_contracts.py` asks them.
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from skipwise.errors import ConfigError
from skipwise.serve.backends import Backend
from skipwise.serve.keys import Keyring

_HEAD_BYTES = 64 << 10  # buffered while a head is incomplete
_SECONDS_TO_TELL = 2.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; all of TLS 1.3 are of this kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens.

    Attributes:
        host, port: of this machine; port 0 takes a free one.
        certificate, private_key: TLS files in PEM form; both or neither.
        head_seconds: within which the head of a request has to arrive.
        grace_seconds: for requests to finish when the server is told to end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
    head_seconds: float = 10.0
    grace_seconds: float = 60.0

    @property
    def is_loopback(self) -> bool:
        """Whether no other machine can reach it."""
        with contextlib.suppress(ValueError):
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        return False

    def check(self, keyring: Keyring | None) -> None:
        """Refuses to be reached by other machines without keys, and TLS files that cannot work.

        Raises:
            ConfigError: with what to do.
        """
        if not self.is_loopback and not keyring:
            raise ConfigError(
                f"--host is {self.host!r}, which other machines can reach, and there is no valid API key; make one "
                "with 'skipwise keys create NAME' and give --keys FILE, or listen on 127.0.0.1",
                page="server-start",
            )
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError(
                "TLS takes both --tls-cert FILE and --tls-key FILE; one was given: give both or neither",
                page="server-start",
            )
        if self.certificate is not None and self.private_key is not None:
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                    self.certificate, self.private_key, password=_no_password
                )
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"TLS with {str(self.certificate)!r} and {str(self.private_key)!r} cannot be used ({error}); give "
                    "a certificate and its own key in PEM form",
                    page="server-start",
                ) from error

    def bind(self) -> socket.socket:
        """Takes the port, without listening: until the model is there, connections are refused and not kept waiting.

        Raises:
            ConfigError: the port is taken, or the host is not this machine's.
        """
        try:
            family, *_, where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(where[:2])
            return bound
        except (OSError, UnicodeError) as error:
            raise self.taken(error) from error

    def taken(self, error: Exception) -> ConfigError:
        """The error of an address where the server cannot listen."""
        reason = getattr(error, "strerror", None) or error
        return ConfigError(
            f"cannot listen on {self.host} port {self.port} ({reason}); give another --host or --port",
            page="server-start",
        )

    def url(self, bound: socket.socket) -> str:
        """URL of the server that listens on a socket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{bound.getsockname()[1]}"


class _PatientProtocol(H11Protocol):
    """HTTP with two more timeouts: for the head of a request, which a byte now and then does not extend, and for a
    client to take its answer.
    """

    head_seconds = 10.0
    reading_seconds = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._end("head")

    def connection_lost(self, exc: Exception | None) -> None:
        for name in [*self._timers]:
            self._end(name)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Abort: to close would be to wait for the client to take the rest.
        self._timers["reading"] = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end("reading")

    def _wait_for_head(self) -> None:
        if "head" not in self._timers and not self.transport.is_closing():
            self._timers["head"] = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._end("head")
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _end(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


class Server(uvicorn.Server):
    """A server that finishes what runs and refuses what is new when it is told to end.

    The backend is started before the server listens, and stopped at the end or when the grace period is over. `ready`
    is called when it listens.
    """

    def __init__(self, app: Any, address: Address, backend: Backend, ready: Callable[[], None] = lambda: None) -> None:
        protocol = type("_Protocol", (_PatientProtocol,), {"head_seconds": address.head_seconds})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                # `startup` and `shutdown` below start and stop the backend: an error must come out of `run`.
                lifespan="off",
                # Its lines would hold paths, which are the client's text, and tracebacks of what was cut off.
                access_log=False,
                log_level="critical",
                # Any client on this machine could claim to come from elsewhere.
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=_HEAD_BYTES,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=int(address.grace_seconds) + 30,
                ssl_certfile=address.certificate,
                ssl_keyfile=address.private_key,
                ssl_ciphers=_CIPHERS,
            )
        )
        self._address, self._backend, self._ready = address, backend, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, and SIGHUP of a closed terminal as well, unless nohup has it ignored."""
        with super().capture_signals():
            number = getattr(signal, "SIGHUP", None)
            is_main = threading.current_thread() is threading.main_thread()
            if number is None or not is_main or signal.getsignal(number) == signal.SIG_IGN:
                yield
                return
            before = signal.signal(number, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(number, before)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: the first one ends the server gracefully, a second one at once."""
        self._backend.drain()
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the backend, and listens, unless it was told to end meanwhile.

        Raises:
            ConfigError: the backend cannot start, or another process has begun to listen there.
        """
        await self._backend.start()
        try:
            if self.should_exit:
                await self._backend.stop()
                return
            await super().startup(sockets=sockets)
        except OSError as error:
            await self._backend.stop()
            raise self._address.taken(error) from error
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends gracefully."""
        self._backend.drain()
        cutting = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cutting.cancel()
            await self._backend.stop()
            # Clients that were cut off are told so before the loop ends.
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=_SECONDS_TO_TELL)

    async def _cut_off(self) -> None:
        await asyncio.sleep(self._address.grace_seconds)
        print("skipwise: the grace period is over; what still ran is cut off", file=sys.stderr)
        await self._backend.stop()


def _no_password() -> str:
    """A server has nobody to ask."""
    raise ConfigError(
        "the private key of --tls-key is encrypted; give one without a passphrase, which its owner alone can read",
        page="server-start",
    )

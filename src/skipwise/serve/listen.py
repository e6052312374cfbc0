"""From an application to a server on a port: where it listens, how long it waits for slow senders, and how it ends."""

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

_HEAD_BYTES = 64 << 10  # that may wait for the rest of a head
_SECONDS_TO_TELL = 2.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all of this kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens.

    Attributes:
        host, port: of this machine; port 0 takes a free one.
        certificate, private_key: files of TLS, in PEM form; both or neither.
        head_seconds: within which a request's head has to be there.
        grace_seconds: for requests to be finished when the server is told to end.
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
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def check(self, keyring: Keyring | None) -> None:
        """Refuses to be reached by others without keys, and TLS that cannot work.

        Raises:
            ConfigError: with what to do.
        """
        if not self.is_loopback and not keyring:
            raise ConfigError(
                f"--host is {self.host!r}, which other machines can reach, and there is no API key that holds; make "
                "one with 'skipwise keys create NAME' and give --keys FILE, or listen on 127.0.0.1"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS takes both --tls-cert FILE and --tls-key FILE; one was given: give both or neither")
        if self.certificate is not None and self.private_key is not None:
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                    self.certificate, self.private_key, password=_no_password
                )
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"TLS with {str(self.certificate)!r} and {str(self.private_key)!r} cannot be used ({error}); give "
                    "a certificate and its own key in PEM form"
                ) from error

    def bind(self) -> socket.socket:
        """Takes the port.

        Raises:
            ConfigError: it is taken, or the host is none of this machine's.
        """
        try:
            family, *_, where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Nobody is listened to yet: until the model is there, who calls is refused and not kept waiting.
            bound.bind(where[:2])
            return bound
        except (OSError, UnicodeError) as error:
            raise self.taken(error) from error

    def taken(self, error: Exception) -> ConfigError:
        """What is said where it cannot listen."""
        reason = getattr(error, "strerror", None) or error
        return ConfigError(f"cannot listen on {self.host} port {self.port} ({reason}); give another --host or --port")

    def url(self, bound: socket.socket) -> str:
        """Of the server that listens on a socket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{bound.getsockname()[1]}"


class _Patient(H11Protocol):
    """HTTP that waits, but not for ever: for the head of a request, of which a byte now and then does not keep a
    connection, and for a client to take its answer.
    """

    head_seconds = 10.0
    reading_seconds = 60.0
    _waiting: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        # To close would be to wait for the client to take the rest.
        self._writing = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _wait_for_head(self) -> None:
        if self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._waiting = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server that, told to end, finishes what runs and refuses what is new.

    Args:
        app: the application.
        address: where it listens.
        backend: is started before it listens, and stopped at the end or when the grace is over.
        drain: makes the application refuse requests.
        ready: is called when it listens.
    """

    def __init__(
        self,
        app: Any,
        address: Address,
        backend: Backend,
        drain: Callable[[], None],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        patient = type("Patient", (_Patient,), {"head_seconds": address.head_seconds})
        super().__init__(
            uvicorn.Config(
                app,
                http=patient,
                ws="none",
                lifespan="off",
                # Its lines would hold paths, which are the client's text, and tracebacks of what was cut off.
                access_log=False,
                log_level="critical",
                # Whoever is on this machine could say that they come from elsewhere.
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
        self._address, self._backend, self._drain, self._ready = address, backend, drain, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does; a terminal that is closed ends it in good order, too, unless nohup is to keep it."""
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
        """A signal: the first ends it in good order, a second at once."""
        self._drain()
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Makes the backend ready, and listens, unless it was told to end meanwhile.

        Raises:
            ConfigError: the backend cannot start, or somebody else has begun to listen there.
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
        """Ends in good order."""
        self._drain()
        cutting = asyncio.ensure_future(self._cut_off())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cutting.cancel()
            await self._backend.stop()
            # Whoever was cut off is told so before the loop ends.
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=_SECONDS_TO_TELL)

    async def _cut_off(self) -> None:
        """When the grace is over, what still runs is told so."""
        await asyncio.sleep(self._address.grace_seconds)
        print("skipwise: the grace is over; what still ran is cut off", file=sys.stderr)
        await self._backend.stop()


def _no_password() -> str:
    """A server has nobody to ask."""
    raise ConfigError(
        "the private key of --tls-key is encrypted; give one without a passphrase, which its owner alone can read"
    )

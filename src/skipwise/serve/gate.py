"""What every request passes before it is looked at: who sends it, how much, how fast; and what is kept of it.

Keys are looked at before a body is read, and a body is read within bounds of size and time. Whatever goes wrong behind
the gate comes out as an answer and never as a traceback, which could hold text.
"""

import asyncio
import ipaddress
import json
import secrets
import sys
import time
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from skipwise.errors import ConfigError
from skipwise.serve.audit import AuditLog, AuditRecord
from skipwise.serve.keys import Keyring, Role, UnknownKeyError
from skipwise.serve.metrics import Metrics
from skipwise.serve.refusals import Refusal, unrouted

ANSWERED = ("/v1/completions", "/v1/chat/completions")
PRIVATE = (*ANSWERED, "/v1/models", "/metrics")
PUBLIC = ("/", "/health", "/openapi.json")
CLIENT_GONE = 499

_HEAD_BYTES = 32 << 10
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of what a client may send.

    Attributes:
        body_bytes: of a request.
        body_seconds: for all of it to arrive.
        buffered_bytes: bodies of all requests that are here, those whose answer is on its way included.
        requests: at once, whatever they ask for.
    """

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0
    buffered_bytes: int = 256 << 20
    requests: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        id: of the key; "-" where none are needed.
        name: of its holder.
        role: what they may do.
    """

    id: str = "-"
    name: str = "-"
    role: Role = field(default_factory=Role)


class Gate:
    """An ASGI application around another.

    Args:
        app: the one behind.
        keyring: whose keys are asked for; None lets everybody in who calls this machine by a name of its own.
        bounds: of what may be sent.
        audit: what is kept of each request of `/v1`.
        metrics: what is counted.
    """

    def __init__(self, app: Any, keyring: Keyring | None, bounds: Bounds, audit: AuditLog, metrics: Metrics) -> None:
        self._app, self._keyring, self._bounds = app, keyring, bounds
        self._audit, self._metrics = audit, metrics
        self._requests = self._buffered = 0
        self._complaint = ""
        # Keys of the former version take some 50 ms of a core each, until they are used once.
        self._slow_checks = asyncio.Semaphore(2)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = AuditRecord(
            request_id=secrets.token_hex(12),
            client=(scope.get("client") or ("-",))[0],
            endpoint=_endpoint(scope["path"]),
        )
        out = _Sender(send, record)
        began = time.perf_counter()
        self._requests += 1
        try:
            await self._pass(scope, receive, out, record)
        except Refusal as refusal:
            await out.refuse(refusal)
        except Exception as error:
            _complain(error)
            await out.refuse(Refusal(500, "the server failed at this request", code="internal_error"))
        finally:
            self._requests -= 1
            record.seconds = time.perf_counter() - began
            record.status = record.status or CLIENT_GONE
            self._metrics.requests.labels(record.endpoint, record.status, record.mode or "-").inc()
            if record.endpoint not in PUBLIC and record.endpoint != "/metrics":
                self._audit.write(record)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Any, out: "_Sender", record: AuditRecord) -> None:
        if self._requests > self._bounds.requests:
            raise Refusal(
                503,
                f"{self._requests} requests are here, and {self._bounds.requests} may be; try again later",
                code="overloaded",
                retry_after=2,
            )
        _check_head(scope)
        headers = dict(scope["headers"])
        caller = Caller()
        if self._keyring is None:
            _check_host(headers)
        elif scope["path"] not in PUBLIC:
            if self._keyring.has_slow_keys:
                async with self._slow_checks:
                    caller = await asyncio.to_thread(self._caller, headers, self._keyring)
            else:
                caller = self._caller(headers, self._keyring)
        record.key, record.name = caller.id, caller.name
        held = _Held()
        try:
            body = await self._body(scope["method"], headers, receive, record, held)
            if body is None:
                return
            scope.setdefault("state", {}).update(caller=caller, record=record)
            await self._app(scope, _Replay(body, receive), out)
        finally:
            self._buffered -= held.size

    def _caller(self, headers: dict[bytes, bytes], keyring: Keyring) -> Caller:
        kind, _, presented = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        presented = presented.strip()
        if kind.lower() != "bearer" or not presented:
            raise Refusal(401, "no API key was given; send the header 'Authorization: Bearer KEY'", code="no_api_key")
        try:
            key, role = keyring.check(presented)
        except UnknownKeyError as error:
            raise Refusal(401, str(error), code="invalid_api_key") from error
        except ConfigError as error:
            # Once: anybody can ask again and again.
            if str(error) != self._complaint:
                print(f"skipwise: {error}", file=sys.stderr)
            self._complaint = str(error)
            raise Refusal(503, "keys cannot be checked now; try again later", retry_after=30) from error
        return Caller(id=key.id, name=key.name, role=role)

    async def _body(
        self, method: str, headers: dict[bytes, bytes], receive: Any, record: AuditRecord, held: "_Held"
    ) -> bytes | None:
        """The whole body; None where the client has gone away."""
        allowed = self._bounds.body_bytes if record.endpoint in ANSWERED else 0
        length = headers.get(b"content-length", b"0")
        announced = length != b"0" or b"transfer-encoding" in headers
        if announced and not allowed and method not in ("GET", "HEAD"):
            # No route takes it, whatever the size of its body.
            raise unrouted(404 if record.endpoint == "other" else 405)
        if length.isdigit() and int(length) > allowed:
            raise _too_large(f"{int(length)}", allowed)
        parts = []
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    held.size += len(part)
                    self._buffered += len(part)
                    parts.append(part)
                    if held.size > allowed:
                        raise _too_large(f"more than {allowed}", allowed)
                    if self._buffered > self._bounds.buffered_bytes:
                        raise Refusal(503, "too much is being sent at once", code="overloaded", retry_after=2)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError as error:
            seconds = self._bounds.body_seconds
            raise Refusal(
                408, f"the body took more than {seconds:g} seconds; send it faster", code="timeout"
            ) from error


@dataclass(slots=True)
class _Held:
    """Bytes of a body that are in memory."""

    size: int = 0


class _Sender:
    """Sends, adds the headers that all answers have, and notes the status."""

    def __init__(self, send: Any, record: AuditRecord) -> None:
        self._send, self._record = send, record

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            own = {**_HEADERS, "X-Request-ID": self._record.request_id}
            present = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name.lower().encode(), value.encode()) for name, value in own.items()]
            message["headers"] = [*message.get("headers", []), *(one for one in added if one[0] not in present)]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answers with a refusal, unless an answer has begun."""
        if self._record.status:
            self._record.status = refusal.status
            return
        content = json.dumps(refusal.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **refusal.headers}
        if refusal.status in (408, 413, 414, 431, 503):
            # What is left of the body is not waited for.
            headers["Connection"] = "close"
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refusal.status, "headers": encoded})
        await self._send({"type": "http.response.body", "body": content})


class _Replay:
    """Hands on a body that was read, and then whatever comes, which is that the client goes away."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _endpoint(path: str) -> str:
    """The route, of those that there are; what is behind it is the client's text."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in (*PRIVATE, *PUBLIC) else "other"


def _check_head(scope: MutableMapping[str, Any]) -> None:
    """Refuses what is too long, and what servers before this one may have read otherwise."""
    path = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if (size := path + sum(len(name) + len(value) for name, value in scope["headers"])) > _HEAD_BYTES:
        status = 414 if path > _HEAD_BYTES // 2 else 431
        raise Refusal(
            status, f"path and headers have {size} bytes, and {_HEAD_BYTES} are allowed", code="head_too_large"
        )
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refusal(400, "the head has both Content-Length and Transfer-Encoding; send one", code="invalid_head")
    if any(names.count(name) > 1 for name in (b"host", b"origin", b"authorization")):
        raise Refusal(400, "the head has Host, Origin or Authorization twice; send each once", code="invalid_head")


def _check_host(headers: dict[bytes, bytes]) -> None:
    """Without keys, a page of the web must not reach this server: by a name that leads here, or straight."""
    if not _is_loopback("//" + headers.get(b"host", b"").decode("latin-1")):
        raise Refusal(
            403, "this server answers to localhost, 127.0.0.1 and [::1]; call it by one of them", code="unknown_host"
        )
    origin = headers.get(b"origin")
    if origin is not None and not _is_loopback(origin.decode("latin-1")):
        raise Refusal(403, "this server answers no pages of other places without a key", code="unknown_origin")


def _is_loopback(url: str) -> bool:
    """Whether it is of this machine by its very name, which nobody else can have."""
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_large(given: str, allowed: int) -> Refusal:
    return Refusal(413, f"the body has {given} bytes, and {allowed} are allowed here; send less", code="body_too_large")


def _complain(error: Exception) -> None:
    """Where it happened and of what kind; its message may hold text of a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename} line {frames[-1].lineno}" if frames else "nowhere"
    print(f"skipwise: a request failed: {type(error).__name__} at {where}", file=sys.stderr)

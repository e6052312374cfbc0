"""What every request passes before a route sees it: who sends it, how much, how fast; and what is recorded of it.

Keys are checked before a body is read, and a body is read within limits of size and time. Whatever fails behind the
gate becomes an answer, never a traceback, which could hold text.
"""

import asyncio
import ipaddress
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skipwise.errors import ConfigError
from skipwise.serve.api import refusal_of, unrouted
from skipwise.serve.audit import AuditLog, AuditRecord
from skipwise.serve.keys import Keyring, Role
from skipwise.serve.metrics import Metrics
from skipwise.serve.refusals import Refusal, overloaded

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
    """Limits on what clients send.

    Attributes:
        buffered_bytes: bodies of all requests in progress together.
    """

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0
    buffered_bytes: int = 256 << 20
    requests: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the id of the key ("-" where none is needed), the names of holder and role, and what they may do."""

    id: str = "-"
    name: str = "-"
    role_name: str = "-"
    role: Role = field(default_factory=Role)


class Gate:
    """ASGI middleware in front of the routes. It answers every exception that they raise.

    Without a keyring it admits requests to a loopback name of this machine. The audit log gets a record of each request
    of `/v1`, and of each to an unknown path.
    """

    def __init__(
        self, app: ASGIApp, keyring: Keyring | None, bounds: Bounds, audit: AuditLog, metrics: Metrics
    ) -> None:
        self._app, self._keyring, self._bounds = app, keyring, bounds
        self._audit, self._metrics = audit, metrics
        self._requests = self._buffered = 0
        self._complaint = ""
        # A key of the former version takes about 50 ms of a core, until it is first used.
        self._slow_checks = asyncio.Semaphore(2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = AuditRecord(
            request_id=secrets.token_hex(12),
            role="-",
            client=(scope.get("client") or ("-",))[0],
            endpoint=_endpoint(scope["path"]),
        )
        began = time.perf_counter()
        self._requests += 1
        try:
            await self._answer(scope, receive, _recorded(send, record), record)
        finally:
            self._requests -= 1
            record.seconds = time.perf_counter() - began
            record.status = record.status or CLIENT_GONE
            self._metrics.requests.labels(record.endpoint, record.status, record.mode or "-").inc()
            if record.endpoint not in (*PUBLIC, "/metrics"):
                self._audit.write(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: AuditRecord) -> None:
        body_is_read = False
        try:
            caller = await self._admitted(scope)
            record.key, record.name, record.role = caller.id, caller.name, caller.role_name
            async with self._body(scope, receive, record) as body:
                if body is not None:
                    body_is_read = True
                    scope.setdefault("state", {}).update(caller=caller, record=record)
                    await self._app(scope, _replaying(body, receive), send)
        except Exception as error:
            refusal = refusal_of(error)
            record.code = refusal.code
            if record.status:
                # An answer has begun: all that is left is to record what became of it.
                record.status = refusal.status
                return
            # The rest of a body that was not read is not waited for.
            closing = not body_is_read and refusal.status in (408, 413, 414, 431, 503)
            headers = refusal.headers | ({"Connection": "close"} if closing else {})
            response = Response(json.dumps(refusal.body), refusal.status, headers, "application/json")
            await response(scope, receive, send)

    async def _admitted(self, scope: Scope) -> Caller:
        """Who asks, if they may ask at all."""
        if self._requests > self._bounds.requests:
            raise overloaded(f"{self._requests} requests are in progress and {self._bounds.requests} may be")
        headers = Headers(scope=scope)
        _check_head(scope, headers)
        if self._keyring is None:
            _check_host(headers)
        elif scope["path"] not in PUBLIC:
            if not self._keyring.has_slow_keys:
                return self._caller(headers, self._keyring)
            async with self._slow_checks:
                return await asyncio.to_thread(self._caller, headers, self._keyring)
        return Caller()

    def _caller(self, headers: Headers, keyring: Keyring) -> Caller:
        kind, _, presented = headers.get("authorization", "").partition(" ")
        presented = presented.strip()
        if kind.lower() != "bearer" or not presented:
            raise Refusal(401, "no API key was given; send the header 'Authorization: Bearer KEY'", code="no_api_key")
        try:
            key, role = keyring.check(presented)
        except ConfigError as error:
            # Printed once: anybody can ask again and again.
            if str(error) != self._complaint:
                print(f"skipwise: {error}", file=sys.stderr)
            self._complaint = str(error)
            raise Refusal(503, "keys cannot be checked now; try again later", retry_after=30) from error
        return Caller(id=key.id, name=key.name, role_name=key.role, role=role)

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive, record: AuditRecord) -> AsyncIterator[bytes | None]:
        """The whole body, counted as buffered until the context ends; None if the client has left."""
        headers, seconds = Headers(scope=scope), self._bounds.body_seconds
        allowed = self._bounds.body_bytes if record.endpoint in ANSWERED else 0
        length = headers.get("content-length", "0")
        announced = length != "0" or "transfer-encoding" in headers
        if announced and not allowed and scope["method"] not in ("GET", "HEAD"):
            # No route takes it, whatever the size of its body.
            raise unrouted(404 if record.endpoint == "other" else 405)
        if length.isdecimal() and int(length) > allowed:
            raise _too_large(length, allowed)
        size, parts, more = 0, [], True
        try:
            try:
                async with asyncio.timeout(seconds):
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            break
                        part = message.get("body", b"")
                        size, self._buffered = size + len(part), self._buffered + len(part)
                        parts.append(part)
                        if size > allowed:
                            raise _too_large(f"more than {allowed}", allowed)
                        if self._buffered > self._bounds.buffered_bytes:
                            raise overloaded("too much is being sent at once")
                        more = message.get("more_body", False)
            except TimeoutError as error:
                message = f"the body took more than {seconds:g} seconds; send it faster"
                raise Refusal(408, message, code="timeout") from error
            body = None if more else b"".join(parts)
            parts.clear()
            yield body
        finally:
            self._buffered -= size


def _recorded(send: Send, record: AuditRecord) -> Send:
    """`send` that adds the headers of all answers and records the status."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, "X-Request-ID": record.request_id}.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def _replaying(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives a body that was read, and then what comes next: that the client leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _endpoint(path: str) -> str:
    """The route; any other path is the client's text."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in (*PRIVATE, *PUBLIC) else "other"


def _check_head(scope: Scope, headers: Headers) -> None:
    """Refuses heads that are too long, or that a proxy in front may have read otherwise."""
    path = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if (size := path + sum(len(name) + len(value) for name, value in headers.raw)) > _HEAD_BYTES:
        status = 414 if path > _HEAD_BYTES // 2 else 431
        message = f"path and headers have {size} bytes and {_HEAD_BYTES} are allowed"
        raise Refusal(status, message, code="head_too_large")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Refusal(400, "the head has both Content-Length and Transfer-Encoding; send one", code="invalid_head")
    if any(len(headers.getlist(name)) > 1 for name in ("host", "origin", "authorization")):
        raise Refusal(400, "the head has Host, Origin or Authorization twice; send each once", code="invalid_head")


def _check_host(headers: Headers) -> None:
    """Without keys, no web page may reach this server, by DNS rebinding or by a cross-origin request."""
    if not _is_loopback("//" + headers.get("host", "")):
        raise Refusal(
            403, "this server answers to localhost, 127.0.0.1 and [::1]; call it by one of them", code="unknown_host"
        )
    origin = headers.get("origin")
    if origin is not None and not _is_loopback(origin):
        raise Refusal(403, "without a key, this server answers no pages of other origins", code="unknown_origin")


def _is_loopback(url: str) -> bool:
    """Whether its host is a name or an address that only this machine can have."""
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_large(given: str, allowed: int) -> Refusal:
    return Refusal(413, f"the body has {given} bytes and {allowed} are allowed; send less", code="body_too_large")

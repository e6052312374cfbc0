"""The server's routes: OpenAI's API over a backend, health, metrics, and the page."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from skipwise import __version__
from skipwise.inference.engine import GenerationRequest
from skipwise.serve.api import (
    Answer,
    ChatBody,
    CompletionBody,
    Taken,
    Usage,
    model_body,
)
from skipwise.serve.audit import AuditLog, AuditRecord
from skipwise.serve.backends import Backend, Message, ServedModel
from skipwise.serve.gate import CLIENT_GONE, Bounds, Caller, Gate
from skipwise.serve.handlers import add_handlers
from skipwise.serve.keys import Keyring
from skipwise.serve.limits import Limiter
from skipwise.serve.metrics import Metrics
from skipwise.serve.page import PAGE, PAGE_POLICY
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Progress

T = TypeVar("T")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be answered; the message says why, with the numbers"},
    401: {"description": "No key, or one that is unknown, expired or revoked"},
    403: {"description": "The key's role does not allow it"},
    404: {"description": "No such model"},
    408: {"description": "The body came too slowly"},
    413: {"description": "The body is too large"},
    429: {"description": "Too many requests or tokens; Retry-After says when to try again"},
    503: {"description": "Overloaded or shutting down; Retry-After says when to try again"},
}


@dataclass(slots=True)
class _Service:
    """What routes share."""

    backend: Backend
    limiter: Limiter
    metrics: Metrics
    default_max_tokens: int
    draining: bool = False

    def drain(self) -> None:
        """From now on, and for good, new requests are refused."""
        self.draining = True
        self.backend.drain()


def create_app(
    backend: Backend,
    *,
    keyring: Keyring | None = None,
    audit: AuditLog | None = None,
    bounds: Bounds | None = None,
    default_max_tokens: int = 256,
) -> tuple[Gate, Callable[[], None]]:
    """The server over a backend.

    Args:
        backend: whoever answers; `listen.Server` starts and stops it.
        keyring: whose keys are asked for; None for a server that only this machine reaches.
        audit: what is kept of requests.
        bounds: of what may be sent.
        default_max_tokens: generated at most where a request does not say.

    Returns:
        The application, and what makes it refuse requests while those that run are finished.
    """
    service = _Service(backend, Limiter(), Metrics(), default_max_tokens)

    app = FastAPI(
        title="skipwise",
        version=__version__,
        description="One model with two modes behind OpenAI's API.",
        # Their pages load scripts from the network.
        docs_url=None,
        redoc_url=None,
        # They would send a key on to an address made of what the client sent.
        redirect_slashes=False,
        # Else an environment variable could have it send traces of requests, bodies among them.
        telemetry=dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False),  # pyright: ignore
    )
    add_handlers(app)
    _add_routes(app, service)
    gate = Gate(app, keyring, bounds or Bounds(), audit or AuditLog(None), service.metrics)
    return gate, service.drain


def _add_routes(app: FastAPI, service: _Service) -> None:
    @app.post("/v1/completions", responses=_REFUSALS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continues a text."""
        return await _answer(service, request, body, body.text_or_ids, chat=False)

    @app.post("/v1/chat/completions", responses=_REFUSALS)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answers messages."""
        return await _answer(service, request, body, [one.plain for one in body.messages], chat=True)

    @app.get("/v1/models", responses={401: _REFUSALS[401]})
    async def models(request: Request) -> dict[str, Any]:
        """Lists what may be asked for."""
        caller: Caller = request.state.caller
        data = [model_body(name, _window(one, caller)) for name, one in _allowed(service, caller).items()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}", responses={one: _REFUSALS[one] for one in (401, 404)})
    async def model(name: str, request: Request) -> dict[str, Any]:
        """Says whether one may be asked for."""
        caller: Caller = request.state.caller
        return model_body(name, _window(_model_for(service, caller, name), caller))

    @app.get("/health", responses={503: {"description": "Shutting down, or nobody there who computes"}})
    async def health() -> Response:
        """Whether requests are answered."""
        well = not service.draining and await service.backend.is_healthy()
        return JSONResponse({"status": "ok" if well else "unavailable"}, 200 if well else 503)

    @app.get("/metrics", response_class=Response, responses={401: _REFUSALS[401]})
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        running, waiting = service.backend.load
        service.metrics.running.set(running)
        service.metrics.waiting.set(waiting)
        return Response(service.metrics.render(), media_type=Metrics.content_type)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """A page to ask from."""
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


async def _answer(
    service: _Service,
    request: Request,
    body: CompletionBody | ChatBody,
    prompt: str | list[int] | list[Message],
    *,
    chat: bool,
) -> Response:
    """An answer, whole or as a stream, or a Refusal."""
    began = time.perf_counter()
    caller: Caller = request.state.caller
    record: AuditRecord = request.state.record
    model = _model_for(service, caller, body.model)
    record.model = model.name
    service.limiter.take_request(caller.id, caller.role)
    ids: Any = prompt
    if not isinstance(prompt[0], int):
        ids = await _while_there(request, service.backend.tokenize(prompt))  # type: ignore[arg-type]
    wanted = _checked(service, caller, model, body, ids)
    record.prompt_tokens, record.mode = len(wanted.prompt_ids), service.backend.mode_of(wanted)
    service.limiter.take_tokens(caller.id, caller.role, wanted.total_tokens)
    running = _Running(service, record, wanted, caller, began)
    try:
        entering = running.stack.enter_async_context(service.backend.run(caller.id, wanted))
        progress = await _while_there(request, entering)
    except BaseException:
        # Nothing was computed.
        await running.stack.aclose()
        service.limiter.give_back(caller.id, wanted.total_tokens)
        raise
    answer = Answer(record.request_id, body.model, chat=chat)
    headers = {"X-Skipwise-Mode": record.mode}
    if body.stream:
        counted = body.stream_options is not None and body.stream_options.include_usage
        return _Stream(running, _events(running, answer, progress, counted), headers)
    try:
        return await _whole(request, running, answer, progress, headers)
    finally:
        await running.close()


def _allowed(service: _Service, caller: Caller) -> dict[str, ServedModel]:
    """The models that the caller may ask for."""
    models, allowed = service.backend.models, caller.role.models
    return models if allowed is None else {name: model for name, model in models.items() if name in allowed}


def _window(model: ServedModel, caller: Caller) -> int:
    """Tokens that a request of the caller may come to."""
    return min(model.window, caller.role.max_context or model.window)


def _model_for(service: _Service, caller: Caller, name: str) -> ServedModel:
    """The model of that name, which the caller may ask for."""
    allowed = _allowed(service, caller)
    if name not in allowed:
        # The name that was asked for is the client's text: it is told, and kept nowhere.
        raise Refusal(
            404,
            f"model is {name[:80]!r}; this key may use: {', '.join(allowed) or 'none'}",
            code="model_not_found",
            param="model",
        )
    return allowed[name]


def _checked(
    service: _Service, caller: Caller, model: ServedModel, body: CompletionBody | ChatBody, ids: list[int]
) -> GenerationRequest:
    """The request for the engine, within the model's window and what the role allows."""
    if not ids:
        raise Refusal(400, "the prompt is empty; give at least one token of text", param="prompt")
    largest = service.backend.num_ids
    if largest is not None and max(ids) >= largest:
        raise Refusal(400, f"a token id is {max(ids)}; this model's are below {largest}", param="prompt")
    limit = _window(model, caller)
    max_new = body.new_tokens or max(1, min(service.default_max_tokens, limit - len(ids)))
    total = len(ids) + max_new
    if total > model.window:
        raise Refusal(
            400,
            f"the prompt has {len(ids)} tokens and up to {max_new} are to follow, which makes {total}; {model.name!r} "
            f"holds {model.window} tokens: shorten the prompt or max_tokens",
            code="context_length_exceeded",
            param="max_tokens" if len(ids) < model.window else "prompt",
        )
    if total > limit:
        raise Refusal(
            403,
            f"the prompt has {len(ids)} tokens and up to {max_new} are to follow, which makes {total}; this key may "
            f"ask for {limit}: shorten the prompt or max_tokens, or ask for another role",
            code="context_length_not_allowed",
        )
    return body.to_request(ids, max_new, model.mode)


class _Running:
    """A request that is computed, and what has to be settled when it ends, however it ends."""

    def __init__(
        self, service: _Service, record: AuditRecord, wanted: GenerationRequest, caller: Caller, began: float
    ) -> None:
        self.stack = AsyncExitStack()
        self._service, self._record, self._wanted, self._caller = service, record, wanted, caller
        self._began = began
        self._first_token_seconds: float | None = None
        self._closed = False

    def note(self, progress: Progress) -> None:
        """Counts what has come."""
        self._record.completion_tokens += progress.tokens
        if progress.text and self._first_token_seconds is None:
            self._first_token_seconds = time.perf_counter() - self._began

    def fail(self, status: int) -> None:
        """Notes what became of it after its answer had begun."""
        self._record.status = status

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        read, written = self._record.prompt_tokens, self._record.completion_tokens
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    @property
    def taken(self) -> Taken:
        """Time so far."""
        return Taken(
            mode=str(self._record.mode),
            seconds=round(time.perf_counter() - self._began, 4),
            first_token_seconds=self._first_token_seconds and round(self._first_token_seconds, 4),
        )

    async def close(self) -> None:
        """Stops what computes, if it still does, and settles the account."""
        if self._closed:
            return
        self._closed = True
        await self.stack.aclose()
        record, mode = self._record, str(self._record.mode)
        self._service.limiter.give_back(self._caller.id, self._wanted.max_new_tokens - record.completion_tokens)
        metrics = self._service.metrics
        metrics.tokens.labels("prompt", mode).inc(record.prompt_tokens)
        metrics.tokens.labels("completion", mode).inc(record.completion_tokens)
        metrics.request_seconds.labels(mode).observe(time.perf_counter() - self._began)
        if self._first_token_seconds is not None:
            metrics.first_token_seconds.labels(mode).observe(self._first_token_seconds)


class _Stream(StreamingResponse):
    """Server-sent events; when the client goes away, what computes them stops."""

    def __init__(self, running: _Running, events: AsyncGenerator[str], headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._running, self._events = running, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Or the audit's line could be written before it is noted that the client has gone.
            await self._events.aclose()
            await self._running.close()


async def _events(
    running: _Running, answer: Answer, progress: AsyncIterator[Progress], counted: bool
) -> AsyncGenerator[str]:
    complete = False
    try:
        if (opening := answer.opening()) is not None:
            yield _event(opening)
        async for one in progress:
            running.note(one)
            if (refusal := _refusal_of(one)) is not None:
                running.fail(refusal.status)
                complete = True
                yield _event(refusal.body)
                return
            if one.text:
                yield _event(answer.piece(one.text))
            if one.finish_reason is not None:
                yield _event(answer.ending(one.finish_reason, running.taken))
        if counted:
            yield _event(answer.counted(running.usage))
        complete = True
        yield "data: [DONE]\n\n"
    finally:
        if not complete:
            running.fail(CLIENT_GONE)


async def _whole(
    request: Request, running: _Running, answer: Answer, progress: AsyncIterator[Progress], headers: dict[str, str]
) -> Response:
    """All of an answer at once, unless the client goes away before."""

    async def collect() -> tuple[str, Progress]:
        texts = []
        async for one in progress:
            running.note(one)
            texts.append(one.text)
            if one.is_last:
                return "".join(texts), one
        raise AssertionError("an answer without an end")

    text, last = await _while_there(request, collect())
    if (refusal := _refusal_of(last)) is not None:
        raise refusal
    content = answer.whole(text, last.finish_reason or "stop", running.usage, running.taken)
    return JSONResponse(content, headers=headers)


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work, which ends where the client goes away before.

    Raises:
        Refusal: 499, which nobody gets and the audit keeps.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(CLIENT_GONE, "the client went away before its answer was there")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _refusal_of(progress: Progress) -> Refusal | None:
    if progress.finish_reason == "closed":
        return Refusal(503, "the server shut down before the answer was complete", code="shutting_down", retry_after=5)
    return progress.error


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

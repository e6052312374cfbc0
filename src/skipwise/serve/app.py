"""The server's routes: OpenAI's API over a backend, health, metrics, and the page."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from skipwise import __version__
from skipwise.inference.engine import GenerationRequest
from skipwise.serve.api import Answer, ChatBody, CompletionBody, model_body
from skipwise.serve.audit import AuditLog, AuditRecord
from skipwise.serve.backends import Backend, Message, ServedModel
from skipwise.serve.gate import CLIENT_GONE, Bounds, Caller, Gate
from skipwise.serve.keys import Keyring
from skipwise.serve.limits import Limiter
from skipwise.serve.metrics import Metrics
from skipwise.serve.page import PAGE, PAGE_POLICY
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Cost, Progress

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


def create_app(
    backend: Backend,
    *,
    keyring: Keyring | None = None,
    audit: AuditLog | None = None,
    bounds: Bounds | None = None,
    default_max_tokens: int = 256,
) -> FastAPI:
    """The server over a backend, which `listen.Server` starts and stops; without a keyring, for this machine alone."""
    service = _Service(backend, Limiter(), Metrics(), default_max_tokens)
    app = FastAPI(
        title="skipwise",
        version=__version__,
        description="One model with two modes behind OpenAI's API.",
        # These pages load scripts from the network.
        docs_url=None,
        redoc_url=None,
        # A redirect would send a key on to an address made of what the client sent.
        redirect_slashes=False,
        # Or an environment variable could make it send traces of requests, bodies included.
        telemetry=dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False),  # pyright: ignore
        # The gate answers these as it answers all errors, in OpenAI's form.
        exception_handlers={RequestValidationError: _raise, HTTPException: _raise},
    )
    app.add_middleware(
        Gate, keyring=keyring, bounds=bounds or Bounds(), audit=audit or AuditLog(None), metrics=service.metrics
    )
    _add_answers(app, service)
    _add_views(app, service)
    return app


async def _raise(_: Request, error: Exception) -> Response:
    raise error


def _add_answers(app: FastAPI, service: "_Service") -> None:
    @app.post("/v1/completions", responses=_REFUSALS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continues a text."""
        return await _while_connected(request, service.answer(request, body, body.text_or_ids, chat=False))

    @app.post("/v1/chat/completions", responses=_REFUSALS)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answers messages."""
        messages = [one.plain for one in body.messages]
        return await _while_connected(request, service.answer(request, body, messages, chat=True))


def _add_views(app: FastAPI, service: "_Service") -> None:
    @app.get("/v1/models", responses={401: _REFUSALS[401]})
    async def models(request: Request) -> dict[str, Any]:
        """Lists the models that the key may use."""
        caller: Caller = request.state.caller
        data = [model_body(name, _window(model, caller)) for name, model in service.allowed(caller).items()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}", responses={one: _REFUSALS[one] for one in (401, 404)})
    async def model(name: str, request: Request) -> dict[str, Any]:
        """Describes one model, if the key may use it."""
        caller: Caller = request.state.caller
        return model_body(name, _window(service.model(caller, name), caller))

    @app.get("/health", responses={503: {"description": "Shutting down, or the engine is gone"}})
    async def health() -> Response:
        """Whether requests are answered."""
        well = not service.backend.is_draining and await service.backend.is_healthy()
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


def _window(model: ServedModel, caller: Caller) -> int:
    """Most tokens of a request of this caller."""
    return min(model.window, caller.role.max_context or model.window)


@dataclass(slots=True)
class _Service:
    """What routes share."""

    backend: Backend
    limiter: Limiter
    metrics: Metrics
    default_max_tokens: int

    def allowed(self, caller: Caller) -> dict[str, ServedModel]:
        """The models that the caller may use."""
        models, names = self.backend.models, caller.role.models
        return models if names is None else {name: model for name, model in models.items() if name in names}

    def model(self, caller: Caller, name: str) -> ServedModel:
        """The model of that name, if the caller may use it."""
        allowed = self.allowed(caller)
        if name not in allowed:
            # The name is the client's text: it is sent back, and recorded nowhere.
            message = f"model is {name[:80]!r}; this key may use: {', '.join(allowed) or 'none'}"
            raise Refusal(404, message, code="model_not_found", param="model")
        return allowed[name]

    async def answer(
        self, request: Request, body: CompletionBody | ChatBody, prompt: str | list[int] | list[Message], *, chat: bool
    ) -> Response:
        """An answer, whole or as a stream. Raises Refusal."""
        began = time.perf_counter()
        caller: Caller = request.state.caller
        record: AuditRecord = request.state.record
        model = self.model(caller, body.model)
        record.model, record.original_window = model.name, self.backend.original_window
        self.limiter.take_request(caller.id, caller.role)
        ids: Any = prompt if isinstance(prompt[0], int) else await self.backend.tokenize(prompt)  # type: ignore[arg-type]
        wanted = self._checked(caller, model, body, ids, record)
        record.prompt_tokens, record.mode = len(ids), self.backend.mode_of(wanted)
        answer, headers = Answer(record.request_id, body.model, chat=chat), {"X-Skipwise-Mode": record.mode}
        async with AsyncExitStack() as stack:
            computation = await stack.enter_async_context(self._computation(caller, record, wanted, began))
            if body.stream:
                counts = body.stream_options is not None and body.stream_options.include_usage
                return _Stream(_events(computation, answer, counts), stack.pop_all(), headers)
            text = "".join([progress.text async for progress in computation])
            content = answer.whole(text, computation.finish_reason)
            return JSONResponse(content | computation.usage | computation.taken, headers=headers)

    def _checked(
        self, caller: Caller, model: ServedModel, body: CompletionBody | ChatBody, ids: list[int], record: AuditRecord
    ) -> GenerationRequest:
        """The request for the engine, within the model's window and the role's limits."""
        if not ids:
            raise Refusal(400, "the prompt is empty; give at least one token of text", param="prompt")
        largest = self.backend.num_ids
        if largest is not None and max(ids) >= largest:
            raise Refusal(400, f"a token id is {max(ids)}; this model's are below {largest}", param="prompt")
        limit = _window(model, caller)
        max_new = body.new_tokens or max(1, min(self.default_max_tokens, limit - len(ids)))
        record.asked_tokens = total = len(ids) + max_new
        if total > limit:
            given = f"the prompt has {len(ids)} tokens and up to {max_new} may follow, {total} in all"
            if total > model.window:
                raise Refusal(
                    400,
                    f"{given}; {model.name!r} holds {model.window} tokens: shorten the prompt or max_tokens",
                    code="context_length_exceeded",
                    param="max_tokens" if len(ids) < model.window else "prompt",
                )
            raise Refusal(
                403,
                f"{given}; this key may ask for {limit}: shorten the prompt or max_tokens, or ask for another role",
                code="context_length_not_allowed",
            )
        return body.to_request(ids, max_new, model.mode)

    @asynccontextmanager
    async def _computation(
        self, caller: Caller, record: AuditRecord, wanted: GenerationRequest, began: float
    ) -> AsyncIterator["_Computation"]:
        """The request while it is computed. Leaving early stops it; at the end, unused tokens are given back."""
        self.limiter.take_tokens(caller.id, caller.role, wanted.total_tokens)
        unused, cost = wanted.total_tokens, Cost()
        try:
            async with self.backend.run(caller.id, wanted, cost) as progress:
                computation = _Computation(progress, record, began)
                try:
                    yield computation
                finally:
                    unused = wanted.max_new_tokens - record.completion_tokens
                    self._count(computation)
        finally:
            record.wait_seconds, record.compute_seconds = cost.wait_seconds, cost.compute_seconds
            self.limiter.give_back(caller.id, unused)

    def _count(self, computation: "_Computation") -> None:
        record, metrics, mode = computation.record, self.metrics, str(computation.record.mode)
        metrics.tokens.labels("prompt", mode).inc(record.prompt_tokens)
        metrics.tokens.labels("completion", mode).inc(record.completion_tokens)
        metrics.request_seconds.labels(mode).observe(time.perf_counter() - computation.began)
        if record.first_token_seconds is not None:
            metrics.first_token_seconds.labels(mode).observe(record.first_token_seconds)


@dataclass(slots=True)
class _Computation:
    """A request that is computed: iterate over its progress once. Raises Refusal if it fails or is cut off."""

    progress: AsyncIterator[Progress]
    record: AuditRecord
    began: float
    finish_reason: str = "stop"

    async def __aiter__(self) -> AsyncIterator[Progress]:
        async for one in self.progress:
            self.record.completion_tokens += one.tokens
            if one.text and self.record.first_token_seconds is None:
                self.record.first_token_seconds = time.perf_counter() - self.began
            if one.error is not None:
                raise one.error
            self.finish_reason = one.finish_reason or self.finish_reason
            yield one

    @property
    def usage(self) -> dict[str, Any]:
        """The field `usage`: tokens so far."""
        read, written = self.record.prompt_tokens, self.record.completion_tokens
        return {"usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}

    @property
    def taken(self) -> dict[str, Any]:
        """The field `skipwise`, which OpenAI's API does not have: the mode, and seconds since the request came."""
        first = self.record.first_token_seconds
        return {
            "skipwise": {
                "mode": self.record.mode,
                "seconds": round(time.perf_counter() - self.began, 4),
                "first_token_seconds": None if first is None else round(first, 4),
            }
        }


class _Stream(StreamingResponse):
    """Server-sent events. However they end, `stack` is closed, which stops the computation."""

    def __init__(self, events: AsyncGenerator[str], stack: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._stack = events, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Before the gate writes the audit's line: this records that the client has left.
            await self.aclose()

    async def aclose(self) -> None:
        """Stops the computation."""
        await self._events.aclose()
        await self._stack.aclose()


async def _events(computation: _Computation, answer: Answer, counts: bool) -> AsyncGenerator[str]:
    is_complete = False
    try:
        if (opening := answer.opening()) is not None:
            yield _event(opening)
        async for one in computation:
            if one.text:
                yield _event(answer.piece(one.text))
        yield _event(answer.ending(computation.finish_reason) | computation.taken)
        if counts:
            yield _event(answer.counts() | computation.usage)
        is_complete = True
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        is_complete = True
        computation.record.status, computation.record.code = refusal.status, refusal.code
        yield _event(refusal.body)
    finally:
        if not is_complete:
            computation.record.status = CLIENT_GONE


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves before.

    Raises:
        Refusal: 499, which nobody receives and the audit log records.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        try:
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Refusal(CLIENT_GONE, "the client left before its answer was complete")
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        return working.result()
    except BaseException:
        # A stream that was made while this request was cancelled has no other owner.
        if working.done() and not working.cancelled() and working.exception() is None:
            stream = working.result()
            if isinstance(stream, _Stream):
                await stream.aclose()
        raise

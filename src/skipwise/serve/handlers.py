"""Why a request got no answer, in words: what handlers of the application make of errors."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from skipwise.config.reading import allowed_words
from skipwise.errors import ConfigError
from skipwise.serve.api import ChatBody, ChatMessage, CompletionBody, StreamOptions, TextFormat, TextPart
from skipwise.serve.refusals import Refusal, unrouted

_FIELDS = {
    name
    for model in (CompletionBody, ChatBody, ChatMessage, TextPart, StreamOptions, TextFormat)
    for name in model.model_fields
}
# Where several forms are allowed, pydantic would tell of each why it is not that one; and of what is not done here, how
# little of it may be asked for.
_HINTS = {
    "prompt": "give one text that is not empty, or the token ids of one",
    "stop": "give up to 4 texts of 1 to 256 characters",
    "n": "a request gets one answer; ask again for another",
    "best_of": "a request gets one answer; ask again for another",
    "logprobs": "probabilities are not told here; leave it out",
    "tools": "no tools are called here; leave them out",
    "response_format": "answers are plain text; leave it out",
}


def add_handlers(app: FastAPI) -> None:
    """Has an application tell all errors in the form of OpenAI's API, and no word of a prompt with them."""
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(ConfigError, _refused)
    app.add_exception_handler(Exception, _failed)


async def _refused(_: Request, error: Exception) -> Response:
    # What the engine says of lengths and settings is ConfigError: words and numbers, no text of a prompt.
    refusal = error if isinstance(error, Refusal) else Refusal(400, str(error), code="invalid_request")
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """The gate says on stderr what it was."""
    del error
    refusal = Refusal(500, "the server failed at this request", code="internal_error")
    return JSONResponse(refusal.body, refusal.status)


async def _unreadable(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    # A value of several allowed forms has an error for each of them; the one that it is of is further in.
    first = next(one for one in errors if not any(_field(other).startswith(_field(one) + ".") for other in errors))
    field = _field(first)
    message = f"{field or 'the body'}: {_HINTS.get(field.partition('.')[0]) or allowed_words(first)}"
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][-1])[:80]
        message = f"{field!r} is no field that is known here; leave it out"
    elif first["type"] == "model_attributes_type":
        message = "the body must be a JSON object, sent with the header 'Content-Type: application/json'"
    elif first["type"] == "json_invalid":
        message, field = f"the body is no JSON from character {field} on", ""
    refusal = Refusal(400, message, code="invalid_request", param=field[:80] or None)
    return JSONResponse(refusal.body, 400)


def _field(error: Mapping[str, Any]) -> str:
    """The field of an error; among the names of its place stand those of pydantic's own types."""
    return ".".join(str(part) for part in error["loc"][1:] if part in _FIELDS or isinstance(part, int))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = unrouted(error.status_code, str(error.detail))
    return JSONResponse(refusal.body, refusal.status, headers=error.headers)

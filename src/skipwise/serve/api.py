"""What clients send and get: the part of OpenAI's API that a text model can serve.

Fields that do not change the text are accepted and ignored. Fields that ask for what this server cannot do are refused,
so that no answer differs from what was asked for.
"""

import sys
import time
import traceback
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from skipwise.config.reading import allowed_words
from skipwise.errors import ConfigError
from skipwise.inference.engine import GenerationRequest, Mode
from skipwise.serve.backends import Message
from skipwise.serve.refusals import Refusal

Text = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, lt=1 << 31)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
# For what this server cannot do: the client may say that it wants none.
NoList = Annotated[list[Any], Field(max_length=0)] | None
NoDict = Annotated[dict[str, Any], Field(max_length=0)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """How a stream ends: `include_usage` asks for a last chunk with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Sampling(_Strict):
    """What both kinds of request say about the text to generate.

    Without `max_tokens` it is the server's default, or what is left of the window.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: NoDict = None
    # Accepted and ignored.
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate, as the request says."""
        return self.max_tokens

    def to_request(self, prompt_ids: list[int], max_new_tokens: int, mode: Mode | None) -> GenerationRequest:
        """The request for the engine."""
        return GenerationRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            mode=mode,
        )


class CompletionBody(_Sampling):
    """`/v1/completions`: one text, or its token ids; either may be in a list of one."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1)]
    )
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text_or_ids(self) -> str | list[int]:
        """The one prompt."""
        prompt: Any = self.prompt
        return prompt[0] if isinstance(prompt, list) and not isinstance(prompt[0], int) else prompt


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


_OTHER_PARTS = ("image_url", "input_image", "image", "input_audio", "audio", "video_url", "video", "file", "refusal")


def _text_only(content: Any) -> Any:
    """Names what is not text by its type, before pydantic tries each form of text in turn."""
    if content is None:
        raise PydanticCustomError("no_content", "it is null; give text, or parts of type 'text'")
    if not isinstance(content, str | list):
        raise PydanticCustomError("no_content", "give text, or a list of parts of type 'text'")
    for place, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            # An unknown type is the client's text, and not repeated.
            told = f"of type '{kind}'" if kind in _OTHER_PARTS else "of an unknown type"
            raise PydanticCustomError(
                "no_text_part",
                "part {place} is {told}, and this model reads text only; give parts of type 'text'",
                {"place": place, "told": told},
            )
    return content


class ChatMessage(_Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | Annotated[list[TextPart], Field(min_length=1)], BeforeValidator(_text_only)]
    name: str | None = None
    # Clients send answers back as they got them, with these fields empty.
    refusal: None = None
    annotations: NoList = None
    audio: None = None
    function_call: None = None
    tool_calls: NoList = None

    @property
    def plain(self) -> Message:
        """The message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class TextFormat(_Strict):
    """The only form of an answer: text."""

    type: Literal["text"]


class ChatBody(_Sampling):
    """`/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: TextFormat | None = None
    tools: NoList = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _one_maximum(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("two_maxima", "give max_completion_tokens or max_tokens, not both")
        return self

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate, under either name."""
        return self.max_completion_tokens or self.max_tokens


class Answer:
    """Makes the bodies of one answer, whole or in chunks, under the model's name as it was asked for."""

    def __init__(self, request_id: str, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._body("chat.completion", {"message": message} if self._chat else {"text": text}, finish_reason)

    def opening(self) -> dict[str, Any] | None:
        """The chunk before any text; only chats have one."""
        return self._chunk({"role": "assistant", "content": ""}, "") if self._chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk of text."""
        return self._chunk({"content": text}, text)

    def ending(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that ends the text."""
        return self._chunk({}, "", finish_reason)

    def counts(self) -> dict[str, Any]:
        """The chunk after the text, for the token counts."""
        return {**self._chunk({}, ""), "choices": []}

    def _chunk(self, delta: dict[str, str], text: str, finish_reason: str | None = None) -> dict[str, Any]:
        return self._body("chat.completion.chunk", {"delta": delta} if self._chat else {"text": text}, finish_reason)

    def _body(self, chat_object: str, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "object": chat_object if self._chat else "text_completion", "choices": [choice]}


def model_body(name: str, window: int) -> dict[str, Any]:
    """`/v1/models/NAME`: a name, and the most tokens of a request."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "skipwise", "max_model_len": window}


_FIELDS = {
    name
    for model in (CompletionBody, ChatBody, ChatMessage, TextPart, StreamOptions, TextFormat)
    for name in model.model_fields
}
# For a union, pydantic lists an error per type; for a forbidden list, it says that at most 0 items are allowed. These
# hints replace both.
_HINTS = {
    "prompt": "give one text that is not empty, or its token ids",
    "stop": "give up to 4 texts of 1 to 256 characters",
    "n": "a request gets one answer; ask again for another",
    "best_of": "a request gets one answer; ask again for another",
    "logprobs": "this server returns no probabilities; leave it out",
    "tools": "this server calls no tools; leave them out",
    "response_format": "answers are plain text; leave it out",
}
_UNROUTED = {
    400: "the body cannot be read as JSON in UTF-8",
    404: "there is nothing at this path; see /openapi.json",
    405: "this path takes another method",
}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told about an error: never text of a prompt, and of an unexpected error nothing at all."""
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return unrouted(error.status_code, str(error.detail), (error.headers or {}).get("Allow"))
        case ConfigError():
            # The engine's words and numbers about lengths and settings.
            return Refusal(400, str(error), code="invalid_request")
    # Its message may hold text of a prompt: stderr gets the type and the place.
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename} line {frames[-1].lineno}" if frames else "nowhere"
    print(f"skipwise: a request failed: {type(error).__name__} at {where}", file=sys.stderr)
    return Refusal(500, "the server failed at this request", code="internal_error")


def unrouted(status: int, otherwise: str = "", allow: str | None = None) -> Refusal:
    """The refusal of a request that no route takes."""
    return Refusal(status, _UNROUTED.get(status, otherwise), code="invalid_request", allow=allow)


def _invalid(error: RequestValidationError) -> Refusal:
    errors = error.errors()
    # A union gives an error for each type. The type that was meant is the one whose error lies deepest.
    first = next(one for one in errors if not any(_field(other).startswith(_field(one) + ".") for other in errors))
    field = _field(first)
    message = f"{field or 'the body'}: {_HINTS.get(field.partition('.')[0]) or allowed_words(first)}"
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][-1])[:80]
        message = f"{field!r} is not a known field; leave it out"
    elif first["type"] == "model_attributes_type":
        message = "the body must be a JSON object, sent with the header 'Content-Type: application/json'"
    elif first["type"] == "json_invalid":
        message, field = f"the body is not JSON from character {field} on", ""
    return Refusal(400, message, code="invalid_request", param=field[:80] or None)


def _field(error: Mapping[str, Any]) -> str:
    """The field of an error, without the names of pydantic's types that stand in its location."""
    return ".".join(str(part) for part in error["loc"][1:] if part in _FIELDS or isinstance(part, int))

"""What clients send and get: the part of OpenAI's API that a text model can keep.

Fields that change nothing in the text are read and forgotten; those that ask for what is not done here are refused, so
that no answer is other than it was asked for.
"""

import time
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from skipwise.inference.engine import GenerationRequest, Mode
from skipwise.serve.backends import Message

Text = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, lt=1 << 31)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# What may be said of things that are not done here: that none is wanted.
NoList = Annotated[list[Any], Field(max_length=0)] | None
NoDict = Annotated[dict[str, Any], Field(max_length=0)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """How a stream ends.

    Attributes:
        include_usage: a last chunk has the counts of tokens.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


class _Sampling(_Strict):
    """What both kinds of request say of the text to come.

    Attributes:
        model: a name of those that are served.
        max_tokens: to be generated at most; None for the server's default, or what is left of the window.
        temperature: 0 takes the likeliest token each time.
        stop: texts that end the output.
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
    # Read and forgotten.
    user: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def new_tokens(self) -> int | None:
        """To be generated at most, as the request says."""
        return self.max_tokens

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end the output."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def to_request(self, prompt_ids: list[int], max_new_tokens: int, mode: Mode | None) -> GenerationRequest:
        """What the engine is to do."""
        return GenerationRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=self.stop_texts,
            mode=mode,
        )


class CompletionBody(_Sampling):
    """`/v1/completions`.

    Attributes:
        prompt: a text, or token ids.
    """

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=1)]
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


def _of_text(content: Any) -> Any:
    """Refuses what is no text by its kind, before the forms of a text are tried in turn."""
    if content is None:
        raise PydanticCustomError("no_content", "it is null; give text, or parts of type 'text'")
    if not isinstance(content, str | list):
        raise PydanticCustomError("no_content", "give text, or a list of parts of type 'text'")
    for place, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            # A type that is not known here is the client's text.
            told = f"of type '{kind}'" if kind in _OTHER_PARTS else "of a type that is not known here"
            raise PydanticCustomError(
                "no_text_part",
                "part {place} is {told}, and this model reads text alone; give parts of type 'text'",
                {"place": place, "told": told},
            )
    return content


class ChatMessage(_Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | Annotated[list[TextPart], Field(min_length=1)], BeforeValidator(_of_text)]
    name: str | None = None
    # Answers come back as they were: with what they had none of.
    refusal: None = None
    annotations: NoList = None
    audio: None = None
    function_call: None = None
    tool_calls: NoList = None

    @property
    def plain(self) -> Message:
        """As templates take it."""
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
        """To be generated at most, as the request says under one name or the other."""
        return self.max_completion_tokens or self.max_tokens


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Taken(BaseModel):
    """What an answer took; ours, beside what OpenAI's API has.

    Attributes:
        mode: `short` (the base model) or `long` (the extended one).
        seconds: since the request came.
        first_token_seconds: until its first text.
    """

    mode: str
    seconds: float
    first_token_seconds: float | None


class Answer:
    """Makes the bodies of one answer, whole or in chunks.

    Args:
        request_id: of this request.
        model: the name that was asked for.
        chat: whether messages are answered.
    """

    def __init__(self, request_id: str, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish_reason: str, usage: Usage, taken: Taken) -> dict[str, Any]:
        """All at once."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        kind = "chat.completion" if self._chat else "text_completion"
        return {
            **self._head,
            "object": kind,
            "choices": [choice],
            "usage": usage.model_dump(),
            "skipwise": taken.model_dump(),
        }

    def opening(self) -> dict[str, Any] | None:
        """The chunk before any text; only chats have one."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self._chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk of text."""
        return self._chunk({"delta": {"content": text}} if self._chat else {"text": text})

    def ending(self, finish_reason: str, taken: Taken) -> dict[str, Any]:
        """The last chunk of the text."""
        chunk = self._chunk({"delta": {}} if self._chat else {"text": ""}, finish_reason)
        return {**chunk, "skipwise": taken.model_dump()}

    def counted(self, usage: Usage) -> dict[str, Any]:
        """The chunk after it, where it was asked for."""
        return {**self._chunk({}), "choices": [], "usage": usage.model_dump()}

    def _chunk(self, content: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice]}


def model_body(name: str, window: int) -> dict[str, Any]:
    """`/v1/models/NAME`: a name, and the most tokens that a request may come to."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "skipwise", "max_model_len": window}

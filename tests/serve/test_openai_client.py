"""OpenAI's own client, as it comes, against the server."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from serve.standin import StandIn, answer_to

TEXT: dict[str, Any] = {"model": "stand-in", "prompt": "abcdef", "max_tokens": 9}
CHAT: dict[str, Any] = {"model": "stand-in", "messages": [{"role": "user", "content": "abcdef"}], "max_tokens": 9}
MODELS = [("stand-in", 4096), ("stand-in:short", 64), ("stand-in:long", 4096)]


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return CHAT | {"messages": [{"role": role, "content": content}]}


def test_models(client: Any) -> None:
    assert [(one.id, one.max_model_len) for one in client.models.list()] == MODELS
    assert client.models.retrieve("stand-in:short").max_model_len == 64


def test_a_completion(client: Any) -> None:
    done = client.completions.create(**TEXT)
    assert done.choices[0].text == answer_to(b"abcdef", 9) == "fedcbafed"
    assert done.choices[0].finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (6, 9, 15)
    assert done.skipwise["mode"] == "short"
    chunks = list(client.completions.create(**TEXT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "fedcbafed"
    assert chunks[-1].choices[0].finish_reason == "length"
    ids = client.completions.create(model="stand-in", prompt=[104, 105], max_tokens=4)
    assert ids.choices[0].text == "ihih"


def test_a_chat(client: Any) -> None:
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": [{"type": "text", "text": "def"}]}]
    done = client.chat.completions.create(model="stand-in", messages=messages, max_completion_tokens=6)
    assert (done.choices[0].message.role, done.choices[0].message.content) == ("assistant", "fedcba")
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "fedcbafed"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 9)


def test_an_answer_may_be_sent_back_as_the_client_keeps_it(client: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "abc"}]
    for as_object in (False, True):
        message = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=2).choices[0].message
        # With all fields that such an object may have, and as an object.
        messages += [message if as_object else message.model_dump(), {"role": "user", "content": "xyz"}]
    done = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=2)
    assert done.choices[0].message.content == "zy"


def test_fields_that_change_no_text_are_taken(client: Any) -> None:
    nothing: dict[str, Any] = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "n": 1, "tools": []}
    ignored: dict[str, Any] = {"user": "u", "prompt_cache_key": "k", "modalities": ["text"], "metadata": {"a": "b"}}
    done = client.chat.completions.create(**CHAT, **nothing, **ignored, max_completion_tokens=9)
    assert done.choices[0].message.content == "fedcbafed"


PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
TOOL = {"type": "function", "function": {"name": "f"}}
CONTENT, TOO_LONG = "messages.0.content", "context_length_exceeded"


@pytest.mark.parametrize(
    ("request_body", "status", "code", "param", "named"),
    [
        (TEXT | {"model": "gpt-5"}, 404, "model_not_found", "model", "this key may use: stand-in"),
        (TEXT | {"prompt": "x" * 4096, "max_tokens": 1}, 400, TOO_LONG, "prompt", "has 4096 tokens and up to 1"),
        (TEXT | {"model": "stand-in:short", "prompt": "x" * 60, "max_tokens": 5}, 400, TOO_LONG, "max_tokens", "65"),
        (TEXT | {"n": 2}, 400, "invalid_request", "n", "one answer"),
        (CHAT | {"max_completion_tokens": 4}, 400, "invalid_request", None, "max_completion_tokens"),
        (CHAT | {"logprobs": True}, 400, "invalid_request", "logprobs", "probabilities"),
        (CHAT | {"response_format": {"type": "json_object"}}, 400, "invalid_request", "response_format.type", "text"),
        (CHAT | {"modalities": ["audio"]}, 400, "invalid_request", "modalities.0", "text"),
        (CHAT | {"frequency_penalty": 0.5}, 400, "invalid_request", "frequency_penalty", "0"),
        (CHAT | {"store": True}, 400, "invalid_request", "store", "False"),
        (CHAT | {"tools": [TOOL]}, 400, "invalid_request", "tools", "tools"),
        (said(PICTURE), 400, "invalid_request", CONTENT, "part 0 is of type 'image_url'"),
        (said(None, "assistant"), 400, "invalid_request", CONTENT, "null"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: Any, request_body: dict[str, Any], status: int, code: str, param: str | None, named: str
) -> None:
    route = "/chat/completions" if "messages" in request_body else "/completions"
    with pytest.raises(openai.APIStatusError) as error:
        client.post(route, body=request_body, cast_to=object)
    assert (error.value.status_code, error.value.code, error.value.param) == (status, code, param)
    assert named in str(error.value)


def test_a_path_that_is_none_is_told_in_the_same_form(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="stand-in", input="x")
    assert error.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "mode"), [(60, 4, "short"), (60, 5, "long"), (61, 4, "long"), (63, 1, "short")]
)
def test_the_count_of_tokens_chooses_the_mode(client: Any, prompt_tokens: int, max_tokens: int, mode: str) -> None:
    asked: dict[str, Any] = {"prompt": "x" * prompt_tokens, "max_tokens": max_tokens}
    response = client.completions.with_raw_response.create(model="stand-in", **asked)
    assert response.headers["x-skipwise-mode"] == response.parse().skipwise["mode"] == mode
    assert client.completions.create(model="stand-in:long", **asked).skipwise["mode"] == "long"


def test_a_fault_of_the_servers_own_is_told_as_all_others_and_without_text(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    running = serve()

    async def fail(prompt: str) -> list[int]:
        raise ValueError(f"no place for {prompt}")

    monkeypatch.setattr(running.backend, "tokenize", fail)
    with pytest.raises(openai.InternalServerError) as error:
        running.client().completions.create(model="stand-in", prompt="secret", max_tokens=4)
    assert error.value.code == "internal_error"
    printed = [str(error.value.body)]

    def is_complained_of() -> bool:
        printed.append(capfd.readouterr().err)
        return "a request failed: ValueError at" in "".join(printed)

    running.wait_until(is_complained_of)
    assert "secret" not in "".join(printed)


def test_an_engine_that_fails_is_an_error_without_text_and_ends_no_other(serve: Callable[..., Any], capfd: Any) -> None:
    running = serve(StandIn(fail_on=ord("!")))
    client = running.client()
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="RuntimeError") as error:
            list(client.completions.create(model="stand-in", prompt="secret!", max_tokens=4, stream=stream))
        assert error.value.code == "engine_error"
        assert "secret" not in str(error.value)
    assert client.completions.create(model="stand-in", prompt="ab", max_tokens=2).choices[0].text == "ba"
    assert running.engine.open == set()
    assert "secret" not in "".join(capfd.readouterr())

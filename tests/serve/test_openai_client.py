"""OpenAI's own client, as it comes, against the server."""

from collections.abc import Callable
from typing import Any

import pytest

from serve.standin import StandIn, answer_to

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


@pytest.fixture
def client(serve: Callable[..., Any]) -> Any:
    return openai.OpenAI(base_url=serve().url + "/v1", api_key="none", max_retries=0)


def test_models(client: Any) -> None:
    assert [(one.id, one.max_model_len) for one in client.models.list()] == [
        ("stand-in", 4096),
        ("stand-in:short", 64),
        ("stand-in:long", 4096),
    ]


def test_one_model(client: Any) -> None:
    assert client.models.retrieve("stand-in:short").max_model_len == 64
    with pytest.raises(openai.NotFoundError, match="this key may use: stand-in") as error:
        client.models.retrieve("gpt-5")
    assert error.value.code == "model_not_found"


def test_a_completion(client: Any) -> None:
    done = client.completions.create(model="stand-in", prompt="abcdef", max_tokens=9)
    assert done.choices[0].text == answer_to(b"abcdef", 9) == "fedcbafed"
    assert done.choices[0].finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (6, 9, 15)
    assert done.skipwise["mode"] == "short"


def test_a_completion_of_token_ids(client: Any) -> None:
    done = client.completions.create(model="stand-in", prompt=[104, 105], max_tokens=4)
    assert done.choices[0].text == "ihih"


def test_a_stream_of_a_completion(client: Any) -> None:
    chunks = list(client.completions.create(model="stand-in", prompt="abcdef", max_tokens=9, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "fedcbafed"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


def test_a_chat(client: Any) -> None:
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": [{"type": "text", "text": "def"}]}]
    done = client.chat.completions.create(model="stand-in", messages=messages, max_completion_tokens=6)
    assert done.choices[0].message.content == "fedcba"
    assert done.choices[0].message.role == "assistant"


def test_an_answer_may_be_sent_back_as_the_client_keeps_it(client: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "abc"}]
    for as_object in (False, True):
        message = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=2).choices[0].message
        # With all that such an object may have and this one has not, and as an object.
        messages += [message if as_object else message.model_dump(), {"role": "user", "content": "xyz"}]
    done = client.chat.completions.create(model="stand-in", messages=messages, max_tokens=2)
    assert done.choices[0].message.content == "zy"


def test_what_changes_no_text_is_taken_and_what_cannot_be_done_is_refused(client: Any) -> None:
    ask: dict[str, Any] = {"model": "stand-in", "messages": [{"role": "user", "content": "abc"}]}
    nothing: dict[str, Any] = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "n": 1, "tools": []}
    forgotten: dict[str, Any] = {"user": "u", "prompt_cache_key": "k", "modalities": ["text"], "metadata": {"a": "b"}}
    done = client.chat.completions.create(**ask, **nothing, **forgotten, max_tokens=3, max_completion_tokens=3)
    assert done.choices[0].message.content == "cba"
    for field, value, told in (
        ("max_completion_tokens", 4, "give max_completion_tokens or max_tokens, not both"),
        ("logprobs", True, "returns no probabilities"),
        ("response_format", {"type": "json_object"}, "answers are plain text"),
        ("modalities", ["audio"], "modalities"),
        ("frequency_penalty", 0.5, "frequency_penalty"),
        ("store", True, "store"),
    ):
        with pytest.raises(openai.BadRequestError, match=told):
            client.chat.completions.create(**ask, max_tokens=3, **{field: value})


def test_a_stream_of_a_chat_with_usage(client: Any) -> None:
    stream = client.chat.completions.create(
        model="stand-in",
        messages=[{"role": "user", "content": "abcdef"}],
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "fedcbafed"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 9


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "mode"), [(60, 4, "short"), (60, 5, "long"), (61, 4, "long"), (63, 1, "short")]
)
def test_the_count_of_tokens_chooses_the_mode(client: Any, prompt_tokens: int, max_tokens: int, mode: str) -> None:
    done = client.completions.create(model="stand-in", prompt="x" * prompt_tokens, max_tokens=max_tokens)
    assert done.skipwise["mode"] == mode
    response = client.completions.with_raw_response.create(
        model="stand-in", prompt="x" * prompt_tokens, max_tokens=max_tokens
    )
    assert response.headers["x-skipwise-mode"] == mode


def test_a_mode_by_name(client: Any) -> None:
    assert client.completions.create(model="stand-in:long", prompt="ab", max_tokens=1).skipwise["mode"] == "long"
    with pytest.raises(openai.BadRequestError, match="65 in all; 'stand-in:short' holds 64 tokens"):
        client.completions.create(model="stand-in:short", prompt="x" * 60, max_tokens=5)


def test_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this key may use: stand-in"):
        client.completions.create(model="gpt-5", prompt="ab")
    with pytest.raises(openai.BadRequestError, match="4096 tokens and up to 1 may follow") as error:
        client.completions.create(model="stand-in", prompt="x" * 4096, max_tokens=1)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="n: a request gets one answer"):
        client.completions.create(model="stand-in", prompt="ab", n=2)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="stand-in",
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError, match="part 0 is of type 'image_url', and this model reads text only"):
        client.chat.completions.create(model="stand-in", messages=[{"role": "user", "content": picture}])
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content: it is null; give text"):
        client.chat.completions.create(model="stand-in", messages=[{"role": "assistant", "content": None}])
    with pytest.raises(openai.NotFoundError, match="there is nothing at this path"):
        client.embeddings.create(model="stand-in", input="x")


def test_a_fault_of_the_servers_own_is_told_as_all_others_and_without_text(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    running = serve()

    async def fail(prompt: str) -> list[int]:
        raise ValueError(f"no place for {prompt}")

    monkeypatch.setattr(running.backend, "tokenize", fail)
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.InternalServerError, match="the server failed at this request") as error:
        client.completions.create(model="stand-in", prompt="secret", max_tokens=4)
    assert error.value.code == "internal_error"
    printed = [str(error.value.body)]

    def is_complained_of() -> bool:
        printed.append(capfd.readouterr().err)
        return "a request failed: ValueError at" in "".join(printed)

    running.wait_until(is_complained_of)
    assert "secret" not in "".join(printed)


def test_an_engine_that_fails_is_an_error_without_text_and_ends_no_other(serve: Callable[..., Any], capfd: Any) -> None:
    running = serve(StandIn(fail_on=ord("!")))
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.InternalServerError, match=r"the engine failed \(RuntimeError\)") as error:
        client.completions.create(model="stand-in", prompt="secret!", max_tokens=4)
    assert "secret" not in str(error.value)
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(client.completions.create(model="stand-in", prompt="secret!", max_tokens=4, stream=True))
    assert client.completions.create(model="stand-in", prompt="ab", max_tokens=2).choices[0].text == "ba"
    assert running.engine.open == set()
    assert "secret" not in "".join(capfd.readouterr())

"""vLLM behind the server: its command, and the way through to a process that answers as it does."""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.running import Running
from serve.standin import ByteTokenizer, answer_to
from skipwise.errors import ConfigError
from skipwise.serve.app import create_app
from skipwise.serve.keys import create_key
from skipwise.serve.listen import Address, Server
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Turns
from skipwise.serve.vllm import Places, Vllm, VllmSettings

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

BYTES: Any = ByteTokenizer()
STANDIN = (sys.executable, str(Path(__file__).with_name("vllm_standin.py")))


def settings(**changes: Any) -> VllmSettings:
    return VllmSettings(
        **{"base": "base/model", "extended": "runs/long", "original_window": 64, "target": 4096, **changes}
    )


@pytest.fixture
def started(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, Callable[[], list[dict[str, Any]]]]:
    """The server, a client with a key, and what the stand-ins wrote down."""
    log = tmp_path / "standin.jsonl"
    monkeypatch.setenv("STANDIN_LOG", str(log))
    keys = tmp_path / "keys.json"
    key = create_key(keys, "ada")
    running = serve(backend=Vllm("m", settings(program=STANDIN), BYTES, Turns()), keys=keys)
    client = openai.OpenAI(base_url=running.url + "/v1", api_key=key, max_retries=0)
    return running, client, lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_the_command_of_each_mode() -> None:
    made = settings(memory_shares=(0.25, 0.7), arguments=("--dtype", "half"))
    short, long = made.command("short", 1), made.command("long", 2)
    assert short[:5] == ["vllm", "serve", "base/model", "--served-model-name", "short"]
    assert long[:5] == ["vllm", "serve", "runs/long", "--served-model-name", "long"]
    for command, port, window, share in ((short, "1", "64", "0.25"), (long, "2", "4096", "0.7")):
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert command[command.index("--port") + 1] == port
        assert command[command.index("--max-model-len") + 1] == window
        assert command[command.index("--gpu-memory-utilization") + 1] == share
        assert command[command.index("--generation-config") + 1] == "vllm"
        assert "--no-enable-log-requests" in command
        assert command[-2:] == ["--dtype", "half"]


def test_it_reports_to_nobody_and_its_token_is_in_no_command() -> None:
    environment = settings().environment("token")
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    assert environment["VLLM_API_KEY"] == "token"
    assert "token" not in " ".join(settings().command("short", 1))


def test_requests_go_to_the_mode_of_their_length(started: Any) -> None:
    _, client, log = started
    for prompt, new, mode in (("x" * 60, 4, "short"), ("x" * 60, 5, "long")):
        done = client.completions.create(model="m", prompt=prompt, max_tokens=new)
        assert done.choices[0].text == answer_to(prompt.encode(), new)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (60, new)
        assert done.skipwise["mode"] == mode
        assert log()[-1]["mode"] == mode
    chunks = list(client.completions.create(model="m:long", prompt="abc", max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "cbacb"
    chat = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "abc"}], max_tokens=3)
    assert chat.choices[0].message.content == "cba"
    assert [line["quiet"] for line in log()[:2]] == ["1", "1"]


def test_each_key_has_a_salt_of_its_own(started: Any, tmp_path: Path) -> None:
    running, client, log = started
    other = openai.OpenAI(base_url=running.url + "/v1", api_key=create_key(tmp_path / "keys.json", "bob"))
    for one in (client, client, other):
        one.completions.create(model="m", prompt="abc", max_tokens=1)
    salts = [line["salt"] for line in log() if "salt" in line]
    assert salts[0] == salts[1] != salts[2]
    assert all(len(salt) == 64 for salt in salts)


def test_the_same_rules_hold(started: Any) -> None:
    running, client, log = started
    with pytest.raises(openai.BadRequestError, match="4097 in all; 'm' holds 4096 tokens"):
        client.completions.create(model="m", prompt="x" * 4096, max_tokens=1)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=running.url + "/v1", api_key="none").models.list()
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        client.completions.create(model="m", prompt="x", extra_body={"cache_salt": "of another"})
    assert not any("salt" in line for line in log())


def test_who_leaves_stops_vllm(started: Any) -> None:
    running, client, log = started
    with client.completions.create(model="m", prompt="slow", max_tokens=50, stream=True) as stream:
        next(iter(stream))
    running.wait_until(lambda: any("left_after" in line for line in log()))
    assert next(line["left_after"] for line in log() if "left_after" in line) < 50
    assert running.backend.load == (0, 0)


def test_who_leaves_while_waiting_for_a_place_gives_up_the_turn(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "standin.jsonl"
    monkeypatch.setenv("STANDIN_LOG", str(log))
    running = serve(backend=Vllm("m", settings(program=STANDIN), BYTES, Turns(short_slots=1)))
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
    with client.completions.create(model="m", prompt="slow", max_tokens=50, stream=True) as stream:
        next(iter(stream))
        for wanted in (True, False):
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.2).completions.create(
                    model="m", prompt="wait", max_tokens=1, stream=wanted
                )
            running.wait_until(lambda: running.backend.load == (1, 0), seconds=2)
    running.wait_until(lambda: running.backend.load == (0, 0))
    asked = [line for line in map(json.loads, log.read_text().splitlines()) if "salt" in line]
    assert len(asked) == 1


def test_told_to_end_while_vllm_starts_it_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STANDIN_SLOW", "60")
    backend = Vllm("m", settings(program=STANDIN), BYTES, Turns())
    app = create_app(backend)
    address = Address(port=0)
    server = Server(app, address, backend, lambda: pytest.fail("it was never ready"))
    numbers: list[int] = []

    def end() -> None:
        Running.wait_until(lambda: len(backend._processes) == 2)
        numbers.extend(process.pid for process in backend._processes)
        server.handle_exit(2, None)

    ending = threading.Thread(target=end)
    ending.start()
    began = time.monotonic()
    with address.bind() as bound:
        server.run(sockets=[bound])
    ending.join()
    assert time.monotonic() - began < 20
    assert len(numbers) == 2
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_one_end_for_all_who_ask_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))

    async def run() -> list[int]:
        backend = Vllm("m", settings(program=STANDIN), BYTES, Turns())
        await backend.start()
        numbers = [process.pid for process in backend._processes]
        # The first, of the end of the grace, is broken off when all connections have gone.
        first = asyncio.ensure_future(backend.stop())
        await asyncio.sleep(0)
        first.cancel()
        await backend.stop()
        return numbers

    for number in asyncio.run(run()):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_an_answer_that_vllm_broke_off_is_not_taken_for_a_whole_one(started: Any) -> None:
    _, client, _ = started
    with pytest.raises(openai.InternalServerError, match="the engine broke off"):
        client.completions.create(model="m", prompt="abort", max_tokens=5)
    with pytest.raises(openai.APIError, match="the engine broke off"):
        list(client.completions.create(model="m", prompt="abort", max_tokens=5, stream=True))


def test_what_vllm_refuses_of_ours_is_no_fault_of_the_client(started: Any) -> None:
    running, client, _ = started
    running.backend._session.headers["Authorization"] = "Bearer of another"
    with pytest.raises(openai.InternalServerError, match="failed with status 401") as error:
        client.completions.create(model="m", prompt="abc", max_tokens=5)
    assert error.value.status_code == 503


def test_a_server_of_vllm_that_dies_is_said_and_seen(started: Any) -> None:
    running, client, _ = started
    assert asyncio.run(_status(running.url + "/health")) == 200
    with pytest.raises(openai.InternalServerError, match=r"the engine broke off|does not answer") as error:
        client.completions.create(model="m", prompt="die", max_tokens=5)
    assert error.value.response.status_code == 503
    assert "retry-after" in error.value.response.headers
    running.wait_until(lambda: asyncio.run(_status(running.url + "/health")) == 503)
    with pytest.raises(openai.InternalServerError, match="does not answer"):
        client.completions.create(model="m", prompt="abc", max_tokens=5)
    # The other mode goes on.
    assert client.completions.create(model="m:long", prompt="abc", max_tokens=1).choices[0].text == "c"


def test_its_servers_end_with_it(started: Any) -> None:
    running, _, _ = started
    numbers = [process.pid for process in running.backend._processes]
    assert len(numbers) == 2
    running.end()
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_one_that_ends_at_once_or_is_not_there_is_a_plain_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    for changes, words in (
        ({"program": STANDIN, "arguments": ("--fail",)}, "ended with code 7 before it answered"),
        ({"program": ("no-such-vllm",)}, "'no-such-vllm' is not installed"),
    ):
        backend = Vllm("m", settings(**changes), BYTES, Turns())
        with pytest.raises(ConfigError, match=words):
            asyncio.run(backend.start())


def test_places_go_to_who_has_the_fewest_and_then_to_who_came_first() -> None:
    async def take_turns() -> list[str]:
        places, order = Places(2, Turns(waiting=5, waiting_each=3)), []

        async def one(owner: str) -> None:
            await places.take(owner)
            order.append(owner)

        await one("a")
        await one("a")
        waiting = [asyncio.ensure_future(one(owner)) for owner in ("a", "a", "b", "a")]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="3 requests of this key are waiting and 3 may") as refusal:
            await places.take("a")
        assert refusal.value.status == 429
        assert places.load == (2, 4)
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        for _ in range(3):
            places.leave("a")
            await asyncio.sleep(0)
        await asyncio.gather(*waiting[1:])
        return order

    assert asyncio.run(take_turns()) == ["a", "a", "b", "a", "a"]


async def _status(url: str) -> int:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status

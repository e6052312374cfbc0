"""Servers of vLLM and llama.cpp behind ours: their commands, and the way through to a process that answers alike."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from serve.running import Running
from serve.standin import ByteTokenizer, answer_to
from skipwise.errors import ConfigError
from skipwise.inference.engine import GenerationRequest
from skipwise.serve.app import create_app
from skipwise.serve.front import Front, Program
from skipwise.serve.keys import create_key
from skipwise.serve.listen import Address, Server
from skipwise.serve.llama_cpp import LlamaCpp
from skipwise.serve.places import Places
from skipwise.serve.refusals import Refusal
from skipwise.serve.scheduler import Turns
from skipwise.serve.vllm import Vllm

BYTES: Any = ByteTokenizer()
STANDIN = (sys.executable, str(Path(__file__).with_name("server_standin.py")))


def program(engine: str = "vllm", **changes: Any) -> Program:
    common = {"base": "base/model", "extended": "runs/long", "original_window": 64, "target": 4096, **changes}
    return LlamaCpp(**{"places": {"short": 3, "long": 1}, **common}) if engine == "llama-cpp" else Vllm(**common)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """What the stand-ins write down."""
    path = tmp_path / "standin.jsonl"
    monkeypatch.setenv("STANDIN_LOG", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def backend(engine: str = "vllm", turns: Turns | None = None, **changes: Any) -> Front:
    return Front("m", program(engine, **{"command_words": STANDIN, **changes}), BYTES, turns or Turns())


@pytest.fixture
def running(serve: Callable[..., Any], log: Any, keys: Path, request: Any) -> Any:
    """A server with a key file, in front of vLLM unless the test says otherwise."""
    create_key(keys, "nobody")
    return serve(backend=backend(getattr(request, "param", "vllm")), keys=keys)


both = pytest.mark.parametrize("running", ["vllm", "llama-cpp"], indirect=True)


@pytest.fixture
def client(running: Any, keys: Path) -> Any:
    return running.client(create_key(keys, "ada"))


def assert_gone(numbers: Iterable[int]) -> None:
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_the_command_of_vllm_says_what_it_must_and_no_secret() -> None:
    made = program(memory_shares=(0.25, 0.7), arguments=("--dtype", "half"))
    expected = {"short": ("base/model", "64", "0.25"), "long": ("runs/long", "4096", "0.7")}
    for mode, (model, window, share) in expected.items():
        command = made.command(mode, 7)  # type: ignore[arg-type]
        assert command[:5] == ["vllm", "serve", model, "--served-model-name", mode]
        options = dict(itertools.pairwise(command))
        assert (options["--host"], options["--port"]) == ("127.0.0.1", "7")
        assert (options["--max-model-len"], options["--gpu-memory-utilization"]) == (window, share)
        assert options["--generation-config"] == "vllm"
        assert "--no-enable-log-requests" in command
        assert command[-2:] == ["--dtype", "half"]
        assert "token" not in " ".join(command)
    environment = made.environment("token")
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    assert environment["VLLM_API_KEY"] == "token"


def test_the_command_of_llama_cpp_says_what_it_must_and_no_secret() -> None:
    made = program("llama-cpp", original_window=300, arguments=("--threads", "3"))
    # llama.cpp divides the context by the places, and rounds a place up to 256 tokens.
    expected = {"short": ("base/model", str(3 * 512), "3"), "long": ("runs/long", "4096", "1")}
    for mode, wanted in expected.items():
        command = made.command(mode, 7)  # type: ignore[arg-type]
        options = dict(itertools.pairwise(command))
        assert command[0] == "llama-server"
        assert (options["--model"], options["--ctx-size"], options["--parallel"]) == wanted
        assert (options["--host"], options["--port"], options["--alias"]) == ("127.0.0.1", "7", mode)
        assert {"--no-cache-prompt", "--no-kv-unified", "--no-slots", "--offline"} < {*command}
        assert not any(word.startswith(("--rope", "--yarn")) for word in command)
        assert command[-2:] == ["--threads", "3"]
        assert "token" not in " ".join(command)
    assert made.environment("token") == {"LLAMA_API_KEY": "token"}


def test_llama_cpp_samples_as_the_embedded_engine_does() -> None:
    asked = GenerationRequest(prompt_ids=[1], max_new_tokens=1, temperature=1e-9, top_p=0.5, seed=2**40 + 3)
    fields = program("llama-cpp").fields(asked, "salt")
    assert (fields["temperature"], fields["samplers"], fields["seed"]) == (0.0, ["temperature", "top_p"], 3)


@both
def test_requests_go_to_the_mode_of_their_length(running: Any, client: Any, log: Any) -> None:
    for prompt, new, mode in (("x" * 60, 4, "short"), ("x" * 60, 5, "long")):
        done = client.completions.create(model="m", prompt=prompt, max_tokens=new)
        assert done.choices[0].text == answer_to(prompt.encode(), new)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (60, new)
        assert done.skipwise["mode"] == log()[-1]["mode"] == mode
    chunks = list(client.completions.create(model="m:long", prompt="abc", max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "cbacb"
    chat = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "abc"}], max_tokens=3)
    assert chat.choices[0].message.content == "cba"
    if isinstance(running.backend.program, Vllm):
        assert [line["quiet"] for line in log()[:2]] == ["1", "1"]


def test_each_key_has_a_salt_of_its_own(running: Any, client: Any, log: Any, keys: Path) -> None:
    for one in (client, client, running.client(create_key(keys, "bob"))):
        one.completions.create(model="m", prompt="abc", max_tokens=1)
    salts = [line["salt"] for line in log() if "salt" in line]
    assert salts[0] == salts[1] != salts[2]
    assert all(len(salt) == 64 for salt in salts)


def test_the_same_rules_hold(running: Any, client: Any, log: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"4097.*4096"):
        client.completions.create(model="m", prompt="x" * 4096, max_tokens=1)
    with pytest.raises(openai.AuthenticationError):
        running.client().models.list()
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        client.completions.create(model="m", prompt="x", extra_body={"cache_salt": "of another"})
    assert not any("salt" in line for line in log())


@both
def test_who_leaves_stops_the_engine(running: Any, client: Any, log: Any) -> None:
    with client.completions.create(model="m", prompt="slow", max_tokens=50, stream=True) as stream:
        next(iter(stream))
    running.wait_until(lambda: any("left_after" in line for line in log()))
    assert next(line["left_after"] for line in log() if "left_after" in line) < 50
    assert running.backend.load == (0, 0)


def test_who_leaves_while_waiting_for_a_place_gives_up_the_turn(serve: Callable[..., Any], log: Any) -> None:
    running = serve(backend=backend(turns=Turns(short_slots=1)))
    client = running.client()
    with client.completions.create(model="m", prompt="slow", max_tokens=50, stream=True) as stream:
        next(iter(stream))
        for wanted in (True, False):
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.2).completions.create(
                    model="m", prompt="wait", max_tokens=1, stream=wanted
                )
            running.wait_until(lambda: running.backend.load == (1, 0), seconds=2)
    running.wait_until(lambda: running.backend.load == (0, 0))
    assert sum("salt" in line for line in log()) == 1
    waits = [(line["wait_seconds"], line["compute_seconds"]) for line in running.logged(3) if line["status"] == 499]
    assert all(wait > 0.05 and computed is None for wait, computed in waits[:2])


def test_told_to_end_while_the_engine_starts_it_ends_with_all_that_it_started(log: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("STANDIN_SLOW", "60")
    started, address = backend(), Address(port=0)
    server = Server(create_app(started), address, started, lambda: pytest.fail("it was never ready"))
    numbers: list[int] = []

    def end() -> None:
        Running.wait_until(lambda: len(started._processes) == 2)
        numbers.extend(process.pid for process in started._processes)
        server.handle_exit(2, None)

    ending = threading.Thread(target=end)
    ending.start()
    began = time.monotonic()
    with address.bind() as bound:
        server.run(sockets=[bound])
    ending.join()
    assert time.monotonic() - began < 20
    assert len(numbers) == 2
    assert_gone(numbers)


def test_one_end_for_all_who_ask_for_it(log: Any) -> None:
    async def run() -> list[int]:
        started = backend()
        await started.start()
        numbers = [process.pid for process in started._processes]
        # The first, of the end of the grace period, is broken off when all connections have gone.
        first = asyncio.ensure_future(started.stop())
        await asyncio.sleep(0)
        first.cancel()
        await started.stop()
        return numbers

    assert_gone(asyncio.run(run()))


def test_an_answer_that_the_engine_broke_off_is_not_taken_for_a_whole_one(client: Any) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIError) as error:
            list(client.completions.create(model="m", prompt="abort", max_tokens=5, stream=stream))
        assert error.value.code == "engine_error"


def test_what_the_engine_refuses_of_ours_is_no_fault_of_the_client(running: Any, client: Any) -> None:
    running.backend._session.headers["Authorization"] = "Bearer of another"
    with pytest.raises(openai.InternalServerError, match="401") as error:
        client.completions.create(model="m", prompt="abc", max_tokens=5)
    assert error.value.status_code == 503


@both
def test_a_server_that_dies_is_said_and_seen(running: Any, client: Any, capsys: Any) -> None:
    def health() -> int:
        try:
            return urllib.request.urlopen(running.url + "/health", timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    assert health() == 200
    for prompt in ("die", "abc"):
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(model="m", prompt=prompt, max_tokens=5)
        assert (error.value.status_code, error.value.code) == (503, "engine_error")
        assert "retry-after" in error.value.response.headers
        running.wait_until(lambda: health() == 503)
    name = running.backend.program.name
    assert f"skipwise: {name}'s server of the short mode ended with code 3; requests" in capsys.readouterr().err
    # The other mode goes on.
    assert client.completions.create(model="m:long", prompt="abc", max_tokens=1).choices[0].text == "c"


def test_its_servers_end_with_it_and_nothing_is_said_of_that(running: Any, capsys: Any) -> None:
    numbers = [process.pid for process in running.backend._processes]
    assert len(numbers) == 2
    running.end()
    assert_gone(numbers)
    assert "ended" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_its_servers_end_even_if_it_is_killed(log: Any) -> None:
    code = (
        "import asyncio, os, signal\n"
        "from serve.test_front import backend\n"
        "async def run():\n"
        "    started = backend()\n"
        "    await started.start()\n"
        "    print(*(process.pid for process in started._processes), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(run())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    numbers = [int(word) for word in done.stdout.split()]
    assert len(numbers) == 2, done.stderr

    def is_running(number: int) -> bool:
        # Nobody may have collected it yet, in a container whose first process does not.
        return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE

    Running.wait_until(lambda: not any(map(is_running, numbers)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"arguments": ("--fail",)}, "code 7"), ({"command_words": ("no-such",)}, "no-such")],
)
def test_one_that_ends_at_once_or_is_not_there_is_a_plain_error(log: Any, changes: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        asyncio.run(backend(**changes).start())


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
        with pytest.raises(Refusal, match="3 requests of this key") as refusal:
            await places.take("a")
        assert (refusal.value.status, refusal.value.code) == (429, "too_many_requests")
        assert places.load == (2, 4)
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        for _ in range(3):
            places.leave("a")
            await asyncio.sleep(0)
        await asyncio.gather(*waiting[1:])
        return order

    assert asyncio.run(take_turns()) == ["a", "a", "b", "a", "a"]

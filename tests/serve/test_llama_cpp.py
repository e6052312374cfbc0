"""llama.cpp's servers by the command line: the files they load and, where `llama-server` is on PATH, their answers."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from refusals import lines_of

from serve.running import serving
from skipwise.cli import main
from skipwise.cli.serve_engines import Asked, llama_cpp
from skipwise.inference.modes import TwoModes
from skipwise.model import load_model, save_model
from skipwise.rope import INTERPOLATIONS
from skipwise.serve.keys import change_role, create_key
from skipwise.serve.llama_cpp import COMMAND, LlamaCpp
from skipwise.serve.scheduler import Turns
from skipwise.window import Window

gguf = pytest.importorskip("skipwise.export.gguf", reason="GGUF files are the package gguf's (extra: gguf)")
pytest.importorskip("gguf", reason="GGUF files are the package gguf's (extra: gguf)")

WINDOW = Window(train=256, original=256, target=1024)
TEXT = "def read(path):\n    return open(path).read()\n\n"
STEPS = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The embedded model, as it is and extended, as GGUF files."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    for name in ("base", "long"):
        how = {"interpolation": INTERPOLATIONS["yarn"](), "window": WINDOW} if name == "long" else {}
        model, tokenizer = load_model("embedded", **how)
        made[name] = str(folder / f"{name}.gguf")
        gguf.write_gguf(Path(made[name]), model, gguf.plan_gguf(model, tokenizer), "f32", name)
    return made


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of PATH, with a command of llama-server's name."""
    command = tmp_path / "bin" / COMMAND
    command.parent.mkdir()
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    return command


def test_gguf_files_are_served_as_they_are(files: dict[str, str], path: Path) -> None:
    turns = Turns(short_slots=3, long_slots=1)
    made: Any = llama_cpp(Asked(model=files["long"], base=files["base"], name="m", turns=turns), "--threads 2")
    program: LlamaCpp = made.program
    assert program.command_words == (str(path),)
    assert (program.loaded("short"), program.loaded("long")) == ((files["base"], 256), (files["long"], 1024))
    assert (program.places, program.arguments) == ({"short": 3, "long": 1}, ("--threads", "2"))
    assert [*made.models] == ["m", "m:short", "m:long"]
    # As the tokenizer that the file was written of.
    text = Path(__file__).read_text(encoding="utf-8") + " 1234\r\n\t naïve 数学"
    assert made._prompts.ids(text) == load_model("embedded").tokenizer(text)["input_ids"]


def test_a_file_that_was_never_extended_has_one_mode(files: dict[str, str], path: Path) -> None:
    made: Any = llama_cpp(Asked(model=files["base"], base=None, name="m", turns=Turns()), "")
    assert [*made.models] == ["m"]
    assert made.modes == ("short",)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"base": None}, "--base"),
        ({"dtype": "q8_0"}, "--dtype is 'q8_0'"),
        ({"attention": "eager"}, "--attention"),
    ],
)
def test_what_does_not_go_with_files_is_refused(files: dict[str, str], path: Path, given: Any, named: str) -> None:
    from skipwise.errors import ConfigError

    with pytest.raises(ConfigError, match=named):
        llama_cpp(Asked(**{"model": files["long"], "base": files["base"], "name": "m", "turns": Turns(), **given}), "")


def test_caches_beyond_memory_are_said(files: dict[str, str], path: Path, capsys: Any) -> None:
    # 4 layers, 4 heads of 32 dimensions, keys and values of 2 bytes: 2048 bytes a token, for 256 tokens a slot.
    slots = psutil.virtual_memory().total // (2048 * 256) + 1
    llama_cpp(Asked(model=files["base"], base=None, name="m", turns=Turns(short_slots=slots, long_slots=1)), "")
    assert "--short-slots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--engine", "llama-cpp"], COMMAND),
        (["--engine", "llama-cpp", "--cache", "static"], "--cache is 'static'"),
        (["--engine", "llama-cpp", "--vllm-args", "--x"], "--engine vllm"),
        (["--engine", "llama-cpp", "--llama-cpp-args", "'"], '--llama-cpp-args is "\'"'),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], named: str, capfd: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["serve", "embedded", "--port", "0", *arguments]) == 2
    printed = capfd.readouterr()
    assert named in printed.err
    assert len(lines_of(printed.err)) == 1


class Served:
    """A `skipwise serve` of its own process, whose lines on stderr are kept."""

    def __init__(self, command: list[str], ready: str) -> None:
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self.told = ""
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self.wait_for(ready)[1]

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str, seconds: float = 300) -> re.Match[str]:
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.told)) is None:
            line = self._lines.get(timeout=max(0.1, end - time.monotonic()))
            assert line, self.told
            self.told += line
        return found

    @property
    def children(self) -> list[psutil.Process]:
        """llama.cpp's servers, short mode's first."""
        found = psutil.Process(self._process.pid).children()
        return sorted(found, key=lambda one: "long" in one.cmdline()[one.cmdline().index("--alias") + 1])

    def health(self) -> int:
        try:
            return urllib.request.urlopen(self.url + "/health", timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    def client(self, key: str) -> Any:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(60)

    def kill(self) -> None:
        children = self.children if self._process.poll() is None else []
        self._process.kill()
        for child in children:
            child.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extended model in `long`, and keys of two roles."""
    if shutil.which(COMMAND) is None:
        pytest.skip(f"there is no {COMMAND} here; it comes with llama.cpp")
    folder = tmp_path_factory.mktemp("place")
    model, tokenizer = load_model("embedded", interpolation=INTERPOLATIONS["yarn"](), window=WINDOW)
    save_model(model, tokenizer, folder / "long")
    change_role(folder / "keys.json", "reader", {"max_context": 256})
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    """Both modes by llama.cpp in float32, exported on the way."""
    command = [sys.executable, "-m", "skipwise", "serve", str(place / "long"), "--base", "embedded", "--port", "0"]
    command += ["--engine", "llama-cpp", "--dtype", "f32", "--llama-cpp-args", "-ctk f32 -ctv f32 --threads 1"]
    create_key(place / "keys.json", "eve")
    command += ["--keys", str(place / "keys.json"), "--audit", str(place / "audit.jsonl")]
    started = Served(command, r"long at (http://\S+) ")
    yield started
    started.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "ntk", "longrope"])
def test_every_scaling_is_the_files_own(kind: str, tmp_path: Path) -> None:
    if shutil.which(COMMAND) is None:
        pytest.skip(f"there is no {COMMAND} here; it comes with llama.cpp")
    base, tokenizer = load_model("embedded")
    extended, _ = load_model("embedded", interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    for name, model in (("base", base), ("long", extended)):
        gguf.write_gguf(tmp_path / f"{name}.gguf", model, gguf.plan_gguf(model, tokenizer), "f32", name)
    asked = Asked(model=str(tmp_path / "long.gguf"), base=str(tmp_path / "base.gguf"), name="m", turns=Turns())
    backend = llama_cpp(asked, "-ctk f32 -ctv f32 --threads 1")
    modes = TwoModes(base, extended, tokenizer)
    with serving(tmp_path, backend=backend) as running:
        for times in (2, 40):
            ids = tokenizer(TEXT * times + "def write(", verbose=False)["input_ids"]
            wanted = modes.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False)[0, len(ids) :]
            done = running.client().completions.create(model="m", prompt=ids, max_tokens=STEPS, temperature=0)
            assert done.choices[0].text == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.slow
class TestLlamaServer:
    """One server, asked in this order; the last tests end it."""

    def test_it_says_what_it_makes_and_makes_both_files(self, served: Served, place: Path) -> None:
        for name in ("long-gguf", "long-base-gguf"):
            assert f"to {place / name}, once" in served.told
            assert json.loads((place / name / "export.json").read_text())["dtype"] == "f32"
        assert "not measured: llama.cpp computes requests together" in served.told

    @pytest.mark.parametrize(("times", "mode"), [(2, "short"), (40, "long")])
    def test_greedy_answers_are_those_of_transformers(self, served: Served, place: Path, times: int, mode: str) -> None:
        modes = TwoModes.load(place / "long", base="embedded")
        ids = modes.tokenizer(TEXT * times + "def write(", verbose=False)["input_ids"]
        found = modes.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False)[0, len(ids) :]
        assert len(found) == STEPS, "the answer ends early, so it says little"
        client = served.client(create_key(place / "keys.json", "ada"))
        done = client.completions.create(model="long", prompt=ids, max_tokens=STEPS, temperature=0)
        assert done.choices[0].text == modes.tokenizer.decode(found, skip_special_tokens=True)
        assert done.skipwise["mode"] == mode
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), STEPS)
        assert done.choices[0].finish_reason == "length"

    def test_streams_stops_and_counts(self, served: Served, place: Path) -> None:
        client = served.client(create_key(place / "keys.json", "ada"))
        asked: dict[str, Any] = {"model": "long", "prompt": TEXT * 2, "max_tokens": STEPS, "temperature": 0}
        whole = client.completions.create(**asked).choices[0].text
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole
        assert sum(map(bool, pieces)) > 3
        assert chunks[-1].usage.completion_tokens == STEPS
        stop = whole[len(whole) // 2 :][:4]
        done = client.completions.create(**asked, stop=[stop])
        assert done.choices[0].text == whole[: whole.index(stop)]
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.completion_tokens < STEPS

    def test_the_window_is_used_to_its_end(self, served: Served, place: Path) -> None:
        client = served.client(create_key(place / "keys.json", "ada"))
        for window, mode in ((256, "short"), (1024, "long")):
            prompt = list(range(5, 205)) * 6
            done = client.completions.create(model="long", prompt=prompt[: window - 8], max_tokens=8, temperature=1)
            assert done.skipwise["mode"] == mode
            assert done.usage.completion_tokens == 8 or done.choices[0].finish_reason == "stop"

    def test_a_seed_repeats_an_answer(self, served: Served, place: Path) -> None:
        client = served.client(create_key(place / "keys.json", "ada"))
        texts = [
            client.completions.create(model="long", prompt=TEXT, max_tokens=STEPS, temperature=1.5, seed=seed).choices[
                0
            ]
            for seed in (7, 7, 8)
        ]
        assert texts[0].text == texts[1].text != texts[2].text

    def test_who_leaves_stops_it(self, served: Served, place: Path) -> None:
        client = served.client(create_key(place / "keys.json", "ada"))
        with client.completions.create(model="long:long", prompt=TEXT, max_tokens=900, stream=True) as stream:
            next(iter(stream))
        began = time.perf_counter()
        # The one place of the long mode is free again long before 900 tokens.
        client.completions.create(model="long:long", prompt=TEXT, max_tokens=1)
        assert time.perf_counter() - began < 20
        assert '"status": 499' in (place / "audit.jsonl").read_text()

    def test_roles_and_audit(self, served: Served, place: Path) -> None:
        reader = served.client(create_key(place / "keys.json", "bob", role="reader"))
        reader.completions.create(model="long", prompt=TEXT, max_tokens=3, temperature=0)
        with pytest.raises(openai.PermissionDeniedError, match="256"):
            reader.completions.create(model="long", prompt=TEXT * 40, max_tokens=3)
        with pytest.raises(openai.AuthenticationError):
            served.client("none").completions.create(model="long", prompt=TEXT, max_tokens=3)
        lines = [json.loads(line) for line in (place / "audit.jsonl").read_text().splitlines()][-3:]
        told = [(line["name"], line["mode"], line["status"], line["completion_tokens"]) for line in lines]
        assert told == [("bob", "short", 200, 3), ("bob", None, 403, 0), ("-", None, 401, 0)]
        assert "return" not in (place / "audit.jsonl").read_text()

    def test_one_that_dies_is_said_and_seen(self, served: Served, place: Path) -> None:
        client = served.client(create_key(place / "keys.json", "ada"))
        assert served.health() == 200
        served.children[1].kill()
        served.wait_for("skipwise: llama.cpp's server of the long mode ended by SIGKILL; requests to it are refused")
        assert served.health() == 503
        with pytest.raises(openai.InternalServerError, match="does not answer"):
            client.completions.create(model="long:long", prompt=TEXT, max_tokens=1)
        assert client.completions.create(model="long", prompt=TEXT, max_tokens=1).usage.completion_tokens == 1

    def test_ctrl_c_ends_all(self, served: Served) -> None:
        children = served.children
        assert served.end(signal.SIGINT) == 0
        assert not any(child.is_running() for child in children)

    def test_the_next_start_makes_nothing(self, served: Served, place: Path) -> None:
        command = [sys.executable, "-m", "skipwise", "serve", str(place / "long"), "--base", "embedded", "--port", "0"]
        again = Served([*command, "--engine", "llama-cpp"], r"long at (http://\S+) ")
        try:
            assert again.told.count("made before") == 2
            assert "exporting" not in again.told
        finally:
            os.kill(again._process.pid, signal.SIGTERM)
            assert again._process.wait(60) == 0

"""Tokens a second of prefill and of decoding: `skipwise serve` beside llama.cpp's server on the same exported model.

Both answer OpenAI's completions with temperature 0. Prefill: every client sends a prompt of some 500 tokens of its own
and asks for one token. Decoding: every client sends a short prompt and asks for more tokens; the time of the same
request for one token is taken off. All clients of a round ask at once. `skipwise serve` computes in float32, or with
weights in 8 bits, and with `--turns arrival` answers each request alone; llama.cpp computes in the number format of the
file, and its server here (llama-cpp-python) answers one request after the other.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.installing import LLAMA_CPP, ROOT, SkippedError, install
from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import OURS, Row, Skipped

SENTENCE = "def read(path):\n    return open(path).read()\n\n"
NEW_TOKENS, START_SECONDS = 33, 600


def measure(plan: Plan) -> Iterator[Row | Skipped]:
    """Both servers, one after the other in every round."""
    own = [sys.executable, "-m", "skipwise", "serve", plan.model, "--no-measure", "--name", "m"]
    sides, differ = dict[str, list[str]](), dict[str, str]()
    for weights in ("full", "int8"):
        for turns in ("fair", "arrival"):
            asked = [*own, "--weights", weights, "--turns", turns]
            side = " ".join([f"{OURS},", *asked[len(own) :]]) if (weights, turns) != ("full", "fair") else OURS
            sides[side] = [*asked, "--port"]
            differ[side] = "weights in int8" if weights == "int8" else ""
    try:
        python = install(LLAMA_CPP, plan.folder)
        for kind in plan.formats:
            side = f"{LLAMA_CPP.shown}, {kind}"
            threads = ["--n_threads", str(plan.threads), "--n_threads_batch", str(plan.threads)]
            file = ["--model", str(exported(plan, kind)), "--model_alias", "m", "--n_ctx", "4096"]
            sides[side] = [python, "-m", "llama_cpp.server", *file, *threads, "--port"]
            differ[side] = f"weights in {kind}"
    except SkippedError as error:
        yield Skipped(part="serving", side=LLAMA_CPP.shown, reason=str(error))
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(plan.rounds):
        for side, command in sides.items():
            try:
                with server(command) as url:
                    for clients in plan.clients:
                        for metric, value in speeds(url, clients).items():
                            found.setdefault((side, f"{clients} clients", metric), []).append(value)
            except SkippedError as error:
                yield Skipped(part="serving", side=side, reason=str(error))
    for (side, case, metric), values in found.items():
        yield Row(part="serving", case=case, metric=metric, side=side, values=values, different=differ[side])


def exported(plan: Plan, kind: str) -> Path:
    """The model as a GGUF file, made once.

    Raises:
        SkippedError: the export failed.
    """
    folder = plan.folder / f"gguf-{kind}"
    if not folder.is_dir():
        command = [
            sys.executable,
            "-m",
            "skipwise",
            "export",
            plan.model,
            "--to",
            "gguf",
            "--dtype",
            kind,
            "--long-tokens",
            "512",
        ]
        done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SkippedError(f"export failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return next(folder.glob("*.gguf")).absolute()


@contextmanager
def server(command: Sequence[str]) -> Iterator[str]:
    """Starts a server on a free port; yields its address once it answers.

    Raises:
        SkippedError: it ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    # Without the keys that the user has in his home folder.
    kept = {name: value for name, value in os.environ.items() if name != "SKIPWISE_KEYS"}
    process = subprocess.Popen(
        [*command, str(port)],
        cwd=ROOT,
        env={**kept, "HOME": tempfile.gettempdir()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        begun = time.monotonic()
        while not _answers(url):
            if process.poll() is not None:
                raise SkippedError(f"the server ended with {process.returncode}")
            if time.monotonic() - begun > START_SECONDS:
                raise SkippedError(f"the server did not answer within {START_SECONDS} s")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        raise SkippedError(f"the server answered with {error.code}") from error
    except (urllib.error.URLError, OSError):
        return False


def speeds(url: str, clients: int) -> dict[str, float]:
    """Tokens a second of prefill and of decoding, over all clients."""
    long = [f"# client {number}\n" + SENTENCE * 30 for number in range(clients)]
    short = [f"# client {number}\n" + SENTENCE for number in range(clients)]
    ask_all(url, short[:1], 1)  # the first request of a server pays for what is loaded late
    seconds, used = ask_all(url, long, 1)
    prefill = sum(one["prompt_tokens"] for one in used) / seconds
    without, _ = ask_all(url, short, 1)
    seconds, used = ask_all(url, short, NEW_TOKENS)
    decoded = sum(one["completion_tokens"] for one in used) - clients
    return {"prefill, tokens/s": prefill, "decoding, tokens/s": decoded / (seconds - without)}


def ask_all(url: str, prompts: Sequence[str], new_tokens: int) -> tuple[float, list[dict[str, Any]]]:
    """Sends all prompts at once; returns the seconds until the last answer, and the tokens of each."""

    def ask(prompt: str) -> dict[str, Any]:
        asked = {"model": "m", "prompt": prompt, "max_tokens": new_tokens, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=1200) as found:
            return json.loads(found.read())["usage"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        begun = time.monotonic()
        used = list(pool.map(ask, prompts))
        return time.monotonic() - begun, used

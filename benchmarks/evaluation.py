"""Time and memory of perplexity tasks, compared with plain loops over `model(input_ids, labels=...)`.

    python benchmarks/evaluation.py sliding [MODEL] [--window 2048] [--stride 512] [--windows 4]
    python benchmarks/evaluation.py truncated [MODEL] [--lengths 1024 2048 4096 8192 16384]
    python benchmarks/evaluation.py long [MODEL] [--lengths 131072]

MODEL is a folder, hub name or GGUF file, `demo` for the embedded base model, or `wide` for one random layer of
Llama-7B's shape (width 4096, 32 heads) with a vocabulary of 4096, so that its head weighs as little as in the whole.

`sliding` scores the same windows with the loop of the transformers documentation ("Perplexity of fixed-length models")
and with the task. `truncated` measures each length with a plain pass, and all of them with the task, which makes one
pass. `long` is one input, by the task only. For time the sides take turns in one process, and the ratio is the median
over rounds, of wall time and of processor time. On a shared machine use processor time with one thread
(OMP_NUM_THREADS=1). Memory is the peak of each side in its own process, above what it held with the model loaded and
warm. Tokens are random.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from skipwise.evals import EvalContext
from skipwise.evals.tasks.sliding import SlidingWindowPerplexity
from skipwise.evals.tasks.truncated import TruncatedPerplexity

Measure = Callable[[], list[float]]
"""Runs one side once and returns its perplexities."""


class NoTokenizer:
    """A tokenizer without a vocabulary or a beginning-of-sequence token."""

    bos_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {}

    def encode(self, text: str, **_: Any) -> list[int]:
        return []


def load(name: str) -> Any:
    """The model to measure, in float32."""
    if name == "wide":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=4096,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=1,
            num_attention_heads=32,
        )
        return LlamaForCausalLM(config).eval()
    from skipwise.model import load_model

    return load_model(demo_base() if name == "demo" else name, dtype="float32").model


def demo_base() -> Path:
    """Folder of the embedded base model."""
    import skipwise.demo

    return Path(skipwise.demo.__file__).parent / "base"


def perplexities(model: Any, task: Any, lengths: list[int], ids: np.ndarray) -> list[float]:
    """Perplexities of one document by skipwise's task."""
    context = EvalContext(model=model, tokenizer=NoTokenizer(), documents=[ids], progress=False)
    return [result.value for measurement in task.run(context, lengths) for result in measurement.results]


@torch.no_grad()
def plain_sliding(model: Any, ids: torch.Tensor, window: int, stride: int) -> list[float]:
    """The documentation's loop: tokens that an earlier window scored have the label -100."""
    total, count, scored_to = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : scored_to - begin] = -100
        num_scored = (labels[:, 1:] != -100).sum().item()
        total += model(ids[:, begin:end], labels=labels).loss.item() * num_scored
        count += num_scored
        scored_to = end
        if end == ids.shape[1]:
            break
    return [float(np.exp(total / count))]


@torch.no_grad()
def plain_pass(model: Any, ids: torch.Tensor) -> float:
    """Perplexity of one input, with all of its logits at once."""
    return model(ids, labels=ids).loss.exp().item()


def sides(args: argparse.Namespace, model: Any) -> dict[str, Measure]:
    """The two sides, by name."""
    num_tokens = args.window + (args.windows - 1) * args.stride if args.what == "sliding" else max(args.lengths)
    rng = np.random.default_rng(0)
    body = rng.integers(0, model.config.vocab_size, num_tokens)
    ids = torch.from_numpy(body)[None]
    if args.what == "sliding":
        sliding = SlidingWindowPerplexity(stride_tokens=args.stride, cut_tokens=num_tokens, bos="never")
        return {
            "plain": lambda: plain_sliding(model, ids, args.window, args.stride),
            "skipwise": lambda: perplexities(model, sliding, [args.window], body),
        }
    truncated = TruncatedPerplexity(bos="never")
    together = {"skipwise": lambda: perplexities(model, truncated, args.lengths, body)}
    if args.what == "long":
        return together
    return {
        "plain": lambda: [plain_pass(model, ids[:, :length]) for length in args.lengths],
    } | together


def peak_bytes() -> int:
    """Peak memory of this process since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Resets the peak of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_time(args: argparse.Namespace) -> None:
    """Runs all sides in turn in this process; prints seconds and ratios."""
    model = load(args.model)
    runs = sides(args, model)
    taken: dict[str, list[Seconds]] = {side: [] for side in runs}
    found: dict[str, list[float]] = {}
    for number in range(args.rounds):
        for side in list(runs)[:: -1 if number % 2 else 1]:
            begun = Seconds.now()
            found[side] = runs[side]()
            taken[side].append(Seconds(*(np.subtract(Seconds.now(), begun).tolist())))
    for side, times in taken.items():
        print(f"{side:9} {show([one.wall for one in times], '.2f')} s, {show([one.cpu for one in times], '.2f')} CPU s")
        np.testing.assert_allclose(found[side], found["skipwise"], rtol=1e-4)
    pairs = list(zip(taken["skipwise"], taken["plain"], strict=True))
    wall, cpu = ([getattr(ours, clock) / getattr(plain, clock) for ours, plain in pairs] for clock in Seconds._fields)
    print(f"time ratio {show(wall, '.3f')}, by processor time {show(cpu, '.3f')}", flush=True)


class Seconds(NamedTuple):
    """Wall time and processor time."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        """Reads both clocks."""
        return cls(time.monotonic(), time.process_time())


def show(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def measure_memory(args: argparse.Namespace) -> None:
    """Runs one side in this process; prints its additional and total peak as JSON."""
    model = load(args.model)
    few = np.zeros(16, np.int64)
    plain_pass(model, torch.from_numpy(few)[None])
    perplexities(model, TruncatedPerplexity(bos="never"), [16], few)
    forget_peak()
    loaded = peak_bytes()
    begun = time.monotonic()
    sides(args, model)[args.side]()
    seconds = time.monotonic() - begun
    print(json.dumps({"extra_bytes": peak_bytes() - loaded, "peak_bytes": peak_bytes(), "seconds": seconds}))


def main() -> None:
    """Measures time, then memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sliding", "truncated", "long"))
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.lengths = args.lengths or ([131072] if args.what == "long" else [1024, 2048, 4096, 8192, 16384])
    if args.side:
        return measure_memory(args)
    names = ("skipwise",) if args.what == "long" else ("plain", "skipwise")
    if args.what != "long":
        measure_time(args)
    extra = {}
    for side in names:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--side", side], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        extra[side] = found["extra_bytes"]
        print(
            f"{side:9} memory {found['extra_bytes'] / 2**20:.0f} MiB above the loaded model, "
            f"{found['peak_bytes'] / 2**30:.2f} GiB in all, {found['seconds']:.1f} s",
            flush=True,
        )
    if "plain" in extra:
        print(f"memory ratio {extra['skipwise'] / extra['plain']:.3f}")
    return None


if __name__ == "__main__":
    main()

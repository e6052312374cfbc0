"""Time and memory of a training step of `extend`, compared with a bare loop over `model(input_ids, labels=...)`.

    python benchmarks/training_step.py MODEL [--window 2048] [--steps 4] [--rounds 2] [--checkpointing both]

Each measurement has its own process (peak memory is the operating system's figure for it). The two sides take turns, so
that a machine whose speed drifts slows both. The first step of a process is a warm-up and is not timed. Both sides have
the same float32 weights, the same windows, batch 1 and fused AdamW.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("bare", "skipwise")


def bare(model: Any, windows: Any, steps: int, checkpointing: bool) -> list[float]:
    """Seconds of each step of a plain loop."""
    import torch

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    seconds = []
    for step in range(steps):
        begun = time.monotonic()
        input_ids = windows[step][None]
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - begun)
    return seconds


def skipwise(model: Any, windows: Any, steps: int, checkpointing: bool) -> list[float]:
    """Seconds of each step of skipwise's Trainer, including drawing and collating positions with skips."""
    from skipwise.train.timing import step_seconds

    ids = [windows[step].numpy() for step in range(steps)]
    return step_seconds(model, ids, gradient_checkpointing=checkpointing)


def measure(args: argparse.Namespace) -> None:
    """Runs one side in this process; prints one line of JSON."""
    from skipwise.allocator import use_huge_pages, use_one_malloc_arena

    if args.side == "skipwise":  # as the command does
        use_huge_pages()
        use_one_malloc_arena()
    import torch

    from skipwise.model import load_model

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model, _ = load_model(args.model, dtype="float32")
    model.train()
    windows = torch.randint(100, model.config.vocab_size - 100, (args.steps, args.window))
    run = {"bare": bare, "skipwise": skipwise}[args.side]
    seconds = run(model, windows, args.steps, args.checkpointing == "on")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}), flush=True)


def main() -> None:
    """Runs every side in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--checkpointing", choices=("on", "off", "both"), default="both")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return measure(args)

    from skipwise.model import load_model, save_model

    with tempfile.TemporaryDirectory() as folder:
        # A GGUF file is unpacked once here, so that unpacking counts for neither side.
        weights = Path(folder) / "model"
        save_model(*load_model(args.model, dtype="float32"), weights)
        for checkpointing in ("off", "on") if args.checkpointing == "both" else (args.checkpointing,):
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(args.rounds):
                for side in SIDES:
                    command = [sys.executable, __file__, str(weights), "--side", side, "--checkpointing", checkpointing]
                    command += ["--window", str(args.window), "--steps", str(args.steps)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs[side].append(json.loads(done.stdout.splitlines()[-1]))
            show(checkpointing, runs)
    return None


def show(checkpointing: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints medians over all timed steps, the spread, the peaks, and the ratios."""
    timed = {side: [s for run in found for s in run["seconds"][1:]] for side, found in runs.items()}
    peaks = {side: max(run["peak_gib"] for run in found) for side, found in runs.items()}
    for side in SIDES:
        times = timed[side]
        print(
            f"checkpointing {checkpointing:3}  {side:8}  step {statistics.median(times):6.2f} s "
            f"({min(times):.2f} to {max(times):.2f})  peak {peaks[side]:.2f} GiB"
        )
    time_ratio = statistics.median(timed["skipwise"]) / statistics.median(timed["bare"])
    memory_ratio = peaks["skipwise"] / peaks["bare"]
    print(f"checkpointing {checkpointing:3}  ratio     time {time_ratio:.3f}  memory {memory_ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()

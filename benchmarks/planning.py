"""Predicted and measured peak memory of training steps and prefills, each in its own process.

    python benchmarks/planning.py MODEL [--windows 512 1024 2048] [--lengths 2048 8192 16384] [--tunings full lora]

MODEL is a folder, hub name or GGUF file. Every window is trained with full tuning and LoRA, with and without gradient
checkpointing: three steps of one window each by the Trainer of `skipwise extend`. Times are predicted with the
utilization that `skipwise plan` assumes without `--calibrate`.
"""

import argparse
import statistics
from itertools import product

import torch

from skipwise.config import FullTuning, LoraTuning, QloraTuning, Tuning
from skipwise.plan.machines import Utilisation, machine_of
from skipwise.plan.measure import Measured, Measurer

MIB = 2**20
TUNINGS: dict[str, Tuning] = {"full": FullTuning(), "lora": LoraTuning(), "qlora": QloraTuning()}


def show(one: Measured) -> None:
    """Prints a row of the table."""
    print(
        f"| {one.name} | {one.predicted_bytes / MIB:,.0f} | {one.measured_bytes / MIB:,.0f} | {one.memory_error:+.1%} "
        f"| {one.predicted_seconds:.2f} | {one.measured_seconds:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--windows", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 16384])
    parser.add_argument("--tunings", nargs="*", choices=TUNINGS, default=["full", "lora"])
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--machine", default="cpu", help="name of this machine, as in skipwise plan")
    args = parser.parse_args()
    measurer = Measurer(args.model, machine_of(args.machine), Utilisation())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | predicted MiB | measured MiB | error | predicted s | measured s |\n|---|---|---|---|---|---|")
    found: list[Measured] = []
    for kind, (checkpointing, window) in product(args.tunings, product((False, True), args.windows)):
        found.append(measurer.step(TUNINGS[kind], window, checkpointing=checkpointing, accumulation=args.accumulation))
        show(found[-1])
    for length in args.lengths:
        found.append(measurer.prefill(length))
        show(found[-1])
    errors = [abs(one.memory_error) for one in found]
    print(f"\nerror of memory: median {statistics.median(errors):.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()

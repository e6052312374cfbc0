"""Extends a real model to sixteen times its window or more on an accelerator: trains and measures each arm alike.

    python benchmarks/headline.py MODEL --train TRAIN.jsonl --heldout HELDOUT.jsonl --target 128k [--window 2k]
        [--arms base interpolation-only plain pose growing] [--steps 100] [--batch 8] [--out runs/headline]

TRAIN and HELDOUT contain documents as long as the target. Every arm that trains takes the same number of steps with the
same number of tokens, in bfloat16 over float32 weights. Each arm is then measured in bfloat16: perplexity of the first
tokens up to each length from one pass, the passkey grid, and the regression to the base on windows of the original
length. The verdict is over passkeys. Each command is printed before it runs, with its time after it. An arm that fails
is reported, and the next one starts. An arm that is already trained is not trained again, so an interrupted benchmark
can be continued.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

TRAINED: dict[str, dict[str, Any]] = {
    "plain": {"sampler": {"kind": "plain"}},
    "pose": {"sampler": {"kind": "pose"}},
    "growing": {"recipe": "growing"},
}
ARMS = ("base", "interpolation-only", *TRAINED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--target", default="128k")
    parser.add_argument("--window", default="2k")
    parser.add_argument("--lengths", default="2k,8k,32k,64k,128k")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="windows of a micro-batch; a step has four micro-batches")
    parser.add_argument("--original", default="8k", help="the model's own window, for the comparison with the base")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--num-documents", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return max(not (trained(given, arm) and measured(given, arm)) for arm in given.arms)


def trained(given: argparse.Namespace, arm: str) -> bool:
    """Trains an arm unless it needs no training or is trained already; returns whether that succeeded."""
    folder = given.out / arm
    if arm not in TRAINED or (folder / "model.safetensors").exists():
        return True
    run = {
        "model": given.model,
        "target": given.target,
        "window": given.window,
        "output": str(folder),
        "interpolation": {"kind": "yarn"},
        "data": {"source": given.train},
        "validation": {"lengths": [given.window], "every_steps": 0, "num_documents": 1},
        "training": {
            "bf16": True,
            "max_steps": given.steps,
            "per_device_train_batch_size": given.batch,
            "gradient_accumulation_steps": 4,
            "learning_rate": given.rate,
            "gradient_checkpointing": False,
            "save_steps": given.steps,
        },
        **TRAINED[arm],
    }
    file = given.out / f"{arm}.yaml"
    file.write_text(yaml.safe_dump(run, sort_keys=False))
    return ran("extend", "--config", str(file))


def measured(given: argparse.Namespace, arm: str) -> bool:
    """Measures an arm; returns whether that succeeded."""
    source = [str(given.out / arm)] if arm in TRAINED else [given.model]
    if arm == "interpolation-only":
        source += ["--interpolation", "yarn", "--target", given.target]
    shared = ["--dtype", "bfloat16", "--allow-beyond", "--documents", given.heldout, "--all-documents"]
    shared += ["--out", str(given.out / f"{arm}.jsonl"), "--samples", str(given.out / f"{arm}-samples.jsonl")]
    documents = [f"--set=num_documents={given.num_documents}"]
    passkeys = ["--set", f"passkey.trials={given.trials}", "--set", "passkey.num_depths=5"]
    jobs = [
        ["--task", "truncated", "--length", given.lengths, *documents],
        ["--task", "passkey", "--length", given.lengths, *passkeys, "--verdict"],
    ]
    if arm != "base":
        jobs.append(["--task", "regression", "--base", given.model, "--length", given.original, *documents])
    # The verdict's exit code 1 means that the effective length is below the advertised one: a result, not a failure.
    return all(ran("eval", *source, *job, *shared, also=(1,) if "--verdict" in job else ()) for job in jobs)


def ran(*command: str, also: tuple[int, ...] = ()) -> bool:
    """Prints, runs and times one command of skipwise; returns whether it succeeded."""
    print("\n$ skipwise " + shlex.join(command), flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "skipwise", *command]).returncode
    print(f"[{time.monotonic() - began:.0f} s, exit {code}]", flush=True)
    return code in (0, *also)


if __name__ == "__main__":
    sys.exit(main())

"""The three most downloaded config layouts of long-context models, tried as a new user would, command by command.

    python benchmarks/published_layouts.py > docs/results/published-layouts.md

The models are tiny and random, with the configs of tests/rope/test_published_layouts.py as transformers 4 writes them.
The rotary table of each resulting folder is compared with the one that transformers computes for a config written by
hand.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rope_forms import library_table, write  # pyright: ignore[reportMissingImports]
from test_published_layouts import LAYOUTS, TARGET, WINDOWS, checkpoint  # pyright: ignore[reportMissingImports]
from tiny_runs import write_documents  # pyright: ignore[reportMissingImports]
from transformers.utils import logging

from skipwise.demo.run import BASE


def main() -> None:
    """Prints the record."""
    logging.set_verbosity_error()
    print("# The three most downloaded config layouts, tried as a new user would\n")
    print("`python benchmarks/published_layouts.py`: tiny models whose `config.json` is as transformers 4 writes it.")
    print("Each layout is checked by `doctor`, planned, repaired from a planted fault, extended, and checked again.")
    print("Rotary tables of the repaired and the extended folder are compared with those that transformers computes.")
    for name in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n## {name}\n")
            tried(name, Path(folder))


def tried(name: str, folder: Path) -> None:
    """Runs and prints all steps of one layout."""
    config, limit, asked, by_hand = LAYOUTS[name]
    model = checkpoint(folder / "model", BASE, config, limit)
    before = library_table(model, 131072)
    command(folder, "doctor", "model")
    planned = ["--window", "64", "--write-config", "run.yaml"]
    command(folder, "plan", "model", "--target", str(TARGET), *planned, show=lambda line: "nterpolation" in line)
    rounded = {
        name: np.round(value, 3).tolist() if isinstance(value, list) else value
        for name, value in yaml.safe_load((folder / "run.yaml").read_text())["interpolation"].items()
    }
    print(f"The planned run's interpolation: `{rounded}`\n")

    faulty = shutil.copytree(model, folder / "faulty")
    settings = json.loads((faulty / "tokenizer_config.json").read_text())
    (faulty / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": WINDOWS[name][0]}))
    command(folder, "doctor", "faulty", "--fix", "--out", "fixed")
    compare("the fixed folder", library_table(folder / "fixed", 131072), before)

    (folder / "docs").mkdir()
    write_documents(folder / "docs")
    run = {"model": "model", "target": TARGET, "window": 64, "recipe": "paper", "output": "extended"}
    run["data"] = {"source": "docs", "held_out": 0}
    run["interpolation"] = asked or yaml.safe_load((folder / "run.yaml").read_text())["interpolation"]
    run["training"] = {"max_steps": 2, "gradient_accumulation_steps": 2, "use_cpu": True, "disable_tqdm": True}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    command(folder, "extend", "--config", "run.yaml", show=lambda line: line.startswith("extended"))
    expected = library_table(
        write(folder / "by-hand", {**config, **by_hand, "max_position_embeddings": TARGET}), TARGET
    )
    compare("the extended folder", library_table(folder / "extended", TARGET), expected)
    command(folder, "doctor", "extended", "--base", "model")


def command(folder: Path, *arguments: str, show=lambda line: True) -> None:
    """Runs a command in a folder; prints it and its output."""
    done = subprocess.run(
        [sys.executable, "-m", "skipwise", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if show(line) and "kernels" not in line]
    print("```", f"$ skipwise {' '.join(arguments)}", *lines, f"(exit {done.returncode})", "```\n", sep="\n")


def compare(what: str, found, expected) -> None:
    """Prints how far a table is from the expected one."""
    off = float(np.max(np.abs(found.inv_freq / expected.inv_freq - 1)))
    factors = f"attention factor {found.attention_factor:.6g}, expected {expected.attention_factor:.6g}"
    print(f"transformers' table of {what} is off by {off:.1g}; {factors}.\n")


if __name__ == "__main__":
    main()

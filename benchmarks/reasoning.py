"""Reasoning tasks on one model: score, chance, and processor time of a sample.

    OMP_NUM_THREADS=1 python benchmarks/reasoning.py MODEL --documents manuals/ --lengths 1024 2048 --trials 5
    OMP_NUM_THREADS=1 python benchmarks/reasoning.py embedded --lengths 512 1024 --interpolation yarn --target 1024

MODEL is a folder, hub name, GGUF file or `embedded`. All documents are read, also those that the model was trained on:
they are only what facts are hidden in. Shorter lengths come first, and each row is printed as soon as it is known.
"""

import argparse
import time
from typing import Any

from skipwise.cli.evaluate_documents import find_texts
from skipwise.errors import SkipwiseError
from skipwise.evals import TASK_GROUPS, TASKS, evaluate
from skipwise.evals.evaluation import make_task
from skipwise.model import load_model, original_window, read_config
from skipwise.rope import interpolation_from
from skipwise.window import Window


def settings(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The settings of a task; a number of trials that five depths do not divide has one depth."""
    depths = {"num_depths": 1} if asked.trials % 5 and hasattr(TASKS[name], "num_depths") else {}
    return {"kind": name, "trials": asked.trials, "chat": asked.chat, "language": asked.language, **depths}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--documents", default="stdlib")
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--language")
    parser.add_argument("--interpolation")
    parser.add_argument("--target", type=int)
    parser.add_argument("--chat", action="store_true")
    asked = parser.parse_args()
    how = {}
    if asked.interpolation:
        window = original_window(read_config(asked.model))
        how = {
            "interpolation": interpolation_from(asked.interpolation),
            "window": Window(train=window, original=window, target=asked.target),
        }
    loaded = load_model(asked.model, dtype="float32", **how)
    which = {"all_documents": True, "share": None, "skip_unreadable": True, "progress": False}
    texts = find_texts(asked.model, asked.documents, None, None, **which)
    documents, _ = texts.of(loaded.tokenizer, asked.lengths)
    print(
        "| task | tokens | chance | score | 95% interval | samples | processor seconds a sample |",
        "|---" * 7 + "|",
        sep="\n",
    )
    for length in sorted(asked.lengths):
        for name in TASK_GROUPS["reasoning"]:
            task = make_task(settings(name, asked))
            begin = time.process_time()
            try:
                found = evaluate(loaded.model, loaded.tokenizer, [task], [length], documents, progress=False)
            except SkipwiseError as error:
                print(f"| {name} | {length} | {error} | | | | |", flush=True)
                continue
            seconds = (time.process_time() - begin) / asked.trials
            result, chance = found[0], found[0].details["chance"]
            interval = f"{result.ci_low:.2f} to {result.ci_high:.2f}"
            row = (name, length, f"{chance:.3f}", f"{result.value:.2f}", interval, result.num_samples, f"{seconds:.1f}")
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()

"""Measures weighted means of base and extended weights: the tables of docs/results/merge-with-base.md.

    python benchmarks/merge_with_base.py run RUN                     trains the demo's run by low-rank additions
    python benchmarks/merge_with_base.py measure RUN --out FOLDER    goes on where it stopped

On the held-out sources of the standard library: perplexity beside the base's on inputs of 256 tokens, passkeys, and
perplexity by length.
"""

import argparse
from pathlib import Path
from typing import Any

from skipwise.config import DataConfig
from skipwise.data.corpus import store_corpus
from skipwise.demo.run import BASE, DemoSettings
from skipwise.evals import SampleCache, evaluate
from skipwise.export import export
from skipwise.model import load_model
from skipwise.records.results import EvalResult
from skipwise.train import begin_or_go_on

LENGTHS = (256, 512, 1024, 2048, 4096)


def train(folder: Path) -> None:
    """The demo's run with low-rank additions instead of full tuning."""
    run = DemoSettings().run_config(folder, seed=0)
    begin_or_go_on(run.over({"tuning": {"kind": "lora", "rank": 32, "train_norms": True, "train_embeddings": True}}))


def measure(run: Path, folder: Path, weights: list[float], trials: int) -> None:
    """Prints a table row for each share."""
    cache = SampleCache(folder / "samples")
    cache.folder.mkdir(parents=True, exist_ok=True)
    print("| share of the base | perplexity beside the base's at 256 | KL at 256 | same top token |")
    rows = []
    for weight in weights:
        merged = folder / f"base-{weight:g}"
        if not merged.exists():
            export(run, to="hf", dtype="float32", output=merged, base_weight=weight)
        model, tokenizer = load_model(merged)
        store = store_corpus(DataConfig(), tokenizer).documents("held_out", min_tokens=max(LENGTHS))
        documents = [store.document(index) for index in range(store.num_documents)]
        how: dict[str, Any] = {"cache": cache, "progress": False}
        regression = {"kind": "regression", "base": str(BASE), "untrained": False, "num_documents": len(documents)}
        short = evaluate(model, tokenizer, [regression], [256], documents, **how)
        by_length = [
            {"kind": "passkey", "trials": trials, "num_depths": 10},
            {"kind": "perplexity", "num_documents": len(documents), "scored_tokens": 192},
        ]
        rows.append((weight, evaluate(model, tokenizer, by_length, LENGTHS, documents, **how)))
        found = {result.metric: result for result in short if result.is_whole}
        cells = [text(found[name]) for name in ("log_perplexity_ratio", "kl_mean", "same_top")]
        print(f"| {weight:g} | {' | '.join(cells)} |", flush=True)
    for metric in ("accuracy", "perplexity"):
        print(f"\n| share of the base: {metric} | {' | '.join(map(str, LENGTHS))} |")
        for weight, results in rows:
            values = {result.length_tokens: result for result in results if result.is_whole and result.metric == metric}
            print(f"| {weight:g} | {' | '.join(text(values[length]) for length in LENGTHS)} |", flush=True)


def text(result: EvalResult) -> str:
    return f"{result.value:.3g} ({result.ci_low:.3g} to {result.ci_high:.3g})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=["run", "measure"])
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--out", type=Path, default=Path("runs/merge-with-base"))
    arguments.add_argument("--weights", default="0,0.25,0.5,0.75,1")
    arguments.add_argument("--trials", type=int, default=100)
    given = arguments.parse_args()
    if given.what == "run":
        train(given.run)
    else:
        measure(given.run, given.out, [float(weight) for weight in given.weights.split(",")], given.trials)


if __name__ == "__main__":
    main()

"""Exports one model in every format, measures the differences, and counts passkeys that llama.cpp finds.

    python benchmarks/exports.py runs/demo/model
    python benchmarks/exports.py runs/demo/model --only gguf-f32,gguf-q8_0 --long-tokens 1024 --passkeys 4096

Prints the tables of docs/results/export.md.
"""

import argparse
import re
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.export import Exported, export
from skipwise.export.runners import LlamaCppRunner, Runner, TransformersRunner
from skipwise.model import load_model

HF, GGUF = ("float32", "bfloat16", "float16"), ("f32", "f16", "bf16", "q8_0")
_NUMBERS = re.compile(r"by (\S+) \(relative, allowed (\S+)\).*costs (\S+);.*trained: (\S+)")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model")
    arguments.add_argument("--engines", default="llama.cpp,transformers")
    arguments.add_argument("--only", default="", metavar="NAMES", help="only these exports, such as hf-bfloat16")
    arguments.add_argument("--long-tokens", type=int)
    arguments.add_argument("--passkeys", type=int, default=0, metavar="TOKENS")
    arguments.add_argument("--trials", type=int, default=20)
    given = arguments.parse_args()
    jobs = [("hf", dtype, None) for dtype in HF]
    jobs += [("gguf", dtype, engine) for engine in given.engines.split(",") for dtype in GGUF]
    jobs = [job for job in jobs if not given.only or f"{job[0]}-{job[1]}" in given.only.split(",")]
    print(
        "| export | loaded again by | short: differ / allowed / format costs | long: the same | top tokens | greedy |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for to, dtype, engine in jobs:
            out = Path(folder) / f"{to}-{dtype}"
            shutil.rmtree(out, ignore_errors=True)
            made = export(given.model, to=to, dtype=dtype, output=out, engine=engine, long_tokens=given.long_tokens)
            print(row(made), flush=True)
        if given.passkeys:
            passkeys(given.model, Path(folder), given.passkeys, given.trials)


def row(made: Exported) -> str:
    found = {verdict.name: verdict.detail for verdict in made.verdicts}
    cells = []
    for name in ("short", "long"):
        match = _NUMBERS.search(found[name])
        assert match is not None
        cells.append(match.groups())
    ends = f"{cells[0][3]}, {cells[1][3]} | {found['greedy'].split(' tokens')[0]}"
    shares = " | ".join(" / ".join(cell[:3]) for cell in cells)
    return f"| {made.format} {made.dtype} | {made.engine} | {shares} | {ends} |"


def passkeys(model: str, folder: Path, length: int, trials: int) -> None:
    loaded = load_model(model, dtype="float32")
    builder, rng = PasskeyBuilder(loaded.tokenizer), np.random.default_rng(0)  # pyright: ignore[reportArgumentType]
    prompts = [builder.build(length, (trial + 0.5) / trials, rng) for trial in range(trials)]

    def found(runner: Runner) -> int:
        # Every token of the answer is the most likely one after those before it, so greedy text would be the answer.
        return sum(
            bool(
                (runner.logits([*p.prompt_ids, *p.answer_ids[:-1]], len(p.answer_ids)).argmax(-1) == p.answer_ids).all()
            )
            for p in prompts
        )

    print(f"\npasskeys of {length} tokens found, of {trials}:")
    print(f"transformers, as trained: {found(TransformersRunner(loaded.model, loaded.tokenizer))}", flush=True)
    for dtype in ("f32", "q8_0"):
        with closing(LlamaCppRunner(next((folder / f"gguf-{dtype}").glob("*.gguf")))) as runner:
            print(f"llama.cpp, {dtype}: {found(runner)}", flush=True)


if __name__ == "__main__":
    main()

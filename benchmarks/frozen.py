"""Numbers that no change of the code may change, computed by the public API, to compare two source trees.

    PYTHONPATH=OTHER/src python benchmarks/frozen.py > before.json
    python benchmarks/frozen.py > after.json
    diff before.json after.json

Positions of every sampler, rotary tables of every interpolation, coverage, the losses of short runs on the embedded
model, and perplexities and passkeys of that model and of the runs' results. The documents are the sources of the
standard library, so the numbers hold for one version of Python and torch.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipwise import INTERPOLATIONS, SAMPLERS, RopeSpec, RunConfig, Window, coverage, evaluate, extend, load_model
from skipwise.demo import BASE

WINDOWS = (Window(train=256, original=256, target=4096), Window(train=2048, original=4096, target=32768))
RUNS: dict[str, dict[str, Any]] = {
    "growing": {"recipe": "growing"},
    "diluted": {"recipe": "diluted"},
    "paper": {"recipe": "paper"},
    "three chunks": {"recipe": "paper", "sampler": {"kind": "pose", "chunks": 3}, "interpolation": "linear"},
    "lora": {"recipe": "paper", "tuning": {"kind": "lora", "rank": 4}},
}


def digest(*arrays: Any) -> str:
    """A short hash of arrays."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()[:16]


def pure() -> dict[str, Any]:
    """Numbers that need neither model nor documents."""
    found: dict[str, Any] = {}
    for window in WINDOWS:
        name = f"{window.train}/{window.target}"
        for kind, sampler in SAMPLERS.items():
            rng = np.random.default_rng(0)
            samples = [sampler().sample(3 * window.target, window, rng) for _ in range(20)]
            found[f"positions {kind} {name}"] = digest(*(sample.position_ids for sample in samples))
        found[f"coverage {name}"] = digest(coverage(SAMPLERS["pose"](), window))
        for kind, interpolation in INTERPOLATIONS.items():
            if kind == "longrope":
                continue  # its divisors come from a search, not from a formula
            table = interpolation().table(RopeSpec(rotary_dim=64, theta=10000.0), window)
            found[f"rope {kind} {name}"] = [digest(table.inv_freq), table.attention_factor]
    return found


def measured(folder: Any, documents: list[np.ndarray]) -> dict[str, float]:
    """Perplexities and passkeys of a model."""
    model, tokenizer = load_model(folder)
    tasks: list[Any] = [
        {"kind": "perplexity", "num_documents": 3, "scored_tokens": 128},
        {"kind": "passkey", "trials": 5, "num_depths": 5},
    ]
    results = evaluate(model, tokenizer, tasks, [256, 1024], documents, seed=0, progress=False, allow_beyond=True)
    return {f"{result.task} {result.length_tokens}": result.value for result in results}


def main() -> None:
    """Prints everything as JSON."""
    torch.set_num_threads(1)
    found = pure()
    tokenizer: Any = load_model(BASE).tokenizer
    sources = sorted(Path(json.__file__).parent.parent.glob("[d-h]*.py"))
    documents = [np.array(tokenizer(source.read_text()).input_ids) for source in sources[:12]]
    long = [ids for ids in documents if len(ids) > 1100]
    found["base"] = measured(BASE, long)
    with tempfile.TemporaryDirectory() as name:
        for run, settings in RUNS.items():
            config = {
                "model": str(BASE),
                "target": 2048,
                "output": f"{name}/{run}",
                "data": {"source": "stdlib"},
                "validation": {"num_documents": 2},
                "training": {"max_steps": 6, "learning_rate": 5e-4, "use_cpu": True, "disable_tqdm": True},
            }
            result = extend(RunConfig.from_mapping(config | settings))
            kept = ("loss", "eval_perplexity_256", "eval_perplexity_2048")
            log = [entry[key] for entry in result.log for key in kept if key in entry]
            found[f"run {run}"] = {"log": log, **measured(result.folder, long)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

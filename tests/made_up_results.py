"""Made-up results that look like real ones: a comparison of six arms at five lengths, an extended model, serving."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.positions import sampler_from
from skipwise.records.results import EvalResult
from skipwise.report.evidence import Arm

LENGTHS = (256, 512, 1024, 2048, 4096)
# Perplexities and shares of keys by length; `full` failed and has none.
PERPLEXITIES = {
    "base": (8.4, 19.5, 70.4, 170.0, 172.0),
    "interpolation only": (10.3, 10.3, 10.9, 11.5, 12.0),
    "pose": (8.75, 7.77, 7.29, 7.28, 7.37),
    "pose, three chunks": (8.8, 7.8, 7.35, 7.3, 7.45),
    "randpos": (9.9, 9.1, 8.8, 8.7, 8.9),
}
FOUND = {
    "base": (1.0, 0.35, 0.0, 0.0, 0.0),
    "interpolation only": (0.95, 0.95, 0.8, 0.6, 0.4),
    "pose": (1.0, 1.0, 1.0, 1.0, 1.0),
    "pose, three chunks": (1.0, 1.0, 1.0, 1.0, 0.96),
    "randpos": (1.0, 0.96, 0.9, 0.8, 0.7),
}
POSE: dict[str, Any] = {"kind": "pose", "chunks": 2, "skips": "flat", "text": "aligned", "start": "anywhere"}
SAMPLERS = {"pose": POSE, "pose, three chunks": POSE | {"chunks": 3}, "randpos": {"kind": "randpos"}}


def record(
    task: str,
    metric: str,
    length: int,
    value: float,
    low: float | None,
    high: float | None,
    n: int = 50,
    **details: Any,
) -> dict[str, Any]:
    """One line of a results file."""
    return {
        "task": task,
        "length_tokens": length,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "num_samples": n,
        "num_skipped": 0,
        "seed": 0,
        "details": {
            "settings": {"num_documents": 16, "scored_tokens": 128},
            "documents_sha256": "d0c5" * 16,
            "tokenizer_sha256": "70ce" * 16,
            "model": "models/small",
            "dtype": "float32",
            "device": "cpu",
            "attention": "sdpa",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            **details,
        },
    }


def share(task: str, metric: str, length: int, value: float, n: int = 50, **details: Any) -> dict[str, Any]:
    """A share with Wilson's interval at z = 1.96."""
    centre, spread = value + 1.92 / n, 1.96 * math.sqrt(value * (1 - value) / n + 0.96 / n**2)
    low, high = ((centre + sign * spread) / (1 + 3.84 / n) for sign in (-1, 1))
    return record(task, metric, length, value, max(0.0, low), min(1.0, high), n, **details)


def records_of(arm: str, *, kinds: Sequence[str] = ("single", "multi_value")) -> Iterator[dict[str, Any]]:
    """Everything measured on one arm, with these kinds of needles; without any, drawing takes half as long."""
    rng = np.random.default_rng(len(arm))
    for length, perplexity, found in zip(LENGTHS, PERPLEXITIES[arm], FOUND[arm], strict=True):
        yield record("perplexity", "perplexity", length, perplexity, perplexity * 0.93, perplexity * 1.08, 16)
        yield share("passkey", "accuracy", length, found)
        for part in range(5):
            depths = {"depth_from": part / 5, "depth_to": (part + 1) / 5}
            yield share("passkey", "accuracy_at_depth", length, round(found, 1), 10, **depths)
        for kind in kinds:
            score = round(found * (1.0 if kind == "single" else 0.94), 2)
            yield share("needles", "score", length, score, 25, kind=kind)
            for part in range(5):
                depths = {"depth_from": part / 5, "depth_to": (part + 1) / 5}
                at = float(np.clip(round(score + rng.normal(0, 0.1) * (0 < score < 1), 1), 0, 1))
                yield share("needles", "score_at_depth", length, at, 5, kind=kind, **depths)
        for task in ("ruler_niah_single_1", "ruler_vt", "ruler_cwe", "ruler_qa_1"):
            yield share(task, "score", length, round(found * 0.97, 2), 25)
        yield from serving(length)
    if arm != "base":
        ratio = math.log(PERPLEXITIES[arm][0] / PERPLEXITIES["base"][0])
        for name, more in (("model", 0.0), ("interpolation only", 0.1)):
            yield from regression(256, ratio + more, name)


def arm_of(name: str, lines: Iterable[dict[str, Any]]) -> Arm:
    """An arm with these records."""
    return Arm(name=name, results=[EvalResult(**line) for line in lines])


def serving(length: int) -> Iterator[dict[str, Any]]:
    """Cost of a request."""
    for metric, value in {
        "prefill_seconds": 0.0002 * length + 1e-8 * length**2,
        "token_seconds": 0.012 + 1e-6 * length,
        "cache_bytes": 2048.0 * length,
        "peak_bytes": 5e8 + 9000.0 * length,
    }.items():
        yield record("serving", metric, length, value, None, None, 3)


def regression(length: int, log_ratio: float, arm: str) -> Iterator[dict[str, Any]]:
    """What a short window lost."""
    for metric, value, spread in (
        ("kl_mean", 0.021, 0.003),
        ("kl_median", 0.006, 0.001),
        ("kl_p99", 0.24, 0.05),
        ("same_top", 0.94, 0.01),
        ("log_perplexity_ratio", log_ratio, 0.012),
    ):
        yield record("regression", metric, length, value, value - spread, value + spread, 20, arm=arm)
    yield record("regression", "kl_max", length, 2.9, None, None, 20, arm=arm)
    yield record("regression", "kl_mean_at_position", length, 0.02, 0.01, 0.03, 20, arm=arm, position_from=0)


def write_lines(path: Path, records: Iterator[dict[str, Any]] | list[dict[str, Any]], **details: Any) -> Path:
    """A results file."""
    lines = [json.dumps(one | {"details": one["details"] | details}) + "\n" for one in records]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
    return path


def difference(arm: str, metric: str, place: int) -> dict[str, Any]:
    """An arm beside `pose`."""
    if metric == "perplexity":
        value, spread = math.log(PERPLEXITIES[arm][place] / PERPLEXITIES["pose"][place]), 0.013
    else:
        value, spread = FOUND[arm][place] - FOUND["pose"][place], 0.08
    return {
        "arm": arm,
        "reference": "pose",
        "task": "perplexity" if metric == "perplexity" else "passkey",
        "metric": metric,
        "length_tokens": LENGTHS[place],
        "value": value,
        "ci_low": value - spread,
        "ci_high": value + spread,
        "num_pairs": 16,
        "num_seeds": 2,
    }


def comparison() -> dict[str, Any]:
    """What `skipwise compare` says of the six arms."""

    def run(seed: int, **how: Any) -> dict[str, Any]:
        spent = {"steps": 100, "tokens": 409600, "training_seconds": 88.1 + seed, "peak_bytes": 900_000_000 + seed}
        return {"seed": seed, "status": "done", "failure": None, "error": None, **spent, **how}

    def arm(name: str) -> dict[str, Any]:
        trained = name in SAMPLERS
        return {
            "trained": trained,
            "interpolation": {"kind": "none"} if name == "base" else {"kind": "yarn"},
            "sampler": SAMPLERS.get(name),
            "settings": {"dilution": True} if trained else {},
            "runs": [run(0), run(1)] if trained else [],
        }

    arms = {name: arm(name) for name in PERPLEXITIES}
    failed = {"status": "failed", "failure": "out of memory", "error": "CUDA out of memory: tried to allocate 9 GiB"}
    nothing = {"steps": None, "tokens": None, "training_seconds": None, "peak_bytes": None}
    arms["full"] = arm("pose") | {"sampler": {"kind": "full"}, "runs": [run(0, **failed, **nothing)]}
    targets = (1024, 2048, 4096, 8192)
    return {
        "kind": "comparison",
        "model": "models/small",
        "window": {"train": 256, "original": 256, "target": 4096},
        "reference": "pose",
        "seeds": [0, 1],
        "arms": arms,
        "differences": [
            difference(name, metric, place)
            for metric in ("perplexity", "accuracy")
            for name in PERPLEXITIES
            if name != "pose"
            for place in range(len(LENGTHS))
        ],
        "reached": [
            {"arm": name, "seed": seed, "perplexity": 9.0, "length_tokens": 4096, "tokens": tokens}
            for name, tokens in (("pose", 122880), ("pose, three chunks", 163840), ("randpos", None))
            for seed in (0, 1)
        ],
        "costs": [
            *({**cost(target, 0.9 + target / 2e5, 9e8 + 1000 * target), "arm": "pose"} for target in targets),
            *({**cost(target, target / 900, 4e5 * target), "arm": "full"} for target in targets[:3]),
            {"arm": "full", "target_tokens": 8192, "step_seconds": None, "peak_bytes": None, "status": "failed",
             "error": "out of memory"},
        ],
        "made": {"command": "skipwise compare small --target 4k", "seed": "0", "versions": "torch 2.13.0"},
    }  # fmt: skip


def cost(target: int, seconds: float, peak: float) -> dict[str, Any]:
    """Of one step."""
    return {
        "target_tokens": target,
        "step_seconds": seconds,
        "peak_bytes": round(peak),
        "status": "done",
        "error": None,
    }


def write_comparison(folder: Path, changes: Mapping[str, Any] | None = None, **how: Any) -> Path:
    """A comparison's folder, with some of its `comparison.json` changed; results are those of `records_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(comparison() | dict(changes or {})), encoding="utf-8")
    for name in PERPLEXITIES:
        write_lines(folder / "records.jsonl", list(records_of(name, **how)), compared=name, train_seeds=[0, 1])
    return folder


def write_extended(folder: Path) -> Path:
    """The folder of an extended model: its record alone."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "config": {"model": "models/small", "sampler": POSE, "training": {"max_steps": 100}, "notes": None},
        "window": {"train": 256, "original": 256, "target": 4096},
        "sampler": repr(sampler_from(POSE)),
        "interpolation": "YaRN()",
        "corpus": {"fingerprint": "f00d" * 16, "documents": 500, "counts": {"tokens": 1}},
        "preflight": [],
        "seed": 3,
        "versions": {"torch": "2.13.0"},
        "steps": 100,
        "resumed_at_step": None,
        "seconds": 88.1,
        "peak_bytes": 912345678,
        "log": [],
    }
    (folder / "skipwise.json").write_text(json.dumps(run), encoding="utf-8")
    return folder

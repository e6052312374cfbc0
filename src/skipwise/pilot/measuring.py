"""What this machine takes: preflight, passes over growing inputs, training steps; in a process of its own.

python -m skipwise.pilot.measuring '{"run": {...}, "lengths": [256, 512], "windows": [[256, 8, 4.0]], ...}'
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipwise.allocator import use_one_malloc_arena
from skipwise.config import RunConfig
from skipwise.plan.measure import run_apart
from skipwise.records.verdict import Verdict
from skipwise.window import Window

# A training step reaches less of the machine's speed than a pass.
_SLOWER = 1.3
_REPEATS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds on this machine.

    Attributes:
        verdicts: of the preflight.
        preflight: that the probes took.
        start: of a process until the model was loaded.
        passes: of one pass over an input, by its tokens.
        token: of one more decoded token.
        windows: of training on one window, by its tokens.
    """

    verdicts: Sequence[Verdict]
    preflight: float
    start: float
    passes: Mapping[int, float]
    token: float
    windows: Mapping[int, float]


def measure(
    run: RunConfig,
    window: Window,
    lengths: Sequence[int],
    windows: Sequence[tuple[int, int, float]],
    most_seconds: float,
) -> Measured:
    """Probes and times the model of a run.

    Args:
        run: as it would be trained.
        window: its lengths, in tokens.
        lengths: of inputs, the shortest first.
        windows: training windows: tokens, how many at a time, and how many times the work of a pass of the shortest of
            `lengths` one takes.
        most_seconds: what is expected to take longer is not measured, but for the first pass.

    Raises:
        ConfigError: it failed.
    """
    begun = time.monotonic()
    question = {
        "what": "pilot",
        "model": run.model,
        "run": json.loads(json.dumps(run.model_dump(mode="json"))),
        "window": [window.train, window.original, window.target],
        "lengths": list(lengths),
        "windows": [list(one) for one in windows],
        "most_seconds": most_seconds,
    }
    found = run_apart(question, "skipwise.pilot.measuring")
    took = time.monotonic() - begun
    return Measured(
        verdicts=[Verdict(**verdict) for verdict in found["verdicts"]],
        preflight=found["preflight"],
        # What Python took to start and to import is not seen from inside.
        start=max(1.0, took - found["seconds"] + found["loading"]),
        passes={int(tokens): seconds for tokens, seconds in found["passes"]},
        token=found["token"],
        windows={int(tokens): seconds for tokens, seconds in found["windows"]},
    )


def main() -> None:
    """Measures in this process; prints one line of JSON."""
    begun = time.monotonic()
    use_one_malloc_arena()
    question = json.loads(sys.argv[1])
    from skipwise.model import read_config
    from skipwise.train.preflight import load_as_trained, probe

    run = RunConfig.from_mapping(question["run"])
    train, original, target = question["window"]
    window = Window(train=train, original=original, target=target)
    base = read_config(run.model, original=run.original, trust_remote_code=run.trust_remote_code)
    loaded = load_as_trained(run, window, base)
    model: Any = loaded.model
    loading = time.monotonic() - begun
    verdicts = probe(loaded, run, window)
    probed = time.monotonic() - begun - loading
    found: dict[str, Any] = {
        "verdicts": [{name: getattr(one, name) for name in Verdict.__slots__} for one in verdicts],
        "preflight": probed,
        "loading": loading,
        "passes": [],
        "token": 0.0,
        "windows": [],
    }
    if not any(one.status == "fail" for one in verdicts):
        found["passes"], found["token"] = _passes(model, question["lengths"], question["most_seconds"])
        found["windows"] = _windows(model, run, question["windows"], found["passes"][0][1], question["most_seconds"])
    print(json.dumps({**found, "seconds": time.monotonic() - begun}), flush=True)


def _passes(model: Any, lengths: Sequence[int], most_seconds: float) -> tuple[list[tuple[int, float]], float]:
    """Seconds of a pass by length, as long as one is expected to be short; and of a decoded token."""
    from skipwise.evals.tasks.serving import serve
    from skipwise.runtime.forward import token_nlls

    model.eval()
    vocabulary = model.config.get_text_config().vocab_size
    found: list[tuple[int, float]] = []
    for tokens in lengths:
        # Twice as long an input takes four times as long at most.
        if found and 4 * found[-1][1] * (tokens / found[-1][0] / 2) > most_seconds:
            break
        ids = torch.randint(0, vocabulary, (1, tokens))
        seconds: list[float] = []
        # Again while that is quick, and the fastest counts: other work on the machine, and what is loaded on first use,
        # can only delay one. Work that goes on shows in what the first arms take (`Pacer`).
        while len(seconds) < _REPEATS and (not seconds or sum(seconds) < most_seconds / _REPEATS):
            begun = time.monotonic()
            token_nlls(model, ids, max(1, tokens - 64))
            seconds.append(time.monotonic() - begun)
        found.append((tokens, min(seconds)))
    ids = torch.randint(0, vocabulary, (1, min(found[-1][0], 4096)))
    return found, serve(model, ids, 8).token_seconds


def _windows(
    model: Any, run: RunConfig, windows: Sequence[tuple[int, int, float]], one_pass: float, most_seconds: float
) -> list[tuple[int, float]]:
    """Seconds of training on one window, by its tokens: the later steps of a few by the Trainer of `extend`.

    A first window whose steps would take too long is estimated by its work, and a later one is left out.
    """
    from skipwise.train.arguments import CHECKPOINTING, training_settings
    from skipwise.train.timing import step_seconds

    settings = training_settings(run)
    kept = {name: settings[name] for name in (CHECKPOINTING, "bf16", "fp16", "use_cpu") if name in settings}
    vocabulary, rng = model.config.get_text_config().vocab_size, np.random.default_rng(0)
    found: list[tuple[int, float]] = []
    # Low-rank additions are put in once.
    for tokens, at_a_time, work in windows if run.tuning.kind == "full" else windows[:1]:
        expected = work * one_pass
        tries = [(3, at_a_time), (2, 1), (1, 1)]
        steps, together = next((n for n in tries if n[0] * n[1] * expected < most_seconds), (0, 0))
        if not steps:
            if not found:
                found.append((tokens, _SLOWER * expected))
            break
        seconds = step_seconds(
            model,
            [rng.integers(0, vocabulary, tokens) for _ in range(steps * together)],
            tuning=run.tuning,
            diluted=run.dilution,
            per_device_train_batch_size=together,
            **kept,
        )
        del model.forward  # The loss that training put there.
        # With the optimizer's time in each of its windows, which is too much rather than too little.
        found.append((tokens, min(seconds) / together))
    return found


if __name__ == "__main__":
    main()

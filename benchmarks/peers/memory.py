"""Planned and measured memory of a training step: `skipwise plan` beside `accelerate estimate-memory`.

`accelerate estimate-memory` asks the hub about a model's name and takes no folder. What it computes after that is
called here on an empty model of a local config: four times the float32 weights for training with Adam, whatever the
window. It means weights, gradients and optimizer, not activations, logits or the process. The measured number is the
peak of a process that trains three steps with the Trainer of `skipwise extend`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.installing import ACCELERATE, SkippedError, install, measure_apart
from benchmarks.peers.plan import Plan
from benchmarks.peers.rows import OURS, Row, Skipped

GIB = 2**30


def measure(plan: Plan) -> Iterator[Row | Skipped]:
    """The given model and the embedded one, full tuning in float32 without gradient checkpointing."""
    import skipwise.demo
    from skipwise.config import FullTuning
    from skipwise.plan.machines import Utilisation, machine_of
    from skipwise.plan.measure import Measurer

    models = {"the model": plan.model, "the embedded model": str(Path(skipwise.demo.__file__).parent / "base")}
    for name, model in models.items():
        try:
            theirs = measure_apart("memory", {"model": model}, install(ACCELERATE, plan.folder))["bytes"]
        except SkippedError as error:
            theirs = None
            yield Skipped(part="planning", side=ACCELERATE.shown, reason=str(error))
        measurer = Measurer(model, machine_of("cpu"), Utilisation())
        for window in plan.windows:
            found = measurer.step(FullTuning(), window, checkpointing=False)
            how: dict[str, Any] = {"part": "planning", "case": f"a step of {name}, window {window}"}
            yield Row(metric="GiB", side="measured", values=[found.measured_bytes / GIB], **how)
            predicted = {OURS: found.predicted_bytes, ACCELERATE.shown: theirs}
            for side, size in predicted.items():
                if size is not None:
                    how["different"] = "" if side == OURS else "weights, gradients and optimizer alone"
                    yield Row(metric="GiB", side=side, values=[size / GIB], **how)
                    error = size / found.measured_bytes - 1
                    yield Row(metric="error of the plan, %", side=side, values=[100 * error], **how)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What `accelerate estimate-memory --dtypes float32` says of training with Adam."""
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import calculate_maximum_sizes, estimate_training_usage
    from transformers import AutoConfig, AutoModel

    with init_empty_weights():
        model = AutoModel.from_config(AutoConfig.from_pretrained(question["model"]))
    size, _ = calculate_maximum_sizes(model)
    return {"bytes": max(estimate_training_usage(size, "float32").values())}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))

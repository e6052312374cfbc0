"""One job of a comparison in a process of its own, so that time and peak memory are the job's alone.

    python -m skipwise.compare.worker JOB.json

Trains (or resumes from the last checkpoint), evaluates, and writes the outcome. A failure is an outcome too: the
comparison goes on without this arm.

    job.json        the job, as `compare` wrote it
    model/          output folder of `skipwise.extend`
    results.jsonl   evaluation results
    samples.jsonl   every sample behind them, by which arms are paired
    outcome.json    how the job ended; absent until it has
"""

import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from skipwise.allocator import use_huge_pages
from skipwise.files import replace_file
from skipwise.imports import LinesAboveBars
from skipwise.records.comparison import ArmRun
from skipwise.window import length_label

Failure = Literal["out of memory", "not a number", "error"]

OUTCOME_FILE, RESULTS_FILE, SAMPLES_FILE = "outcome.json", "results.jsonl", "samples.jsonl"
INTERRUPTED = 130
_WATCHED_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(ArmRun):
    """How a job ended; counts are 0 where nothing was trained.

    Attributes:
        step_seconds: of each step, in order.
        validation: perplexity at the target during training: pairs of step and perplexity.
        left_out: names of optional measurements that there was no time for.
    """

    failure: Failure | None = None
    steps: int = 0
    tokens: int = 0
    training_seconds: float = 0.0
    peak_bytes: int = 0
    step_seconds: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    left_out: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None

    def run(self) -> ArmRun:
        """The part of it that is in the record of a comparison."""
        return ArmRun(**{entry.name: getattr(self, entry.name) for entry in fields(ArmRun)})

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        replace_file(folder / OUTCOME_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """How the job of this folder ended; None if it has not."""
        file = folder / OUTCOME_FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def main(job_file: Path) -> int:
    """Runs the job of this file; the exit code is 0 also for a failure, which is in the outcome."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LinesAboveBars()])
    logging.getLogger("skipwise").setLevel(logging.INFO)
    use_huge_pages()
    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder = job_file.parent
    try:
        outcome = _run(job, folder)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:500]
        outcome = Outcome(status="failed", seed=job["seed"], failure=failure_of(error), error=message)
    if outcome is None:
        return INTERRUPTED
    outcome.write(folder)
    return 0


def _end_with_parent() -> None:
    """Kills this process once its parent is gone: a comparison that is gone on with would run the same job twice."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCHED_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def failure_of(error: BaseException) -> Failure:
    """The kind of failure of an exception, by its type and message."""
    from skipwise.train.process import ran_out_of_memory

    words = str(error).lower()
    if ran_out_of_memory(error):
        return "out of memory"
    if any(phrase in words for phrase in ("loss is nan", "loss is inf", "logits are nan", "logits are infinite")):
        return "not a number"
    return "error"


def _run(job: Mapping[str, Any], folder: Path) -> Outcome | None:
    """Trains and evaluates; None if it was stopped on request."""
    from skipwise.config import RunConfig

    config = RunConfig.from_mapping(job["run"])
    if not job["trained"]:
        from skipwise.train.record import versions

        outcome = Outcome(status="done", seed=job["seed"], versions=versions())
    elif (outcome := _train(job, config)) is None:
        return None
    if job["measures_costs"]:
        shutil.rmtree(config.output_folder)
        return outcome
    return replace(outcome, left_out=tuple(_evaluate(job, config, folder)))


def _train(job: Mapping[str, Any], config: Any) -> Outcome | None:
    from skipwise.train import begin_or_go_on

    record = begin_or_go_on(config)
    if record is None:
        return None
    log = record["log"]
    seconds = tuple(entry["step_seconds"] for entry in log if "step_seconds" in entry)
    at_target = f"eval_perplexity_{config.target}"
    return Outcome(
        status="done",
        seed=job["seed"],
        steps=record["steps"],
        tokens=record["steps"] * job["tokens_per_step"],
        training_seconds=round(sum(seconds), 3),
        peak_bytes=record["peak_bytes"],
        step_seconds=seconds,
        validation=tuple((entry["step"], entry[at_target]) for entry in log if at_target in entry),
        versions=record["versions"],
    )


def _evaluate(job: Mapping[str, Any], config: Any, folder: Path) -> list[str]:
    """Runs the evaluation of the job; samples of an interrupted one are reused, by the model's content.

    Returns:
        Names of optional measurements that would not have ended before the job's deadline.
    """
    from skipwise.compare.documents import measured_documents
    from skipwise.compare.untrained import as_measured, pieces_of
    from skipwise.distributed import process_state
    from skipwise.evals import SampleCache, evaluate
    from skipwise.model import load_model, original_window, read_config

    results, samples = folder / RESULTS_FILE, folder / SAMPLES_FILE
    for file in (results, samples):
        file.write_text("", encoding="utf-8")
    left_out: list[str] = []
    if not job["evaluation"]:
        return left_out
    how = {
        "dtype": job["evaluation_dtype"],
        "attention": config.attention,
        "trust_remote_code": config.trust_remote_code,
    }
    base = read_config(config.model, original=config.original, trust_remote_code=config.trust_remote_code)
    window = config.resolve_window(original_window(base))
    if job["interpolated"] and not job["trained"] and job["measured"] != "by_length":
        how |= {"interpolation": config.build_interpolation(), "window": window, "original": config.original}
    model, tokenizer = load_model(config.output_folder if job["trained"] else config.model, **how)
    model.to(process_state().device)  # pyright: ignore[reportArgumentType]
    longest = max(length for measured in job["evaluation"] for length in measured["lengths"])
    store = measured_documents(config, window, job["documents"], tokenizer, min_tokens=longest)
    documents = [store.document(index) for index in range(store.num_documents)]
    for measured in job["evaluation"]:
        if measured.get("optional") and time.time() + measured["seconds"] > (job.get("deadline") or math.inf):
            left_out.append(measured["name"])
            continue
        lengths = ", ".join(map(length_label, measured["lengths"]))
        logging.getLogger("skipwise").info(f"measuring {measured['task']['kind']} at {lengths} tokens")
        for task, own in pieces_of(measured["task"], measured["lengths"], job["measured"]):
            with as_measured(model, job["measured"], own, window, config.build_interpolation()) as network:
                evaluate(
                    network,
                    tokenizer,
                    [task],
                    own,
                    documents,
                    seed=job["evaluation_seed"],
                    cache=SampleCache(folder.parents[len(Path(job["name"]).parts) - 1] / "cache"),
                    details={"compared": job["arm"], "train_seed": job["seed"]},
                    allow_beyond=True,
                    out=results,
                    samples_out=samples,
                )
    return left_out


if __name__ == "__main__":
    _end_with_parent()
    sys.exit(main(Path(sys.argv[1])))

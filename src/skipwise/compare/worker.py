"""One job of a comparison in a process of its own, so that its time and its peak of memory are its own.

    python -m skipwise.compare.worker JOB.json

Reads the job, trains (or goes on from the last checkpoint), evaluates, and writes `outcome.json` beside it; what goes
wrong is written there too, as the comparison goes on without this arm.

    job.json        what to do
    model/          the output folder of `skipwise.extend`
    results.jsonl   evaluation results
    samples.jsonl   every sample behind them, which arms are paired by
    outcome.json    how it ended; its presence says that it did
"""

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from skipwise.allocator import use_huge_pages
from skipwise.files import replace_file

Failure = Literal["out of memory", "not a number", "error"]

OUTCOME_FILE = "outcome.json"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: done or failed.
        failure: what kind of failure; None where there was none.
        error: its message, one line.
        steps: optimizer steps trained.
        tokens: tokens trained.
        training_seconds: within the steps alone: neither data, nor preflight, nor validation.
        peak_bytes: of the whole process when training ended.
        step_seconds: of each step, in order.
        validation: perplexity at the target while it was trained: pairs of step and perplexity.
        versions: of the libraries.
    """

    status: Literal["done", "failed"]
    failure: Failure | None = None
    error: str | None = None
    steps: int = 0
    tokens: int = 0
    training_seconds: float = 0.0
    peak_bytes: int = 0
    step_seconds: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    versions: Mapping[str, str] | None = None

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        replace_file(folder / OUTCOME_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """What a job left; None where it has not ended."""
        path = folder / OUTCOME_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def main(job_file: Path) -> int:
    """Runs the job of this file; returns the exit code: 0 also for a failure that was written down."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
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
        outcome = Outcome(status="failed", failure=failure_of(error), error=" ".join(str(error).split())[:500])
    if outcome is None:
        return INTERRUPTED
    outcome.write(folder)
    return 0


def failure_of(error: BaseException) -> Failure:
    """What kind of failure an exception is, by its type and its words."""
    from skipwise.train.process import ran_out_of_memory

    words = str(error).lower()
    if ran_out_of_memory(error):
        return "out of memory"
    if any(phrase in words for phrase in ("loss is nan", "loss is inf", "logits are nan", "logits are infinite")):
        return "not a number"
    return "error"


def _run(job: Mapping[str, Any], folder: Path) -> Outcome | None:
    """Trains and evaluates; None where it was stopped on request."""
    from skipwise.config import RunConfig

    config = RunConfig.from_mapping(job["run"])
    if job["trained"]:
        outcome = _train(config, job["tokens_per_step"])
        if outcome is None:
            return None
        if job["measures_costs"]:
            shutil.rmtree(config.output_folder)
            return outcome
    else:
        from skipwise.train.record import versions

        outcome = Outcome(status="done", versions=versions())
    _evaluate(job, config, folder)
    return outcome


def _train(config: Any, tokens_per_step: int) -> Outcome | None:
    from skipwise.train import begin_or_go_on

    record = begin_or_go_on(config)
    if record is None:
        return None
    log = record["log"]
    seconds = tuple(entry["step_seconds"] for entry in log if "step_seconds" in entry)
    at_target = f"eval_perplexity_{config.target}"
    return Outcome(
        status="done",
        steps=record["steps"],
        tokens=record["steps"] * tokens_per_step,
        training_seconds=round(sum(seconds), 3),
        peak_bytes=record["peak_bytes"],
        step_seconds=seconds,
        validation=tuple((entry["step"], entry[at_target]) for entry in log if at_target in entry),
        versions=record["versions"],
    )


def _evaluate(job: Mapping[str, Any], config: Any, folder: Path) -> None:
    """Measures what the job asks for; samples of an interrupted evaluation are found again by the model's content."""
    from skipwise.data.corpus import store_corpus
    from skipwise.distributed import process_state
    from skipwise.evals import SampleCache, evaluate
    from skipwise.model import load_model, original_window, read_config
    from skipwise.train.validation import find_held_out_end, validation_lengths

    results, samples = folder / "results.jsonl", folder / "samples.jsonl"
    for file in (results, samples):
        file.write_text("", encoding="utf-8")
    if not job["evaluation"]:
        return
    how = {"dtype": config.dtype, "attention": config.attention, "trust_remote_code": config.trust_remote_code}
    base = read_config(config.model, original=config.original, trust_remote_code=config.trust_remote_code)
    original = original_window(base)
    if job["trained"]:
        source = config.output_folder
    else:
        source = config.model
        if job["interpolated"]:
            how |= {"interpolation": config.build_interpolation(), "window": config.resolve_window(original)}
            how["original"] = config.original
    model, tokenizer = load_model(source, **how)
    model.to(process_state().device)  # pyright: ignore[reportArgumentType]
    longest = max(length for measured in job["evaluation"] for length in measured["lengths"])
    data = config.data.model_copy(update={"source": job["documents"], "min_tokens": None})
    corpus = store_corpus(data, tokenizer)
    end = None
    if job["documents"] == config.data.source and not config.data.streaming:
        # A part of what each arm has left out, and the same for all: no arm must be left more of the document.
        lengths = validation_lengths(config, config.resolve_window(original))
        end = find_held_out_end(corpus, lengths, keep=max(config.target, config.data.min_tokens or 0))
    part = "held_out" if data.held_out else "all"
    store = replace(corpus, held_out_end=end).documents(part, min_tokens=longest)
    documents = [store.document(index) for index in range(store.num_documents)]
    for measured in job["evaluation"]:
        evaluate(
            model,
            tokenizer,
            [measured["task"]],
            measured["lengths"],
            documents,
            seed=job["evaluation_seed"],
            cache=SampleCache(folder.parents[len(Path(job["name"]).parts) - 1] / "cache"),
            details={"compared": job["arm"], "train_seed": job["seed"]},
            allow_beyond=True,
            out=results,
            samples_out=samples,
        )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

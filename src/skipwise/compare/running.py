"""Runs every job of a comparison in a process of its own, and collects what they left."""

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from skipwise.compare.documents import measured_documents
from skipwise.compare.jobs import Job, Planner
from skipwise.compare.results import Results, collect
from skipwise.compare.settings import Comparison
from skipwise.compare.worker import INTERRUPTED, OUTCOME_FILE, Outcome
from skipwise.config import DataConfig, RunConfig
from skipwise.config.reading import parse_yaml, read_settings
from skipwise.data.corpus import look_at
from skipwise.data.documents import Sources
from skipwise.errors import CheckpointError, ConfigError
from skipwise.evals import make_task
from skipwise.files import half_written, replace_file
from skipwise.model import read_config, read_tokenizer
from skipwise.report.quantities import seconds_text
from skipwise.train.process import on_stop_signals
from skipwise.window import parse_length

SETTINGS_FILE = "comparison.yaml"

logger = logging.getLogger("skipwise")


class ComparisonStopped(KeyboardInterrupt):
    """Stopped on request; `resume` goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """How a job begins, if that is decided only when the jobs before it are done.

    Attributes:
        evaluation: tasks with their lengths, as mappings with `task`, `lengths` and, of those that may be left out at a
            deadline, `optional`, `name` and `seconds`.
        steps: of training; None for the comparison's.
        deadline: for optional measurements, as `time.time()`.
    """

    evaluation: Sequence[dict[str, Any]]
    steps: int | None = None
    deadline: float = math.inf


def compare(
    comparison: Comparison,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    command: str = "",
    begin: Callable[[Job], Begin] | None = None,
    beside: Collection[str] = (),
    looked_through: bool = False,
) -> Results:
    """Runs every arm, each in a process of its own, and collects their results.

    Args:
        comparison: what to compare.
        resume: go on with a comparison that was interrupted, or was given more arms, seeds or costs since.
        retry_failed: run failed jobs again.
        command: the command line, for the record.
        begin: decides each job when it begins; by default jobs are as the comparison says.
        beside: names of the caller's own files and folders in the comparison's.
        looked_through: the caller has inspected the documents.

    Returns:
        The results, as they are in the folder's `records.jsonl` and `comparison.json`.

    Raises:
        ConfigError: settings cannot be used, or the folder is taken.
        DataError: documents cannot be read.
        CheckpointError, UnsupportedModelError: the base model cannot be read or extended.
        ComparisonStopped: on Ctrl-C.
    """
    shared = RunConfig.from_mapping(comparison.run)
    base = read_config(shared.model, original=shared.original, trust_remote_code=shared.trust_remote_code)
    planner = Planner(comparison, base)
    jobs = [*planner.arm_jobs(), *planner.cost_jobs()]
    evaluation = _evaluation(comparison, planner)
    folder = Path(comparison.output)
    _check_folder(folder, comparison, resume, beside)
    todo = [(place, job) for place, job in enumerate(jobs, 1) if not _is_done(folder / job.name, retry_failed)]
    if todo and not looked_through:
        _look_through_documents(comparison, planner, jobs, base, evaluation)
    _claim(folder, comparison)
    begun, pace = time.monotonic(), _Pace()
    for number, (place, job) in enumerate(todo):
        left = pace.left([later for _, later in todo[number:]])
        (folder / job.name).mkdir(parents=True, exist_ok=True)
        if job.arm.kind.as_long_as_reference and not job.measures_costs:
            steps = _steps_in_time(job, comparison, planner, folder)
            if steps is None:
                error = "the reference or full length has no training time; see why it failed"
                Outcome(status="failed", seed=job.seed, failure="error", error=error).write(folder / job.name)
                continue
            job = planner.with_steps(job, steps)
        logger.info(f"[{place}/{len(jobs)}] {job.name}: {_doing(job)}{left}")
        how = Begin(evaluation=evaluation) if begin is None else begin(job)
        if how.steps is not None:
            job = planner.with_steps(job, how.steps)
        pace.note(job, _run_told(job, folder, planner, comparison, how))
    return collect(comparison, planner, jobs, folder, seconds=time.monotonic() - begun, command=command)


def _run_told(job: Job, folder: Path, planner: Planner, comparison: Comparison, how: Begin) -> float:
    """Runs a job, logs how it ended, and returns its seconds."""
    begun = time.monotonic()
    outcome = _run(job, folder / job.name, planner, comparison, how)
    took = time.monotonic() - begun
    if outcome.status == "failed":
        logger.warning(f"    failed after {seconds_text(took)}: {outcome.failure}: {outcome.error}")
    else:
        trained = f", of these {seconds_text(outcome.training_seconds)} in {outcome.steps} steps"
        logger.info(f"    done in {seconds_text(took)}{trained if outcome.steps else ''}")
    return took


def _is_done(folder: Path, retry_failed: bool) -> bool:
    outcome = Outcome.read(folder)
    return outcome is not None and not (retry_failed and outcome.status == "failed")


class _Pace:
    """The time that is left, by the jobs of the same kind that are done."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[bool, bool], list[float]] = {}

    def note(self, job: Job, seconds: float) -> None:
        """Adds a job that is done."""
        self._seconds.setdefault(self._kind(job), []).append(seconds)

    def left(self, jobs: Sequence[Job]) -> str:
        """The time of all these jobs in words; nothing before one of each kind was done."""
        if not all(self._kind(job) in self._seconds for job in jobs):
            return ""
        total = sum(fmean(self._seconds[self._kind(job)]) for job in jobs)
        return f"; about {seconds_text(float(f'{total:.2g}'))} left"

    @staticmethod
    def _kind(job: Job) -> tuple[bool, bool]:
        return job.arm.kind.trained, job.measures_costs


def _doing(job: Job) -> str:
    if job.measures_costs:
        return "time a few steps"
    return "train and measure" if job.arm.kind.trained else "measure"


def _look_through_documents(
    comparison: Comparison, planner: Planner, jobs: Sequence[Job], base: Any, evaluation: Sequence[Mapping[str, Any]]
) -> None:
    """Raises for documents that cannot be read or are too short to be measured on, before the first arm is trained."""
    found: dict[str, list[Sources]] = {}
    for job in jobs:
        for data in (job.run.data, _measured(comparison, job)):
            if (asked := _reading(data)) not in found:
                found[asked] = look_at(data)
    longest = max((length for measured in evaluation for length in measured["lengths"]), default=0)
    arms = {repr(job.run.data): job for job in jobs if longest and not job.measures_costs}
    shared, tokenizer = RunConfig.from_mapping(comparison.run), None
    for job in arms.values():
        tokenizer = tokenizer or read_tokenizer(shared.model, base, trust_remote_code=shared.trust_remote_code)
        how: Any = {"min_tokens": longest, "sources": found[_reading(_measured(comparison, job))]}
        measured_documents(job.run, planner.window, _source(comparison, job), tokenizer, **how)


def _source(comparison: Comparison, job: Job) -> str | list[str]:
    """Where the documents come from that a job is measured on."""
    return comparison.evaluation.documents or job.run.data.without_replay().source


def _measured(comparison: Comparison, job: Job) -> DataConfig:
    """How these documents are read."""
    return job.run.data.without_replay().measured_on(_source(comparison, job))


def _reading(data: DataConfig) -> str:
    """The same text for settings by which the same files are read alike."""
    return repr([(own.source, own.field, own.format, own.skip_unreadable) for own in data.entries()])


def _check_folder(folder: Path, comparison: Comparison, resume: bool, beside: Collection[str]) -> None:
    """Raises unless the folder is free, or has the comparison that is resumed, begun with the same settings."""
    file = folder / SETTINGS_FILE
    if resume:
        if not file.is_file():
            raise ConfigError(f"there is no comparison in {str(folder)!r} to continue; start it without --resume")
        begun = Comparison.from_mapping(read_settings(file))
        changed = [name for name in ("run", "evaluation") if getattr(begun, name) != getattr(comparison, name)]
        names = {arm.name for arm in comparison.arms}
        changed += [arm.name for arm in begun.arms if arm.name in names and arm not in comparison.arms]
        if changed:
            raise ConfigError(
                f"the comparison in {str(folder)!r} was begun with other settings of {', '.join(changed)}; resume it "
                "with its own, or begin another with --output",
                page="run-changed",
            )
    elif folder.is_dir() and {
        found for found in set(folder.iterdir()) - {*half_written(folder, [SETTINGS_FILE])} if found.name not in beside
    }:
        cure = "; continue with --resume, or give" if file.is_file() else ", and holds no comparison to continue; give"
        raise ConfigError(f"folder {str(folder)!r} is not empty{cure} another with --output", page="output-taken")


def _claim(folder: Path, comparison: Comparison) -> None:
    """Takes the folder for this comparison."""
    file = folder / SETTINGS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in half_written(folder, [SETTINGS_FILE]):
            left.unlink(missing_ok=True)
        replace_file(file, comparison.to_yaml())
    except OSError as error:
        raise CheckpointError(
            f"folder {str(folder)!r} cannot be written: {error.strerror}", page="cannot-write"
        ) from error


def _evaluation(comparison: Comparison, planner: Planner) -> list[dict[str, Any]]:
    """Tasks with their lengths, checked."""
    asked, window = comparison.evaluation, planner.window
    doublings = [window.original * 2**power for power in range((window.target // window.original).bit_length())]
    lengths = sorted(asked.lengths or {*doublings, window.target})
    tasks = [dict(task) if isinstance(task, dict) else {"kind": task} for task in asked.tasks]
    tasks += [{"kind": "suite", "folder": suite} for suite in asked.suites]
    if asked.regression:
        base = {"kind": "regression", "base": comparison.run["model"], "untrained": False}
        tasks.append({**base, "num_documents": 16, "lengths": [window.original]})
    measured = []
    for task in tasks:
        given = task.pop("lengths", None)
        made = make_task(task)
        given = [given] if isinstance(given, str | int) else given
        own = [parse_length(length) for length in given or getattr(made, "lengths", lengths)]
        if not own or max(own) > window.target:
            raise ConfigError(
                f"task {task['kind']} of 'evaluation' has the lengths {own}; give some, up to the target "
                f"{window.target}"
            )
        measured.append({"task": task, "lengths": own})
    return measured


def _steps_in_time(job: Job, comparison: Comparison, planner: Planner, folder: Path) -> int | None:
    """Steps of full length that fit into the reference's training time, at least one; None if a time is unknown.

    The time of a step of full length is that of an arm that trains at full length on equal tokens. Without one, a
    window is timed.
    """
    reference = Outcome.read(folder / planner.name_of(comparison.reference, job.seed))
    if reference is None or reference.status == "failed" or not reference.steps:
        return None
    like = next((arm for arm in comparison.arms if arm.kind.whole_target and not arm.kind.as_long_as_reference), None)
    if like is not None:
        outcome, windows = Outcome.read(folder / planner.name_of(like.name, job.seed)), 1
    else:
        timing = planner.timing_job(job.arm, planner.window.target, steps=1)
        windows = planner.step_tokens // planner.window.target
        outcome = Outcome.read(folder / timing.name)
        if outcome is None:
            (folder / timing.name).mkdir(parents=True, exist_ok=True)
            logger.info(f"    timing a window of {planner.window.target} tokens")
            outcome = _run(timing, folder / timing.name, planner, comparison, Begin(evaluation=[]))
    if outcome is None or outcome.status == "failed" or not outcome.steps:
        return None
    of_step = windows * (outcome.step_seconds[-1] if like is None else outcome.training_seconds / outcome.steps)
    return max(1, round(reference.training_seconds / of_step))


def _run(job: Job, place: Path, planner: Planner, comparison: Comparison, how: Begin) -> Outcome:
    """Runs a job in a process of its own and waits for it."""
    (place / OUTCOME_FILE).unlink(missing_ok=True)
    kind = job.arm.kind
    # Comparing the base with itself would tell nothing.
    is_base = not kind.interpolated and kind.measured == "plain"
    of_arm = [measured for measured in how.evaluation if measured["task"]["kind"] != "regression" or not is_base]
    one_window = job.run.resolve_window(planner.window.original).train
    text = {
        "name": job.name,
        "arm": job.arm.name,
        "seed": job.seed,
        "trained": kind.trained,
        "interpolated": kind.interpolated,
        "measured": kind.measured,
        "measures_costs": job.measures_costs,
        "tokens_per_step": one_window if job.measures_costs else planner.step_tokens,
        "run": parse_yaml(job.run.to_yaml()),
        "evaluation": of_arm,
        "deadline": None if math.isinf(how.deadline) else how.deadline,
        "evaluation_seed": comparison.evaluation.seed,
        "evaluation_dtype": comparison.evaluation.dtype or job.run.dtype,
        "documents": _source(comparison, job),
    }
    job_file = place / "job.json"
    job_file.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    code = _run_process(job_file)
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise ComparisonStopped
    outcome = Outcome.read(place)
    if outcome is None:
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        outcome = Outcome(
            status="failed",
            seed=job.seed,
            failure="out of memory" if killed else "error",
            error=f"its process was killed{', as the system does when memory runs out' if killed else ''} ({code}); "
            f"see {place / 'log.txt'}",
        )
        outcome.write(place)
    return outcome


def _run_process(job_file: Path) -> int:
    """Runs the worker on a job, with its output in the job's log; returns the exit code."""
    command = [sys.executable, "-m", "skipwise.compare.worker", str(job_file)]
    with (job_file.parent / "log.txt").open("a", encoding="utf-8") as log:
        # Progress bars are for a terminal.
        shown = None if sys.stderr.isatty() else log
        # In a session of its own, so that Ctrl-C reaches it only once, from here; a second would end it unsaved.
        process = subprocess.Popen(command, stdout=log, stderr=shown, start_new_session=True)
        try:
            # Also where the shell has Ctrl-C ignored, as for background processes.
            with on_stop_signals(_interrupt):
                return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise ComparisonStopped from None


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

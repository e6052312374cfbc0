"""`pilot()`: the whole proof of concept within a given time."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from skipwise.compare import compare
from skipwise.errors import CheckpointError, DataError
from skipwise.evals.suite import build_suite_of
from skipwise.pilot.arms import NAMES, Pacer, comparison_of
from skipwise.pilot.asked import PilotConfig
from skipwise.pilot.measures import LEAST_TRIALS, Measures
from skipwise.pilot.preparing import Prepared, Tell, prepare, to_keep, windows_at_a_time
from skipwise.pilot.result import PilotResult, finish, read_result
from skipwise.pilot.schedule import (
    Schedule,
    TooShortError,
    schedule_within,
)
from skipwise.pilot.state import BESIDE, SUITES, PilotFolder, check_folder
from skipwise.pilot.told import not_told, schedule_table, small_told, too_short
from skipwise.window import length_label

logger = logging.getLogger("skipwise")

_ENOUGH_TEXTS = 16


class PilotStopped(KeyboardInterrupt):
    """Stopped on request; the same pilot goes on from there."""


def pilot(
    config: PilotConfig,
    *,
    only_schedule: bool = False,
    began: float | None = None,
    command: str = "",
    tell: Tell = lambda line: print(line, file=sys.stderr, flush=True),
) -> PilotResult:
    """Runs a pilot, or continues one that was interrupted in its folder.

    Args:
        config: settings of the pilot.
        only_schedule: stop once it is known how the time would be split; no folder is written.
        began: start of the time limit, as `time.time()`; by default now.
        command: the command line, for the record.
        tell: called with each line of progress, and with the schedule.

    Raises:
        TooShortError: the time is too short; the message says how much is needed.
        ConfigError: settings that cannot be used, or a folder that is taken.
        DataError: documents that cannot be read, or none as long as the target.
        CheckpointError, UnsupportedModelError: the model cannot be read or extended, the preflight or an arm failed.
        PilotStopped: on Ctrl-C.
    """
    folder = PilotFolder(config.output, time.time() if began is None else began)
    if only_schedule:
        check_folder(config.output, config.asked())
    else:
        folder.claim(config.asked())
    kept = folder.kept
    try:
        if kept.get("finished"):
            tell(f"the pilot in {config.output} is complete; begin another with --output")
            return read_result(config.output, _schedule_of(kept["schedule"]))
        prepared = prepare(config, tell, kept)
        schedule = _schedule_of(kept["schedule"]) if "schedule" in kept else _schedule(config, folder, prepared)
        if schedule.small:
            tell(small_told(schedule, prepared.window.target))
        tell(schedule_table(schedule, prepared.wanted))
        if only_schedule:
            return PilotResult(folder=config.output, schedule=schedule)
        folder.keep(schedule=asdict(schedule), **to_keep(prepared))
        schedule = _make_questions(folder.path, prepared, schedule, tell)
        folder.keep(schedule=asdict(schedule))
        pacer = Pacer(
            folder=folder,
            schedule=schedule,
            wanted=replace(prepared.wanted.only(schedule.measures.questions), small=schedule.small),
            costs=prepared.costs,
            training=prepared.training(schedule.small),
            base=config.run.model,
            tell=tell,
        )
        _compare(config, prepared, schedule, pacer, command)
        return finish(config, prepared, schedule, pacer, command)
    except KeyboardInterrupt as stop:
        raise PilotStopped from stop


def _schedule(config: PilotConfig, folder: PilotFolder, prepared: Prepared) -> Schedule:
    """Splits the time; if it is too short, the error says what it would do for."""
    used = folder.used
    try:
        found = schedule_within(config.seconds, used, prepared.wanted, prepared.costs, prepared.training)
    except TooShortError:
        raise TooShortError(too_short(config.seconds, used, prepared)) from None
    left_out = [*not_told(found, prepared), *prepared.held_out.impossible, *found.left_out]
    if (few := prepared.held_out.long) < _ENOUGH_TEXTS and found.measures.texts == few:
        are = "text is" if few == 1 else "texts are"
        left_out.append(f"Only {few} held-out {are} as long as the target, so perplexity is of no more.")
    return replace(found, left_out=left_out)


def _schedule_of(kept: Any) -> Schedule:
    """The schedule that was decided, from what JSON made of it."""
    measures = kept["measures"]
    questions = {kind: tuple(lengths) for kind, lengths in measures["questions"].items()}
    lengths = {name: tuple(measures[name]) for name in ("perplexity", "passkeys", "serving")}
    return Schedule(**{**kept, "measures": Measures(**{**measures, "questions": questions, **lengths})})


def _make_questions(folder: Path, prepared: Prepared, schedule: Schedule, tell: Tell) -> Schedule:
    """Makes a suite for each kind of question, those that are not there yet; the schedule without those that fail."""
    for kind, lengths in schedule.measures.questions.items():
        place, name = folder / SUITES / kind, kind.replace("_", " ")
        if place.exists():
            continue
        at = ", ".join(map(length_label, lengths))
        tell(f"making {schedule.measures.trials} questions of the kind {name} at each of {at} tokens")
        place.parent.mkdir(exist_ok=True)
        if not _make_suite(place, kind, lengths, prepared, schedule.measures.trials):
            said = f"Questions of the kind {name} were left out, as these documents do not have {LEAST_TRIALS} of them."
            tell(said)
            schedule = replace(
                schedule,
                measures=prepared.wanted.without(schedule.measures, kind),
                left_out=[*schedule.left_out, said],
            )
    return schedule


def _make_suite(place: Path, kind: str, lengths: Sequence[int], prepared: Prepared, number: int) -> bool:
    """Makes so many questions of a kind, else the least; False if the documents have not even these."""
    for questions in dict.fromkeys((number, min(number, LEAST_TRIALS))):
        with suppress(DataError):
            build_suite_of(
                lambda: prepared.held_out.collection,
                prepared.checked.tokenizer,
                place,
                lengths=lengths,
                num_items=questions,
                kinds=[kind],
                seed=prepared.run.seed,
                tokenizer_name=Path(prepared.run.model).name,
                progress=False,
            )
            return True
    return False


def _compare(config: PilotConfig, prepared: Prepared, schedule: Schedule, pacer: Pacer, command: str) -> None:
    """Runs the arms, or those that are left.

    Raises:
        CheckpointError: one failed.
    """
    window = prepared.trained_window(schedule.small)
    at_a_time = windows_at_a_time(window.train, schedule.batch)
    training = {
        "learning_rate": prepared.learning_rate,
        "max_steps": schedule.steps,
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": schedule.batch // at_a_time,
    }
    wanted = replace(prepared.wanted, small=schedule.small)
    comparison = comparison_of(
        config.run.given_settings(),
        prepared.run,
        window,
        json.loads(json.dumps(training)),
        config.output,
        validated=(wanted.short, wanted.validated),
    )
    begun = (config.output / "comparison.yaml").is_file()
    how = {"resume": begun, "retry_failed": begun, "command": command, "looked_through": True}
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        results = compare(comparison, begin=pacer.begin, beside=BESIDE, **how)
    finally:
        logger.setLevel(level)
    for name in results.failed:
        error = next(run["error"] for run in results.about["arms"][name]["runs"] if run["status"] == "failed")
        raise CheckpointError(
            f"the arm {NAMES[name]} failed: {error}; the same command tries it again, and its log is in "
            f"{str(config.output / 'arms' / name)!r}"
        )

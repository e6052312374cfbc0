"""`pilot()`: the whole proof of concept within a given time, and its page."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipwise.compare import compare
from skipwise.compare.worker import Outcome
from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved, resolve
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.corpus import StreamedCorpus, open_corpus
from skipwise.errors import ConfigError
from skipwise.evals.suite import SuiteFolder, build_suite_of
from skipwise.files import replace_file
from skipwise.memory import prefill_flops, training_flops
from skipwise.pilot.arms import NAMES, RECIPE, Pacer, comparison_of, minutes
from skipwise.pilot.asked import PilotConfig
from skipwise.pilot.documents import HeldOut, look_at_held_out
from skipwise.pilot.full_run import full_job, full_run_here, full_runs
from skipwise.pilot.measuring import Measured, measure
from skipwise.pilot.schedule import (
    LEAST_BATCH,
    LEAST_TRIALS,
    Costs,
    Measures,
    Schedule,
    TooShortError,
    Training,
    Wanted,
    duration_label,
    least_seconds,
    longest_target,
    make_schedule,
)
from skipwise.pilot.state import BESIDE, SUITES, PilotFolder, check_folder
from skipwise.plan.machines import PRICES_AS_OF
from skipwise.plan.shape import ModelShape, model_shape
from skipwise.records.pilot import PILOT_FILE, FullRun, Pilot
from skipwise.records.verdict import refused_mask, require_healthy
from skipwise.report.evidence import Evidence
from skipwise.report.reading import read_evidence
from skipwise.report.report import Report
from skipwise.train.arguments import CHECKPOINTING, training_settings
from skipwise.train.checks import CheckedRun, check_run
from skipwise.train.layout import Layout
from skipwise.train.outlook import look_ahead
from skipwise.window import Window, length_label

logger = logging.getLogger("skipwise")

PAGE = "report.html"
# The paper's rate is of a model of this width; the best rate of Adam falls as width grows (muP, arXiv 2203.03466).
_PAPERS_WIDTH = 4096
# Tokens trained at a time on a CPU, where more is no faster, and on an accelerator.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 4096, 16384
_LONGEST_SHARE = 0.02

Tell = Callable[[str], None]


class PilotStopped(KeyboardInterrupt):
    """Stopped on request; the same pilot goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotResult:
    """What a pilot left.

    Attributes:
        folder: of everything.
        schedule: how the time was split.
        record: what is in `pilot.json`; None if only the schedule was asked for.
        report: the page's content; None likewise.
    """

    folder: Path
    schedule: Schedule
    record: Pilot | None = None
    report: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        told: dict[str, Any] = {"folder": str(self.folder), "schedule": _json(asdict(self.schedule))}
        if self.record is not None and self.report is not None:
            told |= {"page": str(self.folder / PAGE), "pilot": _json(asdict(self.record))}
            decision = getattr(self.report, "decision", None)
            told["decision"] = None if decision is None else decision.to_json()
            told["verdict"] = list(self.report.verdict)
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What is known before the long part."""

    checked: CheckedRun
    resolved: Resolved
    window: Window
    shape: ModelShape
    held_out: HeldOut
    measured: Measured
    planned: Sequence[FullRun]
    training: dict[str, Any]

    @property
    def run(self) -> RunConfig:
        """The full run."""
        return self.resolved.config

    @property
    def wanted(self) -> Wanted:
        """What could be measured."""
        found = self.held_out
        return Wanted(
            original=self.window.original, target=self.window.target, texts=found.long, questions=found.questions
        )

    @property
    def costs(self) -> Costs:
        """What that takes here."""
        counts, layers = self.shape.counts, self.shape.layers
        again = bool(training_settings(self.run)[CHECKPOINTING])
        return Costs(
            passes=self.measured.passes,
            pass_work=lambda tokens: prefill_flops(counts, layers, tokens),
            token=self.measured.token,
            windows=self.measured.windows,
            window_work=lambda tokens: training_flops(counts, layers, tokens, checkpointing=again),
            start=self.measured.start,
            preflight=self.measured.preflight,
            question=self.held_out.seconds,
        )

    @property
    def steps(self) -> Training:
        """What training takes."""
        job = full_job(self.run)
        given = {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(self.run.training)
        halves = [job.global_batch >> power for power in range(job.global_batch.bit_length())]
        batches = [batch for batch in halves if batch >= LEAST_BATCH] or [job.global_batch]
        seconds_of = training_seconds(self.run, self.window, self.costs)
        return Training(seconds_of=seconds_of, most_steps=job.steps, batches=batches[:1] if given else batches)


def training_seconds(run: RunConfig, window: Window, costs: Costs) -> Callable[[int, int], float]:
    """Seconds of a number of steps of a number of windows, as `train` lays them out."""

    def seconds(steps: int, batch: int) -> float:
        stages = run_stages(run, window, steps)
        short = short_stage(run, stages)
        layout = Layout(
            stages=[(stage.begin, stage.window.train) for stage in stages],
            num_steps=steps,
            window_tokens=window.train,
            items_per_step=batch,
            items_at_a_time=windows_at_a_time(window.train, batch),
            keep_tokens=run.keep_tokens,
            short_tokens=short and short.window.train,
            short_share=run.short_share,
        )
        return sum((end - first) * costs.window(layout.tokens_of(stage)) for stage, first, end in layout.stretches())

    return seconds


def windows_at_a_time(tokens: int, batch: int) -> int:
    """Windows in a micro-batch: a power of two that divides the batch."""
    most = (_ACCELERATOR_TOKENS if torch.accelerator.is_available() else _CPU_TOKENS) // tokens
    found = 1
    while found * 2 <= most and batch % (found * 2) == 0:
        found *= 2
    return found


def learning_rate(run: RunConfig, width: int) -> float:
    """The run's own rate; else the paper's, scaled to the width of the model."""
    rate = training_settings(run)["learning_rate"]
    return rate if "learning_rate" in run.training else float(f"{rate * max(1.0, _PAPERS_WIDTH / width):.2g}")


def pilot(
    config: PilotConfig,
    *,
    only_schedule: bool = False,
    began: float | None = None,
    command: str = "",
    tell: Tell = lambda line: print(line, file=sys.stderr, flush=True),
) -> PilotResult:
    """Runs a pilot, or goes on with one that was interrupted in its folder.

    Args:
        config: what is asked for.
        only_schedule: stop once it is known how the time would be split; nothing is written.
        began: when it began, as `time.time()`; by default now.
        command: the command line that goes on with it, for people.
        tell: called with what it does next, and the schedule.

    Raises:
        TooShortError: the time is too short; the message has the least.
        ConfigError: settings that cannot be used, or a folder that is taken.
        DataError: documents that cannot be read, or none as long as the target.
        CheckpointError, UnsupportedModelError: the model cannot be read or extended, or the preflight failed.
        PilotStopped: on Ctrl-C.
    """
    folder = PilotFolder(config.output, time.time() if began is None else began)
    check_folder(config.output, config.asked())
    known = folder.claim(config.asked()) if not only_schedule else False
    try:
        prepared = _prepare(config, tell, folder.kept.get("measured") if known else None)
        schedule = _schedule_of(folder.kept["schedule"]) if known else _schedule(config, folder, prepared)
        tell(_table(schedule, prepared.wanted))
        if only_schedule:
            return PilotResult(folder=config.output, schedule=schedule)
        folder.keep(schedule=_json(asdict(schedule)), measured=_json(asdict(prepared.measured)))
        _build_questions(folder.path, prepared, schedule, tell)
        pacer = Pacer(
            folder=folder,
            schedule=schedule,
            wanted=prepared.wanted,
            costs=prepared.costs,
            training=prepared.steps,
            base=config.run.model,
            tell=tell,
        )
        _compare(config, prepared, schedule, pacer, command)
        return _finish(config, prepared, schedule, pacer, command)
    except KeyboardInterrupt as stop:
        raise PilotStopped from stop


def _prepare(config: PilotConfig, tell: Tell, measured: Any = None) -> _Prepared:
    """Documents, the full run on named machines, preflight and measurements."""
    run = config.run
    if run.data.streaming or run.parallel.context > 1:
        raise ConfigError(
            "a pilot reads its documents whole and trains in one process; leave data.streaming and "
            "parallel.context to the full run"
        )
    tell(f"reading {_documents_label(run)}")
    checked = check_run(run)
    corpus = open_corpus(run.data, checked.tokenizer, checked.sources, progress=sys.stderr.isatty())
    assert not isinstance(corpus, StreamedCorpus)
    window = checked.facts.window
    outlook = look_ahead(run, checked, corpus)
    resolved = Resolved(config=outlook.config, reasons=outlook.reasons, warnings=outlook.warnings)
    doublings = Wanted(original=window.original, target=window.target, texts=0, questions={}).lengths
    held_out = look_at_held_out(resolved.config, window, checked.tokenizer, checked.sources, doublings)
    tell(held_out.told)
    for reason in resolved.reasons:
        tell(reason)
    shape = model_shape(run.model, original=run.original, trust_remote_code=run.trust_remote_code)
    training = _training(resolved.config, shape)
    if measured is None:
        tell(f"probing and timing {run.model}: passes up to {length_label(window.target)}, training steps")
        found = _measure(config, resolved.config, window, doublings)
        if (refused := refused_mask(found.verdicts)) is not None:
            facts = replace(checked.facts, refuses_mask=refused)
            resolved = resolve(run, facts)
            tell(f"without diluted attention: {resolved.reasons[0]}")
            found = _measure(config, resolved.config, window, doublings)
        require_healthy(found.verdicts)
        tell(f"preflight: {len(found.verdicts)} probes passed")
    else:
        found = _measured_of(measured)
    planned = full_runs(shape, resolved.config, window, config.machines, config.price)
    return _Prepared(
        checked=checked,
        resolved=resolved,
        window=window,
        shape=shape,
        held_out=held_out,
        measured=found,
        planned=planned,
        training=training,
    )


def _documents_label(run: RunConfig) -> str:
    source = run.data.source
    return source if isinstance(source, str) else ", ".join(map(str, source))


def _measure(config: PilotConfig, run: RunConfig, window: Window, lengths: Sequence[int]) -> Measured:
    stages = sorted({stage.window.train for stage in run_stages(run, window, full_job(run).steps)})
    windows = [(tokens, min(LEAST_BATCH, windows_at_a_time(tokens, LEAST_BATCH))) for tokens in stages]
    return measure(run, window, lengths, [windows[0], *windows[:0:-1][:1]], _LONGEST_SHARE * config.seconds)


def _measured_of(kept: Any) -> Measured:
    by_tokens = {name: {int(tokens): value for tokens, value in kept[name].items()} for name in ("passes", "windows")}
    return Measured(**{**kept, **by_tokens, "verdicts": ()})


def _training(run: RunConfig, shape: ModelShape) -> dict[str, Any]:
    """Settings of `training` that a pilot decides, besides the steps and windows a step."""
    return {"learning_rate": learning_rate(run, shape.text.hidden_size)}


def _schedule(config: PilotConfig, folder: PilotFolder, prepared: _Prepared) -> Schedule:
    """Splits the time; if it is too short, the error says what it would do for."""
    wanted, costs, training, used = prepared.wanted, prepared.costs, prepared.steps, folder.used
    try:
        found = make_schedule(config.seconds, used, wanted, costs, training)
    except TooShortError:
        target, given = length_label(wanted.target), duration_label(config.seconds)
        least = duration_label(least_seconds(used, wanted, costs, training))
        one = minutes(costs.one_pass(wanted.target))
        shorter = longest_target(config.seconds, used, wanted, costs, training)
        instead = (
            "no shorter target fits into it either"
            if shorter is None
            else (f"{given} would do for --target {length_label(shorter)}")
        )
        raise TooShortError(
            f"--time {given} is too short for {target}: the least is --time {least}, as one pass over {target} tokens "
            f"takes {one} here and {LEAST_TRIALS} questions to each of three models need {3 * LEAST_TRIALS} of them, "
            f"and a training window {costs.window(prepared.window.train):.2g} s; {instead}"
        ) from None
    left_out = [*prepared.held_out.impossible, *found.left_out]
    if (few := prepared.held_out.long) < 16:
        are = "text is" if few == 1 else "texts are"
        left_out.append(f"Only {few} held-out {are} as long as the target, so perplexity is of no more.")
    return replace(found, left_out=left_out)


def _schedule_of(kept: Any) -> Schedule:
    """The schedule that was decided, from its JSON."""
    measures = kept["measures"]
    questions = {kind: tuple(lengths) for kind, lengths in measures["questions"].items()}
    lengths = {name: tuple(measures[name]) for name in ("perplexity", "passkeys", "serving")}
    return Schedule(**{**kept, "measures": Measures(texts=measures["texts"], questions=questions, **lengths)})


def _table(schedule: Schedule, wanted: Wanted) -> str:
    lines = [
        f"how {duration_label(schedule.seconds_given)} are split, from {length_label(wanted.original)} to "
        f"{length_label(wanted.target)} tokens:"
    ]
    for name, seconds, what in schedule.rows:
        lines.append(f"  {name:<32} {minutes(seconds):>7}  {what}".rstrip())
    lines += [f"  left out: {sentence}" for sentence in schedule.left_out]
    return "\n".join(lines)


def _build_questions(folder: Path, prepared: _Prepared, schedule: Schedule, tell: Tell) -> None:
    """Makes a suite for each kind of question, those that are not there yet."""
    for kind, lengths in schedule.measures.questions.items():
        place = folder / SUITES / kind
        if place.exists() and SuiteFolder(place).lengths:
            continue
        tell(
            f"making {LEAST_TRIALS} questions each of the kind {kind.replace('_', ' ')} at "
            f"{', '.join(map(length_label, lengths))}"
        )
        place.parent.mkdir(exist_ok=True)
        build_suite_of(
            lambda: prepared.held_out.collection,
            prepared.checked.tokenizer,
            place,
            lengths=lengths,
            num_items=LEAST_TRIALS,
            kinds=[kind],
            seed=prepared.run.seed,
            tokenizer_name=Path(prepared.run.model).name,
            progress=False,
        )


def _compare(config: PilotConfig, prepared: _Prepared, schedule: Schedule, pacer: Pacer, command: str) -> None:
    at_a_time = windows_at_a_time(prepared.window.train, schedule.batch)
    training = {
        **prepared.training,
        "max_steps": schedule.steps,
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": schedule.batch // at_a_time,
    }
    tree = config.run.given_settings()
    comparison = comparison_of(tree, prepared.run, prepared.window, training, config.output)
    begun = (config.output / "comparison.yaml").is_file()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        results = compare(
            comparison,
            resume=begun,
            retry_failed=begun,
            command=command,
            begin=pacer.begin,
            beside=BESIDE,
            looked_through=True,
        )
    finally:
        logger.setLevel(level)
    if failed := results.failed:
        runs = results.about["arms"][failed[0]]["runs"]
        error = next(run["error"] for run in runs if run["status"] == "failed")
        raise ConfigError(
            f"the arm {NAMES[failed[0]]} failed: {error}; the same command tries it again, and its log is below "
            f"{str(config.output / 'arms')!r}"
        )


def _finish(config: PilotConfig, prepared: _Prepared, schedule: Schedule, pacer: Pacer, command: str) -> PilotResult:
    """The full run, `pilot.json` and the page."""
    folder, run, job = pacer.folder, prepared.run, full_job(prepared.run)
    outcome = Outcome.read(config.output / "arms" / RECIPE / f"seed-{run.seed}")
    assert outcome is not None
    here = full_run_here(
        _machine_here(), job, outcome.steps, schedule.batch, outcome.training_seconds, outcome.peak_bytes
    )
    late = [f"{name[:1].upper()}{name[1:]} was left out, as what came before took longer." for name in pacer.left_out()]
    priced = "given" if config.price is not None else f"assumed, typical of {PRICES_AS_OF}, in dollars"
    record = Pilot(
        model=run.model,
        target_tokens=prepared.window.target,
        original_tokens=prepared.window.original,
        seconds_given=schedule.seconds_given,
        seconds_used=round(folder.used, 1),
        steps=outcome.steps,
        full_steps=job.steps,
        left_out=[*schedule.left_out, *late],
        full_runs=[here, *prepared.planned],
        next_command=next_command(config),
        made={
            "command": command,
            "schedule": [list(row) for row in schedule.rows],
            "windows_per_step": schedule.batch,
            "full_windows_per_step": job.global_batch,
            "learning_rate": prepared.training["learning_rate"],
            "recipe": run.recipe,
            "texts": prepared.held_out.told,
            "prices": priced,
            "machine": _machine_here(),
        },
    )
    replace_file(config.output / PILOT_FILE, json.dumps(_json(asdict(record)), indent=2) + "\n")
    report = Report.of(_evidence(config.output))
    report.write_page(config.output / PAGE)
    folder.keep(finished=True)
    return PilotResult(folder=config.output, schedule=schedule, record=record, report=report)


def _evidence(folder: Path) -> Evidence:
    return read_evidence([str(folder)])


def next_command(config: PilotConfig) -> str:
    """The full run as a command."""
    run, words = config.run, ["skipwise", "extend", config.run.model, "--target", length_label(config.run.target)]
    source = run.data.source
    for one in [source] if isinstance(source, str) else source:
        words += ["--data", str(one)]
    return shlex.join([*words, *_assignments(run)])


def _assignments(run: RunConfig) -> list[str]:
    """`--set` for everything else that was given."""
    words = []
    for name, value in run.given_settings().items():
        if name in ("model", "target", "output"):
            continue
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for inner, setting in entries:
            if (name, inner) == ("data", "source"):
                continue
            path = f"{name}.{inner}" if inner else name
            words += ["--set", f"{path}={json.dumps(setting, default=str)}"]
    return words


def _machine_here() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from skipwise.plan.machines import this_cpu

    return f"this machine ({this_cpu().name})"


def _json(value: Any) -> Any:
    """As JSON reads it again; keys that are numbers become text, and infinities none."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)

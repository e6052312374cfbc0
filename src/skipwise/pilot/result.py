"""What a pilot leaves: the full run scaled from it, `pilot.json`, and the page."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from skipwise.compare.worker import Outcome
from skipwise.config import RunConfig
from skipwise.files import replace_file
from skipwise.pilot.arms import EXTENDED, Pacer
from skipwise.pilot.asked import PilotConfig
from skipwise.pilot.full_run import full_job, full_run_here
from skipwise.pilot.preparing import Prepared
from skipwise.pilot.schedule import Schedule
from skipwise.plan.machines import PRICES_AS_OF, this_cpu
from skipwise.records.pilot import PILOT_FILE, Pilot
from skipwise.report.decision import Decision
from skipwise.report.reading import read_evidence, read_pilot
from skipwise.report.report import Report
from skipwise.window import length_label

PAGE = "report.html"


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

    @property
    def decision(self) -> Decision | None:
        """The decision on the page; None without one."""
        return self.report.decision if self.report else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        told: dict[str, Any] = {"folder": str(self.folder), "schedule": asdict(self.schedule)}
        if self.record is not None and self.report is not None:
            decided = None if self.decision is None else self.decision.to_json()
            told |= {"page": str(self.folder / PAGE), "decision": decided, "verdict": list(self.report.verdict)}
            told["pilot"] = asdict(self.record)
        return told


def finish(config: PilotConfig, prepared: Prepared, schedule: Schedule, pacer: Pacer, command: str) -> PilotResult:
    """Writes `pilot.json` and the page, once all arms are done."""
    run, job, folder = prepared.run, full_job(prepared.run), pacer.folder
    outcome = Outcome.read(config.output / "arms" / EXTENDED / f"seed-{run.seed}")
    assert outcome is not None
    costs, window = prepared.costs, prepared.trained_window(schedule.small).train
    # A small pilot may have trained shorter windows than the full run has.
    longer = costs.window(prepared.window.train) / costs.window(window)
    trained = outcome.steps, schedule.batch, longer * outcome.training_seconds
    # The price given is of an accelerator.
    price = config.price if torch.cuda.is_available() else None
    here = full_run_here(_machine_here(), job, *trained, outcome.peak_bytes, price)
    late = [f"{name[:1].upper()}{name[1:]} was left out, as what came before took longer." for name in pacer.left_out()]
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
        next_command=next_command(config, prepared.learning_rate),
        seconds_to_decide=schedule.to_decide,
        made={
            "command": command,
            "machine": _machine_here(),
            "schedule": [list(row) for row in schedule.rows],
            "windows_per_step": schedule.batch,
            "full_windows_per_step": job.global_batch,
            "learning_rate": prepared.learning_rate,
            "recipe": run.recipe,
            "held_out": prepared.held_out.told,
            "prices": "given" if config.price is not None else f"assumed: US dollars, typical of {PRICES_AS_OF}",
        },
    )
    replace_file(config.output / PILOT_FILE, json.dumps(asdict(record), indent=2) + "\n")
    result = read_result(config.output, schedule)
    folder.keep(finished=True)
    return result


def read_result(folder: Path, schedule: Schedule) -> PilotResult:
    """Writes the page of a finished pilot, and returns what it left."""
    report = Report.of(read_evidence([str(folder)]))
    report.write_page(folder / PAGE)
    return PilotResult(folder=folder, schedule=schedule, record=read_pilot(folder), report=report)


def next_command(config: PilotConfig, learning_rate: float) -> str:
    """The full run as a command, with the pilot's learning rate."""
    run = config.run
    words = ["skipwise", "extend", run.model, "--target", length_label(run.target)]
    source = run.data.source
    # A mixture names its sources itself.
    for one in () if run.data.mixture else [source] if isinstance(source, str) else source:
        words += ["--data", str(one)]
    return shlex.join([*words, *_assignments(run), "--set", f"training.learning_rate={learning_rate:g}"])


def _assignments(run: RunConfig) -> list[str]:
    """`--set` for everything else that was given."""
    words = []
    for name, value in run.given_settings().items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for inner, setting in entries:
            path = f"{name}.{inner}" if inner else name
            if path not in ("model", "target", "output", "data.source", "training.learning_rate"):
                words += ["--set", f"{path}={json.dumps(setting, default=str)}"]
    return words


def _machine_here() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"this machine ({this_cpu().name})"

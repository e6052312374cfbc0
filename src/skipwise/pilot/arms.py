"""The arms of a pilot: a comparison of which each arm is decided when it begins."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.compare import Begin, Comparison
from skipwise.compare.jobs import Job
from skipwise.compare.worker import Outcome
from skipwise.config import RunConfig
from skipwise.config.reading import merge_settings
from skipwise.pilot.measures import Costs, Part, Wanted
from skipwise.pilot.schedule import RESERVE, Schedule, Training, fixed_seconds, minutes
from skipwise.pilot.state import SUITES, PilotFolder
from skipwise.window import Window

BASE, UNTRAINED, EXTENDED = "base", "interpolation-only", "extended"
NAMES = {BASE: "base", UNTRAINED: "interpolation only", EXTENDED: "extended"}
# A part that is measured on so many arms is measured on these.
_ARMS = {BASE: 3, UNTRAINED: 2, EXTENDED: 1}
# What is measured on few samples may seem quicker than what comes after is.
_FASTEST = 0.5
# Part of the reserve that optional measurements may use.
_LATE_SHARE = 0.5


def comparison_of(
    tree: Mapping[str, Any],
    resolved: RunConfig,
    window: Window,
    training: Mapping[str, Any],
    folder: Path,
    validated: tuple[int, int],
) -> Comparison:
    """The comparison of a pilot.

    Args:
        tree: settings of the run, as given.
        resolved: the run as `extend` would resolve it, whose recipe the trained arm has.
        window: its lengths, in tokens, with the training window of the pilot.
        training: settings of `training` that the pilot decides.
        folder: for all results.
        validated: tokens and number of the texts that training is validated on.
    """
    # As `extend` takes documents: a comparison would take only those as long as the target.
    data = {"min_tokens": resolved.data.min_tokens}
    run = merge_settings(tree, {"data": data, "training": training, "calibrate": False})
    tokens, number = validated
    run["validation"] = {"lengths": [tokens], "num_documents": number, "every_steps": 0}
    if window.train != resolved.resolve_window(window.original).train:
        run["window"] = window.train
    extended = {"name": EXTENDED, "like": "recipe", "recipe": resolved.recipe}
    extended |= {"data": {"retrieval": resolved.data.retrieval}}
    return Comparison.from_mapping(
        {
            **{name: value for name, value in run.items() if name not in ("output", "recipe", "seed")},
            "arms": [BASE, UNTRAINED, extended],
            "reference": EXTENDED,
            "seeds": [resolved.seed],
            "evaluation": {"tasks": [], "regression": False},
            "output": str(folder),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacer:
    """Decides each arm when it begins, by the time that is left.

    Attributes:
        folder: of the pilot.
        schedule: as decided at the start.
        wanted: what could be measured.
        costs: seconds.
        training: what training takes.
        base: the base model.
        tell: prints a line.
    """

    folder: PilotFolder
    schedule: Schedule
    wanted: Wanted
    costs: Costs
    training: Training
    base: str
    tell: Callable[[str], None]

    def begin(self, job: Job) -> Begin:
        """The job's measurements, steps and deadline."""
        name = job.arm.name
        used, dropped = self.folder.used, self.left_out()
        left = self.schedule.seconds_given - used
        self.folder.keep(marks={**self.folder.kept.get("marks", {}), name: used})
        parts = [part for part in self.parts(name) if part.name not in dropped]
        steps = None
        if name == EXTENDED:
            steps = self.folder.kept.get("steps") or self._steps(left, parts)
            self.folder.keep(steps=steps)
        said = f"; {steps} training steps of {self.schedule.batch} windows" if steps else ""
        self.tell(f"{NAMES[name]}: {minutes(left)} of {minutes(self.schedule.seconds_given)} left{said}")
        spare = self.schedule.seconds_given * RESERVE * (1 - _LATE_SHARE)
        return Begin(
            evaluation=[self._measured(part) for part in parts],
            steps=steps,
            deadline=time.time() + left - self._least_after(name) - spare,
        )

    def parts(self, arm: str) -> list[Part]:
        """What is measured on an arm, those first that must be."""
        folder = str(self.folder.path / SUITES)
        parts = self.wanted.parts(self.schedule.measures, self.costs, folder)
        return [part for part in parts if part.arms >= _ARMS[arm]]

    def left_out(self) -> list[str]:
        """Names of measurements that there was no time for in some arm that is done."""
        names: dict[str, None] = {}
        for file in sorted(self.folder.path.glob("arms/**/outcome.json")):
            outcome = Outcome.read(file.parent)
            names |= dict.fromkeys(outcome.left_out if outcome else ())
        return list(names)

    def _measured(self, part: Part) -> dict[str, Any]:
        task = dict(part.task) | ({"base": self.base} if part.task["kind"] == "regression" else {})
        about = {"name": part.name, "optional": part.optional, "seconds": part.seconds}
        return {"task": task, "lengths": [part.length], **about}

    def _seconds(self, arm: str, *, least: bool) -> float:
        """What an arm was planned to take, but for the steps; the least of it, or all."""
        fixed = fixed_seconds(self.wanted, self.schedule.measures, self.costs)
        measured = sum(part.seconds for part in self.parts(arm) if not (least and part.optional))
        return measured + fixed["training" if arm == EXTENDED else NAMES[arm]]

    def _least_after(self, arm: str) -> float:
        """Seconds that what must come after an arm takes."""
        later = list(NAMES)[list(NAMES).index(arm) + 1 :]
        fixed = fixed_seconds(self.wanted, self.schedule.measures, self.costs)
        trained = self.training.least if EXTENDED in later else 0.0
        return fixed["the page"] + trained + sum(self._seconds(one, least=True) for one in later)

    def _steps(self, left: float, parts: Sequence[Part]) -> int:
        """Training steps that fit before what is measured after them, by what the arms before have taken."""
        fixed = fixed_seconds(self.wanted, self.schedule.measures, self.costs)
        slower = self._slower()
        reserve = RESERVE * self.schedule.seconds_given * (1 - _LATE_SHARE / 2)
        after = sum(part.seconds for part in parts) + fixed["training"]
        seconds = left - reserve - fixed["the page"] - slower * after
        # Passes that were quicker than planned do not show that training is.
        return self.training.steps(seconds / max(1.0, slower), self.schedule.batch)

    def _slower(self) -> float:
        """How many times as long as planned the arms before took, at least half."""
        marks = self.folder.kept.get("marks", {})
        if BASE not in marks:
            return 1.0
        planned = sum(self._seconds(arm, least=False) for arm in (BASE, UNTRAINED))
        return max(_FASTEST, (marks[EXTENDED] - marks[BASE]) / planned)

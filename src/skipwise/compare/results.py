"""Collect the results of a comparison's jobs: records pooled over seeds, differences, time and memory.

records.jsonl     one `EvalResult` per line; `details.compared` names the arm
comparison.json   `skipwise.records.comparison.Comparison`
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.compare.jobs import Job, Planner
from skipwise.compare.pairing import differences, pooled_results, read_scores, rises
from skipwise.compare.settings import Arm, Comparison
from skipwise.compare.worker import RESULTS_FILE, SAMPLES_FILE, Outcome
from skipwise.config.reading import merge_settings
from skipwise.records import comparison as record
from skipwise.records.results import EvalResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Records pooled over seeds, differences to the reference, and the content of `comparison.json`."""

    folder: Path
    records: list[EvalResult]
    differences: list[record.Difference]
    about: dict[str, Any]

    @property
    def failed(self) -> list[str]:
        """Names of arms with at least one failed run."""
        return [name for name, arm in self.about["arms"].items() if any(r["status"] == "failed" for r in arm["runs"])]


def collect(
    comparison: Comparison, planner: Planner, jobs: Sequence[Job], folder: Path, *, seconds: float, command: str
) -> Results:
    """Reads the results of every job, once all have ended, and writes the two files."""
    outcomes = {job.name: outcome for job in jobs if (outcome := Outcome.read(folder / job.name))}
    records: list[EvalResult] = []
    scores, arms, versions = {}, {}, {}
    for arm in comparison.arms:
        of_arm = [job for job in jobs if job.arm.name == arm.name and not job.measures_costs]
        done = [job for job in of_arm if outcomes[job.name].status == "done"]
        if done:
            scores[arm.name] = read_scores([folder / job.name / SAMPLES_FILE for job in done])
            seeds = [job.seed for job in done if job.seed is not None]
            records += pooled_results(arm.name, [_results(folder / job.name) for job in done], scores[arm.name], seeds)
        versions = next((found for job in done if (found := outcomes[job.name].versions)), versions)
        arms[arm.name] = _described(arm, of_arm[0], [outcomes[job.name].run() for job in of_arm])
    found = list(differences(scores, comparison.reference))
    about = dataclasses.asdict(
        record.Comparison(
            model=comparison.run["model"],
            window=planner.window,
            reference=comparison.reference,
            seeds=comparison.seeds,
            # A caller may have decided it when training began.
            steps=next(
                (
                    outcomes[job.name].steps
                    for job in jobs
                    if job.arm.name == comparison.reference and job.seed is not None and outcomes[job.name].steps
                ),
                planner.steps,
            ),
            tokens_per_step=planner.step_tokens,
            arms=arms,
            differences=found,
            rises=list(rises(scores)),
            reached=_reached(comparison, planner, jobs, outcomes),
            costs=[_cost(job, outcomes[job.name]) for job in jobs if job.measures_costs],
            made={
                "command": command,
                "seconds": f"{seconds:.0f}",
                "seeds": ", ".join(map(str, comparison.seeds)),
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            },
            settings=comparison.to_mapping(),
        )
    )
    lines = "".join(one.to_json() + "\n" for one in records)
    (folder / record.RECORDS_FILE).write_text(lines, encoding="utf-8")
    text = json.dumps(about, indent=2, allow_nan=False, default=str)
    (folder / record.COMPARISON_FILE).write_text(text + "\n", encoding="utf-8")
    return Results(folder=folder, records=records, differences=found, about=about)


def _results(folder: Path) -> list[EvalResult]:
    return [EvalResult.from_json(line) for line in (folder / RESULTS_FILE).read_text(encoding="utf-8").splitlines()]


def _described(arm: Arm, job: Job, runs: Sequence[record.ArmRun]) -> record.ComparedArm:
    return record.ComparedArm(
        like=arm.like,
        trained=arm.kind.trained,
        interpolation=job.run.interpolation if arm.kind.interpolated else None,
        sampler=job.run.sampler if arm.kind.trained else None,
        # Includes the settings of the arm's kind, such as its recipe. Interpolation and sampler are listed above.
        settings=merge_settings({k: v for k, v in arm.kind.settings.items() if k != "sampler"}, arm.settings),
        runs=runs,
    )


def _cost(job: Job, outcome: Outcome) -> record.Cost:
    """Time and memory of a training step with one window at one target; the median time without the warm-up step."""
    done = outcome.status == "done"
    later = sorted(outcome.step_seconds[1:])
    return record.Cost(
        arm=job.arm.name,
        target_tokens=job.run.target,
        step_seconds=later[len(later) // 2] if later else None,
        peak_bytes=outcome.peak_bytes if done else None,
        status=outcome.status,
        error=outcome.error,
    )


def _reached(
    comparison: Comparison, planner: Planner, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]
) -> list[record.Reached]:
    """Training tokens after which validation at the target first reached a perplexity; None if it never did.

    By default the perplexity is the geometric mean of the reference's final values.
    """
    watched = [
        (job.arm.name, job.seed, validation)
        for job in jobs
        if job.seed is not None and not job.measures_costs and (validation := outcomes[job.name].validation)
    ]
    ends = [validation[-1][1] for name, _, validation in watched if name == comparison.reference]
    reach = comparison.reach or (statistics.geometric_mean(ends) if ends else None)
    if reach is None:
        return []
    found = []
    for name, seed, validation in watched:
        steps = [step for step, perplexity in validation if perplexity <= reach]
        found.append(
            record.Reached(
                arm=name,
                seed=seed,
                perplexity=reach,
                length_tokens=planner.window.target,
                tokens=steps[0] * planner.step_tokens if steps else None,
            )
        )
    return found

"""What the arms cost: memory and time of training, by arm and by target length, and of serving by length."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from skipwise.records.comparison import ArmRun
from skipwise.report.drawing import Figure
from skipwise.report.evidence import Evidence
from skipwise.report.lines import Line, Point, Unit, line_panel, lines_of
from skipwise.report.page import Section
from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.report.records import measures
from skipwise.report.sections.quality import SERVING
from skipwise.report.tables import ABSENT, Table, by_length, shortened, table_of

_SERVING_TITLES = {
    "prefill_seconds": "Time to read the prompt",
    "token_seconds": "Time for each new token",
    "cache_bytes": "Memory of the cache",
    "peak_bytes": "Peak memory",
}


def training_section(evidence: Evidence) -> Iterator[Section]:
    """Time and memory of the runs, and of one step by target length."""
    tables = [table for table in (_runs_table(evidence), _costs_table(evidence)) if table]
    if not tables:
        return
    words = []
    if any(arm.trained and arm.runs for arm in evidence.compared.values()):
        words.append("Time and peak memory of training; where there are several seeds, mean time and largest peak.")
    if figure := _costs_figure(evidence):
        words.append(
            "Skip-wise training reads examples of one length whatever the target, so its cost stays about the same; "
            "training on texts as long as the target grows with it."
        )
    yield Section(title="What training cost", words=words, figures=[figure] if figure else (), tables=tables)


def serving_section(evidence: Evidence) -> Iterator[Section]:
    """Time and memory of answering, by length."""
    found = [measure for measure in measures(evidence.arms) if measure.task == SERVING]
    if not found:
        return
    panels = [
        line_panel(
            lines_of(evidence.arms, measure),
            title=_SERVING_TITLES.get(measure.metric, measure.title),
            text=measure.text,
            unit=_unit(measure.metric, [r.value for arm in evidence.arms for r in arm.by_length(measure).values()]),
        )
        for measure in found
        if all(r.value > 0 for arm in evidence.arms for r in arm.by_length(measure).values())
    ]
    yield Section(
        title="What serving costs",
        words=["Time and memory of one request, by the length of its prompt."],
        figures=[Figure(caption="Serving by length; all axes are logarithmic; lower is better.", panels=tuple(panels))]
        if panels
        else (),
        tables=[
            replace(
                table_of(evidence.arms, measure, arms_down=evidence.many),
                title=_SERVING_TITLES.get(measure.metric, measure.title),
            )
            for measure in found
        ],
    )


def mean_seconds(runs: Sequence[ArmRun]) -> float | None:
    """Mean training time of the runs that tell it."""
    known = [run.training_seconds for run in runs if run.training_seconds is not None]
    return math.fsum(known) / len(known) if known else None


def _runs_table(evidence: Evidence) -> Table | None:
    """A row for each arm or extended model that was trained."""
    rows = []
    for name, arm in evidence.compared.items():
        if arm.trained and arm.done:
            steps, tokens = _same([run.steps for run in arm.done]), _same([run.tokens for run in arm.done])
            peak = max((run.peak_bytes for run in arm.done if run.peak_bytes is not None), default=None)
            seconds = mean_seconds(arm.done)
            rows.append(
                (name, str(len(arm.done)), steps, tokens, _text(seconds_text, seconds), _text(bytes_text, peak))
            )
    rows += [
        (run.name, "1", _same([run.steps]), ABSENT, _text(seconds_text, run.seconds), _text(bytes_text, run.peak_bytes))
        for run in evidence.runs
    ]
    if not rows:
        return None
    header = ("Arm", "Runs", "Steps", "Tokens", "Time", "Peak memory")
    return Table(title="Training runs that came to their end", header=header, rows=tuple(rows))


def _costs_table(evidence: Evidence) -> Table | None:
    """One step of each arm by target length."""
    rows: dict[str, dict[int, str]] = {}
    for cost in evidence.costs:
        if cost.status == "failed":
            told = f"failed: {shortened(' '.join(cost.error.split()), 40)}" if cost.error else "failed"
        else:
            known = [_text(seconds_text, cost.step_seconds), _text(bytes_text, cost.peak_bytes)]
            told = ", ".join(text for text in known if text != ABSENT) or ABSENT
        rows.setdefault(cost.arm, {})[cost.target_tokens] = told
    return by_length("One training step by target length: time and peak memory", [*rows.items()]) if rows else None


def _costs_figure(evidence: Evidence) -> Figure | None:
    """The PoSE paper's figure 3: time and memory of a step against the target length."""
    costs, panels = evidence.costs, []
    for title, field in (("Time of a step", "step_seconds"), ("Peak memory", "peak_bytes")):
        lines = [
            Line(
                name=arm,
                index=evidence.number(arm),
                points=[Point(cost.target_tokens, value) for cost in of_arm if (value := getattr(cost, field))],
                failed=[cost.target_tokens for cost in of_arm if cost.status == "failed"],
            )
            for arm in {cost.arm: 0 for cost in costs}
            if (of_arm := sorted((c for c in costs if c.arm == arm), key=lambda c: c.target_tokens))
        ]
        values = [point.value for line in lines for point in line.points]
        if values:
            panels.append(
                line_panel(
                    lines,
                    title=title,
                    text=seconds_text if field == "step_seconds" else bytes_text,
                    unit=_unit(field, values),
                    x_title="Target length in tokens",
                )
            )
    if not panels:
        return None
    failed = " A cross marks a length at which an arm failed." if any(c.status == "failed" for c in costs) else ""
    caption = f"One training step by target length; all axes are logarithmic; lower is better.{failed}"
    return Figure(caption=caption, panels=tuple(panels))


def _unit(metric: str, values: Sequence[float]) -> Unit | None:
    """What an axis counts in, so that its numbers stay short."""
    largest = max(values, default=1.0)
    if metric.endswith("_bytes"):
        power = min(4, max(0, int(math.log2(max(largest, 1)) // 10)))
        return Unit(1024.0**power, ("bytes", "KiB", "MiB", "GiB", "TiB")[power])
    if metric.endswith("_seconds"):
        return Unit(1e-3, "ms") if largest < 1 else Unit(60.0, "minutes") if largest > 600 else Unit(1.0, "seconds")
    return None


def _text(write: Callable[[float], str], value: float | None) -> str:
    return ABSENT if value is None else write(value)


def _same(counts: Sequence[int | None]) -> str:
    """One count, or from the smallest to the largest."""
    known = sorted({count for count in counts if count is not None})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1]))) if known else ABSENT

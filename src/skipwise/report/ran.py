"""Sections on what was run: costs of training and serving, samplers, failures, settings; and how it all was made.

A section is left out where there is no evidence for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skipwise.coverage import coverage_with_error
from skipwise.errors import SkipwiseError
from skipwise.own_samplers import is_own
from skipwise.positions import PositionSampler, sampler_from, sampler_label
from skipwise.records.comparison import ArmRun
from skipwise.report.evidence import MOST_OUTPUT_LETTERS, MOST_OUTPUTS, Evidence, measures
from skipwise.report.figures import Line, Point, Unit, coverage_panel, dot_panel, line_panel, lines_of
from skipwise.report.measured import SERVING
from skipwise.report.page import Figure, Section
from skipwise.report.quantities import ABSENT, bytes_text, seconds_text, settings_text, shortened
from skipwise.report.tables import Table, by_length, table, table_of
from skipwise.report.words import say, section
from skipwise.window import Window, length_label

_SERVING_TITLES = {
    "prefill_seconds": "Time to read the prompt",
    "token_seconds": "Time for each new token",
    "cache_bytes": "Memory of the cache",
    "peak_bytes": "Peak memory",
}
_DRAWN_EXAMPLES = 300
_STARVED = 0.01
_MOST_LETTERS = 160
# Details of records that are shown; no others enter a page.
_SHOWN = {
    "documents_sha256": "documents, sha256",
    "tokenizer_sha256": "tokenizer, sha256",
    "model_sha256": "models, sha256",
    "dtype": "precision",
    "device": "device",
    "attention": "attention",
}


# Costs


def training_section(evidence: Evidence) -> Iterator[Section]:
    """Time and memory of the runs, and of one step by target length."""
    if tables := [*_runs_table(evidence), *_drawn_table(evidence), *_costs_table(evidence)]:
        figure = _costs_figure(evidence)
        several = any(arm.trained and arm.runs for arm in evidence.compared.values())
        figures = [figure] if figure else ()
        yield section("training", figures=figures, tables=tables, several=several, by_target=figure)


def serving_section(evidence: Evidence) -> Iterator[Section]:
    """Time and memory of answering, by length."""
    panels, tables = [], []
    for measure in measures(evidence.arms):
        if measure.task != SERVING:
            continue
        title = _SERVING_TITLES.get(measure.metric, measure.title)
        tables.append(replace(table_of(evidence.arms, measure, arms_down=evidence.many), title=title))
        values = [record.value for arm in evidence.arms for record in arm.by_length(measure).values()]
        # The axes are logarithmic.
        if min(values) > 0:
            unit = _unit(measure.metric, values)
            panels.append(line_panel(lines_of(evidence.arms, measure), title=title, text=measure.text, unit=unit))
    if tables:
        figures = [Figure(caption=say("serving.caption")[0], panels=tuple(panels))] if panels else ()
        yield section("serving", figures=figures, tables=tables)


def reached_section(evidence: Evidence) -> Iterator[Section]:
    """How many training tokens it took to reach a perplexity."""
    reached = evidence.comparison.reached if evidence.comparison else ()
    figures, tables = [], []
    for perplexity, length in sorted({(one.perplexity, one.length_tokens) for one in reached}):
        here = [one for one in reached if (one.perplexity, one.length_tokens) == (perplexity, length)]
        seeds = sorted({one.seed for one in here})
        title = f"Tokens to perplexity {perplexity:g} at {length_label(length)}"
        by_arm: dict[str, dict[int, int | None]] = {}
        for one in here:
            by_arm.setdefault(one.arm, {})[one.seed] = one.tokens
        dots = [
            Line(name=arm, index=evidence.number(arm), points=[Point(length, sum(known) / len(known) / 1e6)])
            for arm, tokens in by_arm.items()
            if (known := [count for count in tokens.values() if count is not None]) and len(known) == len(tokens)
        ]
        if len(dots) > 1:
            panel = dot_panel(dots, title=title, x_title="Training tokens, in millions", from_zero=True)
            figures.append(Figure(caption=say("reached.caption")[0], panels=(panel,)))
        rows = tuple(
            (
                arm,
                *(_written(tokens[seed], "{:,}".format, "not reached") if seed in tokens else ABSENT for seed in seeds),
            )
            for arm, tokens in by_arm.items()
        )
        tables.append(Table(title=title, header=("Arm", *(f"Seed {seed}" for seed in seeds)), rows=rows))
    if tables:
        yield section("reached", figures=figures, tables=tables)


def mean_seconds(runs: Sequence[ArmRun]) -> float | None:
    """Mean training time of the runs that have one."""
    known = [run.training_seconds for run in runs if run.training_seconds is not None]
    return math.fsum(known) / len(known) if known else None


def _runs_table(evidence: Evidence) -> list[Table]:
    """A row for each arm or extended model that was trained."""
    rows = []
    for name, arm in evidence.compared.items():
        if arm.trained and arm.done:
            steps, tokens = _range([run.steps for run in arm.done]), _range([run.tokens for run in arm.done])
            seconds = mean_seconds(arm.done)
            peak = max((run.peak_bytes for run in arm.done if run.peak_bytes is not None), default=None)
            rows.append((name, len(arm.done), steps, tokens, seconds, peak))
    for run in evidence.runs:
        # Of a single source, the record does not say how many were drawn.
        drawn = [one["tokens"] for one in run.corpus.get("sources", ()) if "tokens" in one]
        rows.append(
            (run.name, 1, _range([run.steps]), _range([sum(drawn)]) if drawn else ABSENT, run.seconds, run.peak_bytes)
        )
    header = ("Arm", "Runs", "Steps", "Tokens", "Time", "Peak memory")
    return table(
        "Completed training runs",
        header,
        (
            (name, str(runs), steps, tokens, _written(seconds, seconds_text), _written(peak, bytes_text))
            for name, runs, steps, tokens, seconds, peak in rows
        ),
    )


def _drawn_table(evidence: Evidence) -> list[Table]:
    """What was drawn from each source, a row each, for the runs over a mixture."""
    rows = (
        (
            run.name,
            str(one.get("source", ABSENT)),
            _written(one.get("share"), "{:.1%}".format),
            *(_written(one.get(name), "{:,}".format) for name in ("windows", "tokens", "of_tokens", "documents")),
            _written(one.get("epochs"), "{:.2f}".format),
            _written(one.get("labels"), "{:.0%}".format),
        )
        for run in evidence.runs
        for one in run.corpus.get("sources", ())
    )
    header = ("Arm", "Source", "Share asked for", "Windows", "Tokens", "of tokens", "Documents", "Epochs", "Labels")
    return table("What was drawn from which source", header, rows, wraps=True)


def _costs_table(evidence: Evidence) -> list[Table]:
    """One step of each arm by target length."""
    rows: dict[str, dict[int, str]] = {}
    for cost in evidence.costs:
        if cost.status == "failed":
            cell = f"failed: {shortened(_joined(cost.error), 40)}" if cost.error else "failed"
        else:
            known = [_written(cost.step_seconds, seconds_text, ""), _written(cost.peak_bytes, bytes_text, "")]
            cell = ", ".join(filter(None, known)) or ABSENT
        rows.setdefault(cost.arm, {})[cost.target_tokens] = cell
    return [by_length("One training step by target length: time and peak memory", [*rows.items()])] if rows else []


def _costs_figure(evidence: Evidence) -> Figure | None:
    """Time and memory of a step against the target length, as figure 3 of the PoSE paper."""
    costs = sorted(evidence.costs, key=lambda cost: cost.target_tokens)
    arms = dict.fromkeys(cost.arm for cost in evidence.costs)
    panels = []
    for title, field, text in (
        ("Time of a step", "step_seconds", seconds_text),
        ("Peak memory", "peak_bytes", bytes_text),
    ):
        lines = [
            Line(
                name=arm,
                index=evidence.number(arm),
                points=[Point(c.target_tokens, value) for c in costs if c.arm == arm and (value := getattr(c, field))],
                failed=[c.target_tokens for c in costs if c.arm == arm and c.status == "failed"],
            )
            for arm in arms
        ]
        if values := [point.value for line in lines for point in line.points]:
            unit = _unit(field, values)
            panels.append(line_panel(lines, title=title, text=text, unit=unit, x_title="Target length in tokens"))
    (caption,) = say("training.caption", failed=any(cost.status == "failed" for cost in costs))
    return Figure(caption=caption, panels=tuple(panels)) if panels else None


def _unit(metric: str, values: Sequence[float]) -> Unit | None:
    """The unit of an axis, such that its numbers are short."""
    largest = max(values)
    if metric.endswith("_bytes"):
        power = min(4, max(0, int(math.log2(max(largest, 1)) // 10)))
        return Unit(1024.0**power, ("bytes", "KiB", "MiB", "GiB", "TiB")[power])
    if metric.endswith("_seconds"):
        return Unit(1e-3, "ms") if largest < 1 else Unit(60.0, "minutes") if largest > 600 else Unit(1.0, "seconds")
    return None


def _written(value: Any, write: Callable[[Any], str], absent: str = ABSENT) -> str:
    return absent if value is None else write(value)


def _range(counts: Sequence[int | None]) -> str:
    """One count, or from the smallest to the largest."""
    known = sorted({count for count in counts if count is not None})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1]))) if known else ABSENT


# Samplers


def coverage_section(evidence: Evidence) -> Iterator[Section]:
    """How often each sampler trains each relative distance; one figure for each window."""
    figures, rows = [], []
    for window, named in _samplers(evidence).items():
        found = [(name, coverage_with_error(s, window, num_samples=_DRAWN_EXAMPLES)) for name, s in named]
        sampled = _DRAWN_EXAMPLES if any(one.num_samples for _, one in found) else 0
        (caption,) = say("coverage.caption", window=window, sampled=sampled)
        figures.append(Figure(caption=caption, panels=(coverage_panel(window, found),)))
        for (name, sampler), (_, one) in zip(named, found, strict=True):
            lowest, starved = one.lowest_distance, one.first_below(_STARVED)
            share = f"{100 * one.share[lowest]:.3g}%"
            at = length_label(lowest) if lowest else ABSENT
            rows.append((name, sampler_label(sampler), share, at, _written(starved, length_label, "never")))
    if figures:
        header = ("Arm", "Positions", "Lowest share", "at distance", "below 1% from")
        yield section("coverage", figures=figures, tables=table("The distance that is trained least", header, rows))


def _samplers(evidence: Evidence) -> dict[Window, list[tuple[str, PositionSampler]]]:
    """By window, every sampler once, named after the arms that use it; samplers of other programs are left out."""
    users: dict[tuple[Window, str], tuple[PositionSampler, list[str]]] = {}
    for name, settings, window, wanted in _sampler_settings(evidence):
        # Reading results must not run code that they name.
        if is_own(settings.get("kind")):
            continue
        try:
            sampler = sampler_from(settings)
            # A sampler is made without knowing its window, and may refuse it.
            sampler.sample(window.target, window, np.random.default_rng(0))
        except (SkipwiseError, TypeError, ValueError):
            continue
        if wanted in (None, repr(sampler)):
            users.setdefault((window, repr(sampler)), (sampler, []))[1].append(name)
    by_window: dict[Window, list[tuple[str, PositionSampler]]] = {}
    for (window, _), (sampler, names) in users.items():
        by_window.setdefault(window, []).append((", ".join(names), sampler))
    return by_window


def _sampler_settings(evidence: Evidence) -> Iterator[tuple[str, Mapping[str, Any], Window, str | None]]:
    """Name, settings, window, and the sampler that the settings must describe, as a run may have had the caller's."""
    if comparison := evidence.comparison:
        for name, arm in comparison.arms.items():
            if arm.trained and arm.sampler is not None:
                yield name, arm.sampler, comparison.window, None
    for run in evidence.runs:
        if isinstance(settings := run.config.get("sampler"), Mapping):
            yield run.name, settings, run.window, run.sampler


# Failures, outputs, settings


def failures_section(evidence: Evidence) -> Iterator[Section]:
    """Runs that failed, and why."""
    rows = (
        (name, _written(run.seed, str), run.failure or ABSENT, shortened(_joined(run.error or ABSENT), _MOST_LETTERS))
        for name, arm in evidence.compared.items()
        for run in arm.failed
    )
    if tables := table("Runs that failed", ("Arm", "Seed", "Why", "Message"), rows, wraps=True):
        yield section("failed", tables=tables)


def left_out_section(evidence: Evidence) -> Iterator[Section]:
    """What a pilot could not measure in its time, or cannot tell."""
    rows = ((sentence,) for sentence in (evidence.pilot.left_out if evidence.pilot else ()))
    if tables := table("Not measured, and why", ("Left out",), rows, wraps=True):
        yield section("left_out", tables=tables)


def outputs_section(evidence: Evidence) -> Iterator[Section]:
    """A few outputs, where they were asked for."""
    rows = (
        (one.task, length_label(one.length_tokens), one.output or ABSENT, one.expected or ABSENT)
        for one in evidence.outputs
    )
    if tables := table("Outputs", ("Task", "Tokens", "Written", "Expected"), rows, wraps=True):
        yield section("outputs", tables=tables, most=MOST_OUTPUTS, letters=MOST_OUTPUT_LETTERS)


def run_section(evidence: Evidence) -> Iterator[Section]:
    """Settings of the arms and of the tasks, and what to beware of."""
    if tables := [*_arms_table(evidence), *_tasks_table(evidence)]:
        yield replace(section("run", tables=tables), words=cautions(evidence))


def cautions(evidence: Evidence) -> list[str]:
    """What keeps the numbers from comparing, or from meaning what they seem to; a sentence each."""
    texts: dict[tuple[str, int, str], set[str]] = {}
    for record in evidence.records:
        if (documents := record.details.get("documents_sha256")) is not None:
            texts.setdefault((record.task, record.length_tokens, record.metric), set()).add(str(documents))
    return say(
        "cautions",
        tasks=sorted({task for (task, _, _), known in texts.items() if len(known) > 1}),
        trained_on=any(record.details.get("may_have_been_trained_on") for record in evidence.records),
    )


def made_of(evidence: Evidence) -> dict[str, str]:
    """How the numbers came about, by name: model, windows, seeds, versions, hashes."""
    made: dict[str, str] = {}
    if comparison := evidence.comparison:
        made = {
            "model": comparison.model,
            "window": _window_text(comparison.window),
            "seeds of training": ", ".join(map(str, comparison.seeds)),
            **{str(name): _one_line(value) for name, value in comparison.made.items() if value is not None},
        }
    for run in evidence.runs:
        how = (f"{run.config.get('model', '')}: {_window_text(run.window)}", run.interpolation, run.sampler)
        made[f"run {run.name}"] = "; ".join(how)
        known = {name: run.corpus[name] for name in ("fingerprint", "documents") if name in run.corpus}
        made[f"corpus of {run.name}"] = settings_text(known)
        made[f"seed of {run.name}"] = str(run.seed)
        made.setdefault("versions", settings_text(run.versions))
    shown = _SHOWN if evidence.comparison else {"model": "models", **_SHOWN}
    made |= {title: "\n".join(_distinct(evidence, name)) for name, title in shown.items()}
    made["seeds of evaluation"] = ", ".join(sorted({str(record.seed) for record in evidence.records}))
    if known := [r.details["versions"] for r in evidence.records if isinstance(r.details.get("versions"), Mapping)]:
        made.setdefault("versions", settings_text(known[0]))
    return {name: value for name, value in made.items() if value}


def _window_text(window: Window) -> str:
    return f"trained {window.train}, original {window.original}, target {window.target} tokens"


def _arms_table(evidence: Evidence) -> list[Table]:
    rows = (
        (
            name,
            "yes" if arm.trained else "no",
            *(settings_text(each or {}) or ABSENT for each in (arm.interpolation, arm.sampler, arm.settings)),
        )
        for name, arm in evidence.compared.items()
    )
    header = ("Arm", "Trained", "Interpolation", "Positions", "Other settings")
    return table("The arms", header, rows, wraps=True)


def _tasks_table(evidence: Evidence) -> list[Table]:
    """Settings and numbers of samples of each task, once for each way it was measured."""
    ways: dict[tuple[str, str], dict[int, int]] = {}
    for record in evidence.records:
        settings = record.details.get("settings")
        simple = {
            name: value
            for name, value in (settings.items() if isinstance(settings, Mapping) else ())
            if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 60)
        }
        samples = ways.setdefault((record.task, settings_text(simple) or ABSENT), {})
        # A single depth has a part of the length's samples.
        samples[record.length_tokens] = max(samples.get(record.length_tokens, 0), record.num_samples)
    rows = (
        (task, ", ".join(map(length_label, sorted(samples))), _range([*samples.values()]), settings)
        for (task, settings), samples in ways.items()
    )
    return table("What was measured", ("Task", "Tokens", "Samples", "Settings"), rows, wraps=True)


def _distinct(evidence: Evidence, name: str) -> list[str]:
    values = (record.details.get(name) for record in evidence.records)
    return list(dict.fromkeys(_one_line(value) for value in values if isinstance(value, str) and value))


def _one_line(value: Any) -> str:
    return shortened(_joined(settings_text(value) if isinstance(value, Mapping) else str(value)), 400)


def _joined(text: str) -> str:
    return " ".join(text.split())

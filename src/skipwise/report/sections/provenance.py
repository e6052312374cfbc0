"""Where the numbers come from: samplers and what they train, arms that failed, what was run, how it was made."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from skipwise.coverage import coverage_with_error
from skipwise.errors import SkipwiseError
from skipwise.positions import PositionSampler, sampler_from, sampler_label
from skipwise.report.coverage_plot import coverage_panel
from skipwise.report.drawing import Figure
from skipwise.report.evidence import Evidence
from skipwise.report.page import Section
from skipwise.report.tables import ABSENT, Table, settings_text, shortened
from skipwise.window import Window, length_label

_DRAWN_EXAMPLES = 300
_STARVED = 0.01
_MOST_LETTERS = 160
# What a record's details may tell a reader; nothing else of them enters a page.
_TOLD = {
    "documents_sha256": "documents, sha256",
    "tokenizer_sha256": "tokenizer, sha256",
    "model_sha256": "models, sha256",
    "dtype": "precision",
    "device": "device",
    "attention": "attention",
}


def coverage_section(evidence: Evidence) -> Iterator[Section]:
    """How often each sampler trains each relative distance; one figure for each window."""
    figures, rows = [], []
    for window, named in _samplers(evidence).items():
        found = [(name, s, coverage_with_error(s, window, num_samples=_DRAWN_EXAMPLES)) for name, s in named]
        caption = (
            f"Share of training examples of {length_label(window.train)} tokens that contain some pair of tokens a "
            f"given distance apart, up to the target of {length_label(window.target)}. The dotted rule is the training "
            "window."
        )
        if any(one.num_samples for _, _, one in found):
            caption += f" Dashed lines are drawn from {_DRAWN_EXAMPLES} examples, with two standard errors."
        panel = coverage_panel(window, [(name, one) for name, _, one in found])
        figures.append(Figure(caption=caption, panels=(panel,)))
        for name, sampler, one in found:
            lowest, starved = one.lowest_distance, one.first_below(_STARVED)
            rows.append(
                (
                    name,
                    sampler_label(sampler),
                    f"{100 * one.share[lowest]:.3g}%",
                    length_label(lowest) if lowest else ABSENT,
                    "never" if starved is None else length_label(starved),
                )
            )
    if not figures:
        return
    table = Table(
        title="The distance that is trained least",
        header=("Arm", "Positions", "Lowest share", "at distance", "below 1% from"),
        rows=tuple(rows),
    )
    yield Section(
        title="Which distances were trained",
        words=["A model can only use distances between tokens that some training example showed it."],
        figures=figures,
        tables=[table],
    )


def failures_section(evidence: Evidence) -> Iterator[Section]:
    """Runs that failed, and why."""
    rows = tuple(
        (
            name,
            ABSENT if run.seed is None else str(run.seed),
            run.failure or ABSENT,
            shortened(" ".join((run.error or ABSENT).split()), _MOST_LETTERS),
        )
        for name, arm in evidence.compared.items()
        for run in arm.failed
    )
    if rows:
        table = Table(title="Runs that failed", header=("Arm", "Seed", "Why", "Message"), rows=rows, wraps=True)
        yield Section(title="What failed", tables=[table])


def outputs_section(evidence: Evidence) -> Iterator[Section]:
    """A few outputs, where they were asked for."""
    if not evidence.outputs:
        return
    rows = tuple(
        (one.task, length_label(one.length_tokens), one.output or ABSENT, one.expected or ABSENT)
        for one in evidence.outputs
    )
    table = Table(title="Outputs", header=("Task", "Tokens", "Written", "Expected"), rows=rows, wraps=True)
    words = ["The first sample of each task and length, at most six, cut after 200 letters."]
    yield Section(title="Some outputs", words=words, tables=[table])


def run_section(evidence: Evidence) -> Iterator[Section]:
    """Settings of the arms and of the tasks."""
    if tables := [table for table in (_arms_table(evidence), _tasks_table(evidence)) if table]:
        yield Section(title="What was run", words=cautions(evidence), tables=tables)


def cautions(evidence: Evidence) -> list[str]:
    """What keeps the numbers from comparing, or from meaning what they seem to; a sentence each."""
    found = []
    texts: dict[tuple[str, int, str], set[str]] = {}
    for record in evidence.records:
        if (documents := record.details.get("documents_sha256")) is not None:
            texts.setdefault((record.task, record.length_tokens, record.metric), set()).add(str(documents))
    if tasks := sorted({task for (task, _, _), known in texts.items() if len(known) > 1}):
        found.append(f"Not all arms were measured on the same documents ({', '.join(tasks)}): these do not compare.")
    if any(record.details.get("may_have_been_trained_on") for record in evidence.records):
        found.append("Some documents may have been trained on, which flatters the models that were.")
    return found


def made_of(evidence: Evidence) -> dict[str, str]:
    """How the numbers came about, by name: model, windows, seeds, versions, hashes."""
    made: dict[str, str] = {}
    if comparison := evidence.comparison:
        window = comparison.window
        made |= {
            "model": comparison.model,
            "window": f"trained {window.train}, original {window.original}, target {window.target} tokens",
            "seeds of training": ", ".join(map(str, comparison.seeds)),
        }
        made |= {str(name): _one_line(value) for name, value in comparison.made.items() if value is not None}
    for run in evidence.runs:
        made[f"run {run.name}"] = _run_text(run.config, run.window, run.sampler, run.interpolation)
        known = {name: run.corpus[name] for name in ("fingerprint", "documents") if name in run.corpus}
        made[f"corpus of {run.name}"] = settings_text(known)
        made[f"seed of {run.name}"] = str(run.seed)
        made.setdefault("versions", settings_text(run.versions))
    if not evidence.comparison and (models := _distinct(evidence, "model")):
        made["models"] = "\n".join(models)
    for name, title in _TOLD.items():
        if known := _distinct(evidence, name):
            made[title] = "\n".join(known)
    made["seeds of evaluation"] = ", ".join(
        sorted({str(seed) for record in evidence.records if (seed := getattr(record, "seed", None)) is not None})
    )
    if known := [r.details["versions"] for r in evidence.records if isinstance(r.details.get("versions"), Mapping)]:
        made.setdefault("versions", settings_text(known[0]))
    return {name: value for name, value in made.items() if value}


def _samplers(evidence: Evidence) -> dict[Window, list[tuple[str, PositionSampler]]]:
    """By window, every sampler once, named after the arms that use it; those that cannot be made again are left out."""
    users: dict[tuple[Window, str], tuple[PositionSampler, list[str]]] = {}
    for name, settings, window in _sampler_settings(evidence):
        try:
            sampler = sampler_from(settings)
            # A sampler is made without knowing its window, and may refuse it.
            sampler.sample(window.target, window, np.random.default_rng(0))
        except (SkipwiseError, TypeError, ValueError):
            continue
        users.setdefault((window, repr(sampler)), (sampler, []))[1].append(name)
    by_window: dict[Window, list[tuple[str, PositionSampler]]] = {}
    for (window, _), (sampler, names) in users.items():
        by_window.setdefault(window, []).append((", ".join(names), sampler))
    return by_window


def _sampler_settings(evidence: Evidence) -> Iterator[tuple[str, Mapping[str, Any], Window]]:
    if comparison := evidence.comparison:
        for name, arm in comparison.arms.items():
            if arm.trained and arm.sampler is not None:
                yield name, arm.sampler, comparison.window
    for run in evidence.runs:
        settings = run.config.get("sampler")
        if isinstance(settings, Mapping) and _is_told(settings, run.sampler):
            yield run.name, settings, run.window


def _is_told(settings: Mapping[str, Any], sampler: str) -> bool:
    """Whether a run's settings describe the sampler it had, which may have been the caller's own."""
    try:
        return repr(sampler_from(settings)) == sampler
    except (SkipwiseError, TypeError, ValueError):
        return False


def _arms_table(evidence: Evidence) -> Table | None:
    if not evidence.compared:
        return None
    rows = tuple(
        (
            name,
            "yes" if arm.trained else "no",
            settings_text(arm.interpolation or {}) or ABSENT,
            settings_text(arm.sampler or {}) or ABSENT,
            settings_text(arm.settings) or ABSENT,
        )
        for name, arm in evidence.compared.items()
    )
    header = ("Arm", "Trained", "Interpolation", "Positions", "Other settings")
    return Table(title="The arms", header=header, rows=rows, wraps=True)


def _tasks_table(evidence: Evidence) -> Table | None:
    """Settings and numbers of samples of each task, once for each way it was measured."""
    ways: dict[tuple[str, str], dict[int, int]] = {}
    for record in evidence.records:
        settings = record.details.get("settings")
        simple = {
            name: value
            for name, value in (settings.items() if isinstance(settings, Mapping) else ())
            if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 60)
        }
        by_length = ways.setdefault((record.task, settings_text(simple) or ABSENT), {})
        # A single depth has a part of the length's samples.
        by_length[record.length_tokens] = max(by_length.get(record.length_tokens, 0), record.num_samples)
    rows = tuple(
        (
            task,
            ", ".join(length_label(length) for length in sorted(by_length)),
            " to ".join(str(n) for n in sorted({min(by_length.values()), max(by_length.values())})),
            settings,
        )
        for (task, settings), by_length in ways.items()
    )
    header = ("Task", "Tokens", "Samples", "Settings")
    return Table(title="What was measured", header=header, rows=rows, wraps=True) if rows else None


def _distinct(evidence: Evidence, name: str) -> list[str]:
    values = (record.details.get(name) for record in evidence.records)
    return list(dict.fromkeys(_one_line(value) for value in values if isinstance(value, str) and value))


def _run_text(config: Mapping[str, Any], window: Window, sampler: str, interpolation: str) -> str:
    model = config.get("model", "")
    return (
        f"{model}: trained {window.train}, original {window.original}, target {window.target} tokens; {interpolation}; "
        f"{sampler}"
    )


def _one_line(value: Any) -> str:
    text = settings_text(value) if isinstance(value, Mapping) else str(value)
    return shortened(" ".join(text.split()), 400)

"""Sections on what was measured: perplexity, retrieval, differences to the reference, the short window, the rest.

A section is left out where there is no evidence for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from skipwise.errors import DataError
from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.report.effective import (
    GROUPS,
    EffectiveLength,
    Group,
    MeanScore,
    basis,
    chance_of,
    effective_length,
    group_of,
    is_score,
)
from skipwise.report.evidence import LOG_RATIO, PASSKEY, Arm, Evidence, Measure, difference_text, measures, scaled
from skipwise.report.figures import Line, Point, axis_edges, depth_grid, dot_panel, perplexity_by_length
from skipwise.report.page import Figure, Section
from skipwise.report.quantities import ABSENT, TO
from skipwise.report.samples import RELATIVE_SHARE, RULER_THRESHOLD
from skipwise.report.tables import Table, by_length, table_of
from skipwise.report.words import say, section
from skipwise.window import length_label

REGRESSION, SERVING = "regression", "serving"
_PERPLEXITIES = ("perplexity", "longppl")
_REGRESSION_COLUMNS = {
    LOG_RATIO: "Perplexity",
    "kl_mean": "KL, mean",
    "kl_p99": "KL, 99%",
    "kl_max": "KL, largest",
    "same_top": "Same token",
}


def perplexity_section(evidence: Evidence) -> Iterator[Section]:
    """How well each arm predicts text, by length."""
    if found := [measure for measure in measures(evidence.arms) if measure.metric in _PERPLEXITIES]:
        original = evidence.original_tokens
        yield section(
            "perplexity",
            figures=[perplexity_by_length(evidence.arms, original_tokens=original, measure=each) for each in found],
            tables=[table_of(evidence.arms, measure, arms_down=evidence.many) for measure in found],
        )


def others_section(evidence: Evidence) -> Iterator[Section]:
    """Measures that have no section of their own, as tables."""
    scores = {Measure.of(record) for record in evidence.records if is_score(record)}
    found = [
        measure
        for measure in measures(evidence.arms)
        if measure not in scores and measure.metric not in _PERPLEXITIES and measure.task not in (REGRESSION, SERVING)
    ]
    if found:
        yield section("others", tables=[table_of(evidence.arms, each, arms_down=evidence.many) for each in found])


# Retrieval


def depth_sections(evidence: Evidence) -> Iterator[Section]:
    """Heat maps of each task that has results by depth, one figure for each of its kinds."""
    parts: dict[str, dict[str, None]] = {}
    for record in evidence.records:
        if "depth_from" in record.details:
            parts.setdefault(record.task, {})[Measure.of(record).part] = None
    for task, of_task in parts.items():
        what = {PASSKEY.task: "keys", "needles": "needles"}.get(task, "answers")
        original = evidence.original_tokens
        figures = [depth_grid(evidence.arms, task, original_tokens=original, part=p, what=what) for p in of_task]
        yield section("depth", figures=figures, task=task)


def effective_lengths(
    evidence: Evidence, group: Group = "retrieval"
) -> dict[str, tuple[EffectiveLength, EffectiveLength]]:
    """By arm, under RULER's rule and the relative one; arms without scores, or with other tasks a length, have none."""
    windows = {"advertised_tokens": evidence.advertised_tokens, "original_tokens": evidence.original_tokens}
    found = {}
    for arm in evidence.arms:
        try:
            ruler = effective_length(arm.results, rule="ruler", group=group, **windows)
        except DataError:
            continue  # It has no score, or its means would be over different tasks.
        found[arm.name] = ruler, replace(ruler, rule="relative")
    return found


def retrieval_section(evidence: Evidence) -> Iterator[Section]:
    """For each group of tasks, every task by length, the mean over them, and the effective length underlined."""
    for group in GROUPS:
        scored = [arm for arm in evidence.arms if _scores_of(arm, group)]
        if not scored:
            continue
        found = effective_lengths(evidence, group)
        of_arms = [(arm, _scores_table(arm, group, found.get(arm.name))) for arm in scored]
        tables = [_means_table(found)] if found else []
        # The table of a single task would say what the means say, but of a mean above chance.
        tables += [
            table for arm, table in of_arms if len(table.rows) > 2 or arm.name not in found or group != "retrieval"
        ]
        yield section(
            group,
            tables=tables,
            threshold=RULER_THRESHOLD,
            share=RELATIVE_SHARE,
            bases=list(dict.fromkeys(basis(ruler.scores) for ruler, _ in found.values())),
            undecided=[arm.name for arm in scored if arm.name not in found],
        )


def _scores_of(arm: Arm, group: Group) -> list[EvalResult]:
    """The scores of one group of tasks."""
    return [record for record in arm.results if is_score(record) and group_of(record.task) == group]


def _means_table(found: Mapping[str, tuple[EffectiveLength, EffectiveLength]]) -> Table:
    """Mean scores, a row for each arm; underlined where the effective length is."""
    at = sorted({score.length_tokens for ruler, _ in found.values() for score in ruler.scores})
    rows = [
        (name, {score.length_tokens: _score_text(score) for score in ruler.scores})
        for name, (ruler, _) in found.items()
    ]
    one_task = len({task for ruler, _ in found.values() for score in ruler.scores for task in score.tasks}) == 1
    title = (
        f"{'Score' if one_task else 'Mean score over the tasks'}, with 95% intervals; before it, the effective length"
    )
    table = by_length(f"{title} by each rule, underlined by RULER's", rows)
    # What is decided comes first: on a phone, the last columns are beyond the edge.
    header, rows = ("RULER's rule", "Relative rule"), {name: map(_effective_text, both) for name, both in found.items()}
    return replace(
        table,
        header=(table.header[0], *header, *table.header[1:]),
        rows=tuple((name, *rows[name], *cells) for name, *cells in table.rows),
        underlined=frozenset(
            (row, column)
            for row, (ruler, _) in enumerate(found.values())
            if ruler.decided and ruler.effective_tokens
            for column in (1, 1 + len(header) + at.index(ruler.effective_tokens))
        ),
    )


def _scores_table(arm: Arm, group: Group, effective: tuple[EffectiveLength, EffectiveLength] | None) -> Table:
    """Tasks of one arm by length, the mean last."""
    rows = [
        (_task_text(measure, arm), measure.texts(arm.by_length(measure)))
        for measure in dict.fromkeys(Measure.of(record) for record in _scores_of(arm, group))
    ]
    if effective is not None:
        rows.append(("mean", {score.length_tokens: _score_text(score) for score in effective[0].scores}))
    table = by_length(f"{arm.name}: scores by task, with 95% intervals", rows, first="Task")
    if effective is None or not (effective[0].decided and effective[0].effective_tokens):
        return table
    column = table.header.index(length_label(effective[0].effective_tokens))
    return replace(table, underlined=frozenset({(-1, column), (len(rows) - 1, column)}))


def _task_text(measure: Measure, arm: Arm) -> str:
    """A task with its kind, and with the largest chance if its mean is above that: `reasoning walks (chance 2%)`."""
    text = ", ".join(filter(None, (measure.task, measure.part))).replace("_", " ")
    chance = max(map(chance_of, arm.by_length(measure).values()))
    return f"{text} (chance {chance:.0%})" if chance else text


def _score_text(score: MeanScore) -> str:
    if score.ci_low is None or score.ci_high is None:
        return f"{100 * score.value:.0f}%"
    # The interval of a mean is combined from its parts' and may reach beyond the ends of the scale.
    low, high = max(min(0.0, score.value), score.ci_low), min(1.0, score.ci_high)
    return f"{100 * score.value:.0f}% ({100 * low:.0f}{TO}{100 * high:.0f}%)"


def _effective_text(found: EffectiveLength) -> str:
    if found.too_few:
        return "too few samples"
    if not found.decided:
        return "not decided"
    return length_label(found.effective_tokens) if found.effective_tokens else "none"


# Against the reference and the base


def differences_section(evidence: Evidence) -> Iterator[Section]:
    """Every arm against the reference, paired by document or prompt; in a pilot the extended model against each."""
    groups: dict[str, list[Difference]] = {}
    for one in evidence.differences:
        # As the decision above says it.
        shown = one.turned if evidence.pilot else one
        groups.setdefault(Measure(one.task, one.metric).title, []).append(shown)
    if groups:
        yield section(
            "differences",
            figures=[_differences_figure(evidence, title, of_group) for title, of_group in groups.items()],
            tables=[_differences_table(evidence, title, of_group) for title, of_group in groups.items()],
            first=next(iter(groups.values()))[0],
            groups=groups,
            turned=evidence.pilot is not None,
        )


def _differences_figure(evidence: Evidence, title: str, group: Sequence[Difference]) -> Figure:
    """One panel at the longest length, one at the longest within the original window."""
    first, at = group[0], sorted({one.length_tokens for one in group})
    within = [length for length in at if length <= evidence.original_tokens][-1:]
    panels, beyond = [], False
    for length in dict.fromkeys((at[-1], *within)):
        dots = [
            Line(name=name, index=evidence.number(name), points=[Point(length, *scaled(one))])
            for one in group
            for name in [_other(evidence, one)]
            if one.length_tokens == length
        ]
        beyond |= axis_edges(dots) is not None
        unit = "per cent" if first.is_log_ratio else "points"
        x_title = f"{unit}, {first.arm} against each" if evidence.pilot else f"{unit} more than {first.reference}"
        panels.append(dot_panel(dots, title=f"{title}, {length_label(length)} tokens", x_title=x_title))
    (caption,) = say("differences.caption", title=title, first=first, beyond=beyond, turned=evidence.pilot is not None)
    return Figure(caption=caption, panels=tuple(panels))


def _other(evidence: Evidence, one: Difference) -> str:
    """The arm that names a row: that against the reference, in a pilot that which the extended model stands against."""
    return one.reference if evidence.pilot else one.arm


def _differences_table(evidence: Evidence, title: str, group: Sequence[Difference]) -> Table:
    rows: dict[str, dict[int, str]] = {}
    for one in group:
        rows.setdefault(_other(evidence, one), {})[one.length_tokens] = difference_text(one, with_unit=False)
    unit = "per cent" if group[0].is_log_ratio else "points"
    against = f"{group[0].arm} against each, in {unit}" if evidence.pilot else f"{unit} more than {group[0].reference}"
    return by_length(f"{title}: {against}, with 95% intervals", [*rows.items()])


def regression_section(evidence: Evidence) -> Iterator[Section]:
    """What the short window lost, against the base."""
    rows = []
    for arm in evidence.arms:
        for part in dict.fromkeys(Measure.of(r).part for r in arm.results if r.task == REGRESSION):
            of_part = [Measure(REGRESSION, metric, part) for metric in _REGRESSION_COLUMNS]
            columns = [measure.texts(arm.by_length(measure)) for measure in of_part]
            rows.append((f"{arm.name}: {part}" if part else arm.name, columns))
    tables = [
        Table(
            title=f"At {length_label(length)} tokens, with 95% intervals",
            header=("Arm", *_REGRESSION_COLUMNS.values()),
            rows=tuple(
                (name, *(texts.get(length, ABSENT) for texts in columns))
                for name, columns in rows
                if any(length in texts for texts in columns)
            ),
        )
        for length in sorted({length for _, columns in rows for texts in columns for length in texts})
    ]
    if tables:
        yield section("regression", tables=tables)

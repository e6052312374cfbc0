"""How well the arms predict text: by length, beside the reference, within the short window, and how soon."""

from collections.abc import Iterator, Sequence

from skipwise.records.comparison import Difference
from skipwise.report.charts import Dot, axis_edges, dot_panel
from skipwise.report.drawing import Figure
from skipwise.report.effective import is_score
from skipwise.report.evidence import Evidence
from skipwise.report.lines import perplexity_by_length
from skipwise.report.page import Section
from skipwise.report.quantities import per_cent_of_log, signed_text
from skipwise.report.records import LOG_RATIO, Measure, measures
from skipwise.report.tables import ABSENT, Table, by_length, table_of
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
    found = [measure for measure in measures(evidence.arms) if measure.metric in _PERPLEXITIES]
    if not found:
        return
    yield Section(
        title="Perplexity by length",
        words=[
            "How well each model predicts the next token of text when it is given more and more of what stands before. "
            "A model that uses its context gets lower towards the right; one that is lost beyond its window shoots up."
        ],
        figures=[
            perplexity_by_length(evidence.arms, original_tokens=evidence.original_tokens, measure=measure)
            for measure in found
        ],
        tables=[table_of(evidence.arms, measure, arms_down=evidence.many) for measure in found],
    )


def differences_section(evidence: Evidence) -> Iterator[Section]:
    """Every arm beside the reference, paired by document or prompt."""
    if not evidence.differences:
        return
    groups: dict[tuple[str, str], list[Difference]] = {}
    for one in evidence.differences:
        groups.setdefault((one.task, one.metric), []).append(one)
    first = evidence.differences[0]
    reference, pairs, seeds = first.reference, first.num_pairs, first.num_seeds
    counted = f" Over {pairs} pairs" + (f" and {seeds} seeds of training." if seeds else ".") if pairs else ""
    yield Section(
        title=f"Paired differences to {reference}",
        words=[
            f"Each arm and {reference} read the same documents and prompts, so what these have in common drops out and "
            "the intervals are narrower than those of the values above. An interval that holds zero shows no "
            f"difference.{counted if len(groups) == 1 else ''}"
        ],
        figures=[_differences_figure(evidence, of_group) for of_group in groups.values()],
        tables=[_differences_table(of_group) for of_group in groups.values()],
    )


def difference_text(difference: Difference) -> str:
    """`−12.1% (−15.0 to −8.9%)`, or `+4.0 (−2.0 to +9.9) points`."""
    value, interval = _texts(difference)
    if difference.is_log_ratio:
        return f"{value}% ({interval}%)" if interval else f"{value}%"
    return f"{value} ({interval}) points" if interval else f"{value} points"


def regression_section(evidence: Evidence) -> Iterator[Section]:
    """What the short window lost, against the base."""
    rows = []
    for arm in evidence.arms:
        for part in dict.fromkeys(Measure.of(r).part for r in arm.results if r.task == REGRESSION):
            measures_of_part = [Measure(REGRESSION, metric, part) for metric in _REGRESSION_COLUMNS]
            columns = [measure.texts(arm.by_length(measure)) for measure in measures_of_part]
            rows.append((f"{arm.name}: {part}" if part else arm.name, columns))
    at = sorted({length for _, columns in rows for texts in columns for length in texts})
    if not at:
        return
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
        for length in at
    ]
    yield Section(
        title="What short text lost",
        words=[
            "Each model beside the base it was made from, token by token on the same documents, inside the base's own "
            "window: how much its perplexity rose, how far its predictions moved (KL divergence in nats: mean, 99th "
            "percentile, largest), and how often both hold the same token for the likeliest. Rows named 'interpolation "
            "only' are the base's own weights under the new scaling: what that costs before any training."
        ],
        tables=tables,
    )


def reached_section(evidence: Evidence) -> Iterator[Section]:
    """How many training tokens it took to reach a perplexity."""
    comparison = evidence.comparison
    if comparison is None or not comparison.reached:
        return
    figures, tables = [], []
    for perplexity, length in sorted({(one.perplexity, one.length_tokens) for one in comparison.reached}):
        here = [one for one in comparison.reached if (one.perplexity, one.length_tokens) == (perplexity, length)]
        seeds = sorted({one.seed for one in here})
        title = f"Tokens to perplexity {perplexity:g} at {length_label(length)}"
        by_arm = {arm: {one.seed: one.tokens for one in here if one.arm == arm} for arm in {o.arm: 0 for o in here}}
        dots = [
            Dot(arm, evidence.number(arm), sum(known) / len(known) / 1e6)
            for arm, tokens in by_arm.items()
            if (known := [count for count in tokens.values() if count is not None]) and len(known) == len(tokens)
        ]
        if len(dots) > 1:
            panel = dot_panel(dots, title=title, x_title="Training tokens, in millions", from_zero=True)
            caption = "Mean over the seeds of training; arms that did not reach it with every seed are in the table."
            figures.append(Figure(caption=caption, panels=(panel,)))
        rows = tuple(
            (arm, *(_tokens_text(tokens[seed]) if seed in tokens else ABSENT for seed in seeds))
            for arm, tokens in by_arm.items()
        )
        tables.append(Table(title=title, header=("Arm", *(f"Seed {seed}" for seed in seeds)), rows=rows))
    yield Section(
        title="Tokens to reach a perplexity",
        words=["How much text an arm was trained on when its perplexity at that length first fell so low."],
        figures=figures,
        tables=tables,
    )


def others_section(evidence: Evidence) -> Iterator[Section]:
    """Whatever else was measured, as tables."""
    scores = {Measure.of(record) for record in evidence.records if is_score(record)}
    found = [
        measure
        for measure in measures(evidence.arms)
        if measure not in scores and measure.metric not in _PERPLEXITIES and measure.task not in (REGRESSION, SERVING)
    ]
    if found:
        tables = [table_of(evidence.arms, measure, arms_down=evidence.many) for measure in found]
        yield Section(title="What else was measured", tables=tables)


def _scaled(difference: Difference) -> tuple[float, float | None, float | None]:
    """Value and interval in per cent, or in points of a hundred."""

    def scale(value: float) -> float:
        return per_cent_of_log(value) if difference.is_log_ratio else 100 * value

    low, high = difference.ci_low, difference.ci_high
    return scale(difference.value), None if low is None else scale(low), None if high is None else scale(high)


def _texts(difference: Difference) -> tuple[str, str]:
    """Value and interval, empty where there is none; tenths only where they matter."""
    value, low, high = _scaled(difference)
    places = 1 if abs(value) < 100 else 0
    known = () if low is None or high is None else (low, high)
    return signed_text(value, places), " to ".join(signed_text(end, places) for end in known)


def _differences_figure(evidence: Evidence, group: Sequence[Difference]) -> Figure:
    """One panel at the longest length, one at the longest within the original window."""
    at = sorted({one.length_tokens for one in group})
    within = [length for length in at if length <= evidence.original_tokens][-1:]
    is_log_ratio = group[0].is_log_ratio
    named = _title(group[0])
    panels, beyond = [], False
    for length in dict.fromkeys((at[-1], *within)):
        dots = [Dot(one.arm, evidence.number(one.arm), *_scaled(one)) for one in group if one.length_tokens == length]
        beyond |= axis_edges(dots) is not None
        panels.append(
            dot_panel(
                dots,
                title=f"{named}, {length_label(length)} tokens",
                x_title=f"{'per cent' if is_log_ratio else 'points'} more than {group[0].reference}",
            )
        )
    better = "Left of zero is better" if is_log_ratio else "Right of zero is better"
    caption = f"{named}: each arm beside {group[0].reference}, with 95% intervals. {better}."
    if beyond:
        caption += " An arrowhead with its number stands for an arm beyond the edge."
    return Figure(caption=caption, panels=tuple(panels))


def _differences_table(group: Sequence[Difference]) -> Table:
    rows: dict[str, dict[int, str]] = {}
    for one in group:
        value, interval = _texts(one)
        rows.setdefault(one.arm, {})[one.length_tokens] = f"{value} ({interval})" if interval else value
    unit = "per cent" if group[0].is_log_ratio else "points"
    return by_length(f"{_title(group[0])}: {unit} more than {group[0].reference}, with 95% intervals", [*rows.items()])


def _title(difference: Difference) -> str:
    return Measure(difference.task, difference.metric).title


def _tokens_text(tokens: int | None) -> str:
    return "not reached" if tokens is None else f"{tokens:,}"

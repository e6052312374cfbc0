"""Whether the arms find what stands far back: by length and depth, by task and length, and how far that holds."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from skipwise.errors import DataError
from skipwise.report.effective import (
    RULER_THRESHOLD,
    EffectiveLength,
    MeanScore,
    basis,
    effective_length,
    is_score,
)
from skipwise.report.evidence import Evidence
from skipwise.report.heatmaps import depth_grid
from skipwise.report.page import Section
from skipwise.report.quantities import TO
from skipwise.report.records import PASSKEY, Arm, Measure
from skipwise.report.tables import ABSENT, Table, by_length
from skipwise.window import length_label

_WORDS = {
    PASSKEY.task: "Five digits are hidden in a long text and asked for at its end. Low perplexity alone does not show "
    "that a model can reach far back; finding the key does.",
    "needles": "Lines with a number each are hidden in a long text and asked for at its end: one alone (single), one "
    "among others like it (multi key), several of one key (multi value), several keys (multi query).",
}


def depth_sections(evidence: Evidence) -> Iterator[Section]:
    """Heat maps of each task that has results by depth, one figure for each of its kinds."""
    found: dict[str, list[str]] = {}
    for record in evidence.records:
        if "depth_from" in record.details:
            parts = found.setdefault(record.task, [])
            parts += [part for part in [Measure.of(record).part] if part not in parts]
    for task, parts in found.items():
        named = "Passkeys" if task == PASSKEY.task else task.replace("_", " ").capitalize()
        what = "keys" if task == PASSKEY.task else "answers" if task not in _WORDS else "needles"
        original = evidence.original_tokens
        yield Section(
            title=f"{named} found by length and depth",
            words=[_WORDS[task]] if task in _WORDS else (),
            figures=[depth_grid(evidence.arms, task, original_tokens=original, part=p, what=what) for p in parts],
        )


def effective_lengths(evidence: Evidence) -> dict[str, tuple[EffectiveLength, EffectiveLength]]:
    """By arm, under RULER's rule and the relative one; arms without scores, or with other tasks a length, have none."""
    found = {}
    for arm in evidence.arms:
        try:
            found[arm.name] = tuple(
                effective_length(
                    arm.results,
                    advertised_tokens=evidence.advertised_tokens,
                    original_tokens=evidence.original_tokens,
                    rule=rule,
                )
                for rule in ("ruler", "relative")
            )
        except DataError:
            # Either it was asked nothing, or its means would be over different tasks.
            continue
    return found


def retrieval_section(evidence: Evidence) -> Iterator[Section]:
    """Every retrieval task by length, the mean over them, and the effective length underlined."""
    scored = [arm for arm in evidence.arms if any(map(is_score, arm.results))]
    if not scored:
        return
    found = effective_lengths(evidence)
    words = [
        "Scores of all retrieval tasks. The effective length, underlined, is the largest up to which the lower end of "
        f"the mean's 95% interval is at least {RULER_THRESHOLD:.1%} (RULER's rule); the relative rule asks for 85% of "
        "the arm's own score at a short length."
    ]
    bases = list(dict.fromkeys(basis(ruler.scores) for ruler, _ in found.values()))
    if len(bases) == 1:
        words.append(f"Means are {bases[0]}.")
    elif bases:
        words.append(
            "The arms were measured with different tasks or numbers of prompts, so their means do not compare."
        )
    if undecided := [arm.name for arm in scored if arm.name not in found]:
        words.append(f"Not decided for {', '.join(undecided)}: not every length was measured with the same tasks.")
    tables = [_means_table(found)] if found else []
    tables += [
        table
        for arm in scored
        for table in [_tasks_table(arm, found.get(arm.name))]
        if len(table.rows) > 2 or arm.name not in found
    ]
    yield Section(title="Retrieval by task and length", words=words, tables=tables)


def _means_table(found: Mapping[str, tuple[EffectiveLength, EffectiveLength]]) -> Table:
    """Mean scores, a row for each arm; underlined where the effective length is."""
    at = sorted({score.length_tokens for ruler, _ in found.values() for score in ruler.scores})
    rows, underlined = [], set()
    for row, (name, (ruler, relative)) in enumerate(found.items()):
        scores = {score.length_tokens: score for score in ruler.scores}
        rows.append(
            (
                name,
                *(_score_text(scores[length]) if length in scores else ABSENT for length in at),
                _effective_text(ruler),
                _effective_text(relative),
            )
        )
        if ruler.effective_tokens:
            underlined |= {(row, 1 + at.index(ruler.effective_tokens)), (row, 1 + len(at))}
    one_task = len({task for ruler, _ in found.values() for score in ruler.scores for task in score.tasks}) == 1
    return Table(
        title=f"{'Score' if one_task else 'Mean score over the tasks'}, with 95% intervals; underlined: the effective "
        "length by RULER's rule",
        header=("Arm", *map(length_label, at), "Effective, RULER's rule", "Effective, relative rule"),
        rows=tuple(rows),
        underlined=frozenset(underlined),
    )


def _tasks_table(arm: Arm, effective: tuple[EffectiveLength, EffectiveLength] | None) -> Table:
    """Tasks of one arm by length, the mean last."""
    rows = [
        (", ".join(filter(None, (measure.task, measure.part))).replace("_", " "), measure.texts(arm.by_length(measure)))
        for measure in dict.fromkeys(Measure.of(record) for record in arm.results if is_score(record))
    ]
    if effective is not None:
        rows.append(("mean", {score.length_tokens: _score_text(score) for score in effective[0].scores}))
    table = by_length(f"{arm.name}: scores by task, with 95% intervals", rows, first="Task")
    if effective is None or not effective[0].effective_tokens:
        return table
    column = table.header.index(length_label(effective[0].effective_tokens))
    return replace(table, underlined=frozenset({(-1, column), (len(rows) - 1, column)}))


def _score_text(score: MeanScore) -> str:
    if score.ci_low is None or score.ci_high is None:
        return f"{100 * score.value:.0f}%"
    # The interval of a mean is put together from its parts', and may reach past the ends of the scale.
    low, high = max(0.0, score.ci_low), min(1.0, score.ci_high)
    return f"{100 * score.value:.0f}% ({100 * low:.0f}{TO}{100 * high:.0f}%)"


def _effective_text(found: EffectiveLength) -> str:
    if not found.decided:
        return "not decided"
    return length_label(found.effective_tokens) if found.effective_tokens else "none"

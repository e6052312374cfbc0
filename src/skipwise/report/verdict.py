"""The verdict of a report in words: what the numbers say, with their intervals, and nothing beyond them."""

import math
from collections.abc import Iterator, Mapping, Sequence

from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.report.evidence import Evidence
from skipwise.report.quantities import bytes_text, seconds_text
from skipwise.report.records import LOG_RATIO, PASSKEY, PERPLEXITY, Arm, Measure
from skipwise.report.sections.costs import mean_seconds
from skipwise.report.sections.provenance import cautions
from skipwise.report.sections.quality import REGRESSION, difference_text
from skipwise.report.sections.retrieval import effective_lengths
from skipwise.window import length_label

_MOST_NAMES = 6


def verdict_words(evidence: Evidence) -> list[str]:
    """What was found, a sentence an entry: the best arm, how far it holds, what short text lost, what it cost."""
    parts = (
        *(_best_perplexity, _effective, _passkeys, _short_text),
        *(_training_cost, _step_costs, _failures, cautions),
    )
    words = [sentence for part in parts for sentence in part(evidence)]
    return words or ["Nothing was measured that a verdict could be read off."]


def _best_perplexity(evidence: Evidence) -> Iterator[str]:
    """The lowest perplexity at the longest length, how the others compare with it, and the base beside it."""
    longest, here = _at_the_longest(evidence, PERPLEXITY)
    if not here:
        return
    ranked = sorted(here, key=lambda name: here[name].value)
    best = ranked[0]
    written = {name: PERPLEXITY.text(record.value) for name, record in here.items()}
    level = [name for name in ranked if written[name] == written[best]]
    value = _value(here[best]) if len(level) == 1 else written[best]
    said = f"Perplexity at {_at(longest, evidence)}: {value} for {_names(level)}"
    if len(here) == 1:
        yield f"{said}."
        return
    differences = {
        one.arm: one
        for one in evidence.differences
        if (one.task, one.metric, one.length_tokens) == (PERPLEXITY.task, PERPLEXITY.metric, longest)
    }
    said += ", the lowest" + _apart(differences, ranked, level)
    base = evidence.base
    if base and base.name in here and base.name not in level:
        said += f"; {_value(here[base.name])} for {_name(base.name)}"
    yield f"{said}."
    if not differences and (close := [name for name in ranked[1:] if _overlap(here[name], here[best])]):
        yield f"By their own intervals {_name(best)} is not told apart from {_names(close)} there."
    if same := sorted((name for name, one in differences.items() if _holds_zero(one)), key=lambda name: name != best):
        reference = next(iter(differences.values())).reference
        yield f"The difference to {_name(reference)} may be nil at that length for {_names(same)}."


def _apart(differences: Mapping[str, Difference], ranked: Sequence[str], level: Sequence[str]) -> str:
    """How far the best arm is from the reference; where it is the reference, who comes nearest to it."""
    if one := differences.get(ranked[0]):
        return f"; {difference_text(one)} beside {_name(one.reference)}, paired by document"
    near = next((name for name in ranked[1:] if name in differences), None)
    if near is None:
        return ""
    nearest = _name(near) if near in level else f"the next, {_name(near)},"
    return f"; {nearest} has {difference_text(differences[near])}, paired by document"


def _effective(evidence: Evidence) -> Iterator[str]:
    """Effective length of every arm, the longest first, beside the target."""
    found = {name: ruler for name, (ruler, _) in effective_lengths(evidence).items()}
    if not found:
        return
    groups: dict[int, list[str]] = {}
    for name, ruler in found.items():
        groups.setdefault(ruler.effective_tokens, []).append(name)
    told = "; ".join(
        f"{length_label(tokens) if tokens else 'none'} for {_names(names)}"
        for tokens, names in sorted(groups.items(), reverse=True)
    )
    which = "the target is" if evidence.target_tokens else "measured to"
    some = next(iter(found.values()))
    tasks = some.scores[0].tasks
    over = tasks[0] if len(tasks) == 1 else f"the mean of {len(tasks)} tasks"
    rule = f"by the lower 95% bound of {over} reaching {some.threshold:.1%}"
    yield f"Effective context length, {rule}: {told}; {which} {length_label(evidence.advertised_tokens)}."
    if few := [f"{_name(name)} at {ruler.too_few.text}" for name, ruler in found.items() if ruler.too_few]:
        yield f"More samples are needed to tell: all answers are right for {', '.join(few)}."


def _passkeys(evidence: Evidence) -> Iterator[str]:
    """Keys found at the longest length by the best arm and the base."""
    longest, here = _at_the_longest(evidence, PASSKEY)
    if not here:
        return
    most = max(record.value for record in here.values())
    best = [name for name, record in here.items() if record.value == most]
    base = evidence.base
    beside = f", {_value(here[base.name])} by {base.name}" if base and base.name in here.keys() - {*best} else ""
    yield f"Passkeys found at {_at(longest, evidence)}: {_value(here[best[0]])} by {_names(best)}{beside}."


def _short_text(evidence: Evidence) -> Iterator[str]:
    """What was lost inside the original window: against the base token by token, or by perplexity."""
    measure = Measure(REGRESSION, LOG_RATIO)
    if lost := {arm.name: max(found.items()) for arm in evidence.arms if (found := arm.by_length(measure))}:
        told = _told(
            f"{_name(name)} {measure.text_with_interval(record)} at {length_label(length)}"
            for name, (length, record) in lost.items()
        )
        more = f"; and {len(lost) - _MOST_NAMES} more below" if len(lost) > _MOST_NAMES else ""
        yield f"On short text, perplexity beside the base: {told}{more}."
        return
    if (base := evidence.base) is None:
        return
    before = base.by_length(PERPLEXITY)
    within = max((length for length in before if length <= evidence.original_tokens), default=None)
    others = [arm for arm in evidence.arms if arm is not base and within in arm.by_length(PERPLEXITY)]
    if within is None or not others:
        return
    best = min(others, key=_end)
    after = _value(best.by_length(PERPLEXITY)[within])
    said = f"perplexity {after} for {_name(best.name)}, {_value(before[within])} for {base.name}"
    yield f"Within the original window, at {length_label(within)}: {said}."


def _training_cost(evidence: Evidence) -> Iterator[str]:
    trained = {name: arm.done for name, arm in evidence.compared.items() if arm.trained}
    seconds = {name: spent for name, runs in trained.items() if (spent := mean_seconds(runs)) is not None}
    peaks = [run.peak_bytes for runs in trained.values() for run in runs if run.peak_bytes]
    if seconds:
        low, high = (pick(seconds, key=lambda name: seconds[name]) for pick in (min, max))
        said = f"A training run took {seconds_text(seconds[low])}"
        if low != high:
            said += f" ({_name(low)}) to {seconds_text(seconds[high])} ({_name(high)})"
        yield said + (f" and {bytes_text(max(peaks))} at most." if peaks else ".")
    for run in evidence.runs:
        if run.seconds is not None:
            peak = f" and {bytes_text(run.peak_bytes)} at most" if run.peak_bytes else ""
            steps = f", {run.steps} steps" if run.steps else ""
            yield f"Training {run.name} took {seconds_text(run.seconds)}{peak}{steps}."


def _step_costs(evidence: Evidence) -> Iterator[str]:
    """How the cost of a step grows with the target: the first and the last length of the cheapest and the dearest."""
    by_arm: dict[str, list[tuple[int, float]]] = {}
    for cost in evidence.costs:
        if cost.step_seconds and cost.status == "done":
            by_arm.setdefault(cost.arm, []).append((cost.target_tokens, cost.step_seconds))
    spans = {arm: (min(done), max(done)) for arm, done in by_arm.items() if len(done) > 1}
    if not spans:
        return
    growth = {arm: last[1] / first[1] for arm, (first, last) in spans.items()}
    chosen = dict.fromkeys((min(growth, key=lambda a: growth[a]), max(growth, key=lambda a: growth[a])))
    told = "; ".join(
        f"{_name(arm)} {seconds_text(spans[arm][0][1])} for a target of {length_label(spans[arm][0][0])}, "
        f"{seconds_text(spans[arm][1][1])} for {length_label(spans[arm][1][0])}"
        for arm in chosen
    )
    first = min(((cost.target_tokens, cost.arm) for cost in evidence.costs if cost.status == "failed"), default=None)
    also = f"; {_name(first[1])} failed at {length_label(first[0])}" if first else ""
    yield f"A training step takes: {told}{also}."


def _failures(evidence: Evidence) -> Iterator[str]:
    failed = {name: arm for name, arm in evidence.compared.items() if arm.failed}
    if failed:
        told = _told(
            f"{_name(name)} ({' '.join(arm.failed[0].why.split())[:80]}"
            + (f", {len(arm.failed)} of {len(arm.runs)} seeds)" if arm.done else ")")
            for name, arm in failed.items()
        )
        yield f"{len(failed)} of {len(evidence.compared)} arms failed: {told}."


def _at_the_longest(evidence: Evidence, measure: Measure) -> tuple[int, dict[str, EvalResult]]:
    """The longest length at which some arm was measured so, and the records there by arm."""
    by_arm = {arm.name: arm.by_length(measure) for arm in evidence.arms}
    longest = max((length for found in by_arm.values() for length in found), default=0)
    return longest, {name: found[longest] for name, found in by_arm.items() if longest in found}


def _end(arm: Arm) -> tuple[int, float]:
    """Orders arms by how far they were measured, the longest first, and by perplexity there."""
    longest, record = max(arm.by_length(PERPLEXITY).items())
    return -longest, record.value


def _holds_zero(one: Difference) -> bool:
    return one.ci_low is not None and one.ci_high is not None and one.ci_low <= 0 <= one.ci_high


def _overlap(first: EvalResult, second: EvalResult) -> bool:
    if None in (first.ci_low, first.ci_high, second.ci_low, second.ci_high):
        return math.isclose(first.value, second.value)
    return first.ci_low <= second.ci_high and second.ci_low <= first.ci_high  # type: ignore[operator]


def _value(record: EvalResult) -> str:
    return Measure.of(record).text_with_interval(record)


def _at(length: int, evidence: Evidence) -> str:
    times = length / evidence.original_tokens
    beyond = f", {times:g} times the original window" if times > 1 and times == int(times) else ""
    return f"{length_label(length)} tokens{beyond}"


def _told(words: Iterator[str]) -> str:
    return "; ".join(list(words)[:_MOST_NAMES])


def _name(name: str) -> str:
    """A name as it stands in a sentence: in quotation marks where a comma in it would be taken for the sentence's."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}" if set(name) & set(",;:.()") else name


def _names(names: Sequence[str]) -> str:
    shown = [_name(name) for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        return f"{', '.join(shown)} and {len(names) - _MOST_NAMES} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))

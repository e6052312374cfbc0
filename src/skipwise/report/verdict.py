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
        _best_perplexity,
        _effective,
        _passkeys,
        _short_text,
        _training_cost,
        _step_costs,
        _failures,
        cautions,
    )
    words = [sentence for part in parts for sentence in part(evidence)]
    return words or ["Nothing was measured that a verdict could be read off."]


def _best_perplexity(evidence: Evidence) -> Iterator[str]:
    """The lowest perplexity at the longest length, how the others compare with it, and the base beside it."""
    by_arm = {arm.name: arm.by_length(PERPLEXITY) for arm in evidence.arms}
    longest = max((length for found in by_arm.values() for length in found), default=None)
    if longest is None:
        return
    here = {name: found[longest] for name, found in by_arm.items() if longest in found}
    ranked = sorted(here, key=lambda name: here[name].value)
    best = ranked[0]
    written = {name: PERPLEXITY.text(record.value) for name, record in here.items()}
    level = [name for name in ranked if written[name] == written[best]]
    value = _value(here[best]) if len(level) == 1 else written[best]
    said = f"Perplexity at {_at(longest, evidence)}: {value} for {_names(level)}"
    if len(here) == 1:
        yield f"{said}."
        return
    said += ", the lowest"
    base = evidence.base
    differences = _differences(evidence, PERPLEXITY, longest)
    if best in differences:
        one = differences[best]
        said += f"; {difference_text(one)} beside {_name(one.reference)}, paired by document"
    elif differences:
        # The reference is the best: who comes nearest to it?
        near = next((name for name in ranked[1:] if name in differences), None)
        if near:
            nearest = _name(near) if near in level else f"the next, {_name(near)},"
            said += f"; {nearest} has {difference_text(differences[near])}, paired by document"
    if base and base.name in here and base.name not in level:
        said += f"; {_value(here[base.name])} for {_name(base.name)}"
    yield f"{said}."
    if not differences and (close := [name for name in ranked[1:] if _overlap(here[name], here[best])]):
        yield f"By their own intervals {_name(best)} is not told apart from {_names(close)} there."
    if differences and (same := _undecided(differences, best)):
        yield f"The difference to {_name(_reference(differences))} may be nil at that length for {_names(same)}."


def _effective(evidence: Evidence) -> Iterator[str]:
    """Effective length of every arm, the longest first, beside the target."""
    found = effective_lengths(evidence)
    if not found:
        return
    groups: dict[int, list[str]] = {}
    for name, (ruler, _) in found.items():
        groups.setdefault(ruler.effective_tokens, []).append(name)
    told = "; ".join(
        f"{length_label(tokens) if tokens else 'none'} for {_names(names)}"
        for tokens, names in sorted(groups.items(), reverse=True)
    )
    advertised = (
        f"the target is {length_label(evidence.target_tokens)}"
        if evidence.target_tokens
        else f"measured to {length_label(evidence.longest_tokens)}"
    )
    some = next(iter(found.values()))[0]
    tasks = some.scores[0].tasks
    over = tasks[0] if len(tasks) == 1 else f"the mean of {len(tasks)} tasks"
    rule = f"by the lower 95% bound of {over} reaching {some.threshold:.1%}"
    yield f"Effective context length, {rule}: {told}; {advertised}."
    if few := {name: ruler.too_few for name, (ruler, _) in found.items() if ruler.too_few}:
        said = ", ".join(f"{_name(name)} at {score.text}" for name, score in few.items())
        yield f"More samples are needed to tell: all answers are right for {said}."


def _passkeys(evidence: Evidence) -> Iterator[str]:
    """Keys found at the longest length by the best arm and the base."""
    by_arm = {arm.name: arm.by_length(PASSKEY) for arm in evidence.arms}
    longest = max((length for found in by_arm.values() for length in found), default=None)
    if longest is None:
        return
    here = {name: found[longest] for name, found in by_arm.items() if longest in found}
    most = max(record.value for record in here.values())
    best = [name for name, record in here.items() if record.value == most]
    said = f"Passkeys found at {_at(longest, evidence)}: {_value(here[best[0]])} by {_names(best)}"
    base = evidence.base
    if base and base.name in here and base.name not in best:
        said += f", {_value(here[base.name])} by {base.name}"
    yield f"{said}."


def _short_text(evidence: Evidence) -> Iterator[str]:
    """What was lost inside the original window: against the base token by token, or by perplexity."""
    measure = Measure(REGRESSION, LOG_RATIO)
    lost = {
        arm.name: (length, by_length[length])
        for arm in evidence.arms
        if (by_length := arm.by_length(measure)) and (length := max(by_length))
    }
    if lost:
        told = "; ".join(
            f"{_name(name)} {measure.text_with_interval(record)} at {length_label(length)}"
            for name, (length, record) in list(lost.items())[:_MOST_NAMES]
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
    best = _best_at_the_end(others)
    after = best.by_length(PERPLEXITY)[within]
    yield (
        f"Within the original window, at {length_label(within)}: perplexity {_value(after)} for {_name(best.name)}, "
        f"{_value(before[within])} for {base.name}."
    )


def _training_cost(evidence: Evidence) -> Iterator[str]:
    compared = {} if evidence.comparison is None else evidence.comparison.arms
    seconds = {
        name: spent for name, arm in compared.items() if arm.trained and (spent := mean_seconds(arm.done)) is not None
    }
    peaks = [run.peak_bytes for arm in compared.values() if arm.trained for run in arm.done if run.peak_bytes]
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
    costs = () if evidence.comparison is None else evidence.comparison.costs
    spans = {}
    for arm in {cost.arm: 0 for cost in costs}:
        done = sorted(
            (c.target_tokens, c.step_seconds) for c in costs if c.arm == arm and c.step_seconds and c.status == "done"
        )
        if len(done) > 1:
            spans[arm] = (done[0], done[-1])
    if not spans:
        return
    growth = {arm: last[1] / first[1] for arm, (first, last) in spans.items()}
    chosen = dict.fromkeys((min(growth, key=lambda a: growth[a]), max(growth, key=lambda a: growth[a])))
    told = "; ".join(
        f"{_name(arm)} {seconds_text(spans[arm][0][1])} for a target of {length_label(spans[arm][0][0])}, "
        f"{seconds_text(spans[arm][1][1])} for {length_label(spans[arm][1][0])}"
        for arm in chosen
    )
    failed = sorted({(cost.target_tokens, cost.arm) for cost in costs if cost.status == "failed"})
    also = f"; {_name(failed[0][1])} failed at {length_label(failed[0][0])}" if failed else ""
    yield f"A training step takes: {told}{also}."


def _failures(evidence: Evidence) -> Iterator[str]:
    compared = {} if evidence.comparison is None else evidence.comparison.arms
    failed = {name: arm for name, arm in compared.items() if arm.failed}
    if failed:
        told = "; ".join(
            f"{_name(name)} ({' '.join(arm.failed[0].why.split())[:80]}"
            + (f", {len(arm.failed)} of {len(arm.runs)} seeds)" if arm.done else ")")
            for name, arm in list(failed.items())[:_MOST_NAMES]
        )
        yield f"{len(failed)} of {len(compared)} arms failed: {told}."


def _differences(evidence: Evidence, measure: Measure, length: int) -> dict[str, Difference]:
    """By arm, those of one measure at one length."""
    found = () if evidence.comparison is None else evidence.comparison.differences
    return {
        one.arm: one
        for one in found
        if (one.task, one.metric, one.length_tokens) == (measure.task, measure.metric, length)
    }


def _undecided(differences: Mapping[str, Difference], best: str) -> list[str]:
    """Arms whose paired interval holds zero; the best arm first."""
    same = [
        name
        for name, one in differences.items()
        if one.ci_low is not None and one.ci_high is not None and one.ci_low <= 0 <= one.ci_high
    ]
    return sorted(same, key=lambda name: name != best)


def _reference(differences: Mapping[str, Difference]) -> str:
    return next(iter(differences.values())).reference


def _best_at_the_end(arms: Sequence[Arm]) -> Arm:
    """The arm with the lowest perplexity at its longest length."""

    def end(arm: Arm) -> tuple[int, float]:
        found = arm.by_length(PERPLEXITY)
        return -max(found), found[max(found)].value

    return min(arms, key=end)


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


def _name(name: str) -> str:
    """A name as it stands in a sentence: in quotation marks where a comma in it would be taken for the sentence's."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}" if set(name) & set(",;:.()") else name


def _names(names: Sequence[str]) -> str:
    shown = [_name(name) for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        return f"{', '.join(shown)} and {len(names) - _MOST_NAMES} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

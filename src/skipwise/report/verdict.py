"""The verdict of a report in words: what the numbers say, with their intervals, and nothing beyond them."""

import math
from collections.abc import Iterator

from skipwise.records.comparison import Difference
from skipwise.records.results import EvalResult
from skipwise.report.effective import GROUPS, Group
from skipwise.report.evidence import LOG_RATIO, PASSKEY, Arm, Evidence, Measure
from skipwise.report.measured import REGRESSION, effective_lengths
from skipwise.report.ran import cautions, mean_seconds
from skipwise.report.samples import least_samples
from skipwise.report.words import MOST_NAMES, say


def verdict_words(evidence: Evidence, *, decided: bool = False) -> list[str]:
    """The findings, a sentence an entry: the best arm, how far it holds, what short text lost, what it cost.

    Args:
        evidence: what was measured.
        decided: whether a decision stands before them, which has told of keys and of short text.
    """
    told = () if decided else (_passkeys, _short_text)
    parts = (_best_perplexity, _effective, *told, _training, _steps, _failures, cautions)
    words = [sentence for part in parts for sentence in part(evidence)]
    return words or say("verdict.nothing")


def _best_perplexity(evidence: Evidence) -> list[str]:
    """The lowest perplexity at the longest length, how the others compare with it, and the base beside it."""
    measure = evidence.perplexity
    longest, here = _at_the_longest(evidence, measure)
    if not here:
        return []
    ranked = sorted(here, key=lambda name: here[name].value)
    best, base = ranked[0], evidence.base
    written = {name: measure.text(record.value) for name, record in here.items()}
    level = [name for name in ranked if written[name] == written[best]]
    differences = {
        one.arm: one
        for one in evidence.differences
        if (one.task, one.metric, one.length_tokens) == (measure.task, measure.metric, longest)
    }
    close = [name for name in ranked[1:] if not differences and _overlap(here[name], here[best])]
    return say(
        "verdict.perplexity",
        longest=longest,
        original=evidence.original_tokens,
        here=here,
        best=best,
        level=level,
        value=measure.text_with_interval(here[best]) if len(level) == 1 else written[best],
        differences=differences,
        reference=next((one.reference for one in differences.values()), None),
        near=next((name for name in ranked[1:] if name in differences), None),
        base=base.name if base and base.name in here and base.name not in level else None,
        close=close,
        same=sorted((name for name, one in differences.items() if _holds_zero(one)), key=lambda name: name != best),
    )


def _effective(evidence: Evidence) -> list[str]:
    """Effective length of every arm, the longest first, beside the target."""
    return [words for group in GROUPS for words in _effective_of(evidence, group)]


def _effective_of(evidence: Evidence, group: Group) -> list[str]:
    found = {name: ruler for name, (ruler, _) in effective_lengths(evidence, group).items()}
    if not found:
        return []
    groups: dict[int, list[str]] = {}
    for name, ruler in found.items():
        groups.setdefault(ruler.effective_tokens, []).append(name)
    some = next(iter(found.values()))
    few = next((ruler.too_few for ruler in found.values() if ruler.too_few), None)
    return say(
        "verdict.effective",
        group=group,
        tasks=some.scores[0].tasks,
        threshold=some.threshold,
        groups=sorted(groups.items(), reverse=True),
        target=evidence.target_tokens,
        advertised=evidence.advertised_tokens,
        few=few,
        least=few and least_samples(len(few.tasks), few.chances),
    )


def _passkeys(evidence: Evidence) -> list[str]:
    """Keys found at the longest length by the best arm and the base."""
    longest, here = _at_the_longest(evidence, PASSKEY)
    if not here:
        return []
    most = max(record.value for record in here.values())
    best = [name for name, record in here.items() if record.value == most]
    base = evidence.base.name if evidence.base and evidence.base.name in here.keys() - {*best} else None
    return say("verdict.passkeys", longest=longest, original=evidence.original_tokens, here=here, best=best, base=base)


def _short_text(evidence: Evidence) -> list[str]:
    """What was lost inside the original window: against the base token by token, or by perplexity."""
    found = [(arm.name, arm.by_length(Measure(REGRESSION, LOG_RATIO))) for arm in evidence.arms]
    if lost := [(name, *max(records.items())) for name, records in found if records]:
        return say("verdict.regression", lost=lost, most=MOST_NAMES)
    base, measure = evidence.base, evidence.perplexity
    before = base.by_length(measure) if base else {}
    within = max((length for length in before if length <= evidence.original_tokens), default=None)
    others = [arm for arm in evidence.arms if arm is not base and within in arm.by_length(measure)]
    if base is None or within is None or not others:
        return []
    best = min(others, key=lambda arm: _end(arm, measure))
    after = best.by_length(measure)[within]
    return say("verdict.short_text", within=within, best=best.name, after=after, base=base.name, before=before[within])


def _training(evidence: Evidence) -> Iterator[str]:
    trained = {name: arm.done for name, arm in evidence.compared.items() if arm.trained}
    seconds = [(name, spent) for name, runs in trained.items() if (spent := mean_seconds(runs)) is not None]
    if seconds:
        low, high = (pick(seconds, key=lambda one: one[1]) for pick in (min, max))
        peak = max((run.peak_bytes or 0 for runs in trained.values() for run in runs), default=0)
        yield from say("verdict.training", low=low, high=high, peak=peak)
    for run in evidence.runs:
        if run.seconds is not None:
            yield from say("verdict.run", run=run)


def _steps(evidence: Evidence) -> list[str]:
    """How the cost of a step grows with the target: first and last length of the arms where it grows least and most."""
    by_arm: dict[str, list[tuple[int, float]]] = {}
    for cost in evidence.costs:
        if cost.step_seconds and cost.status == "done":
            by_arm.setdefault(cost.arm, []).append((cost.target_tokens, cost.step_seconds))
    spans = [(arm, min(done), max(done)) for arm, done in by_arm.items() if len(done) > 1]
    if not spans:
        return []
    growth = [last[1] / first[1] for _, first, last in spans]
    chosen = dict.fromkeys((growth.index(min(growth)), growth.index(max(growth))))
    failed = min(((cost.target_tokens, cost.arm) for cost in evidence.costs if cost.status == "failed"), default=None)
    return say("verdict.steps", spans=[spans[index] for index in chosen], failed=failed)


def _failures(evidence: Evidence) -> list[str]:
    failed = {name: arm for name, arm in evidence.compared.items() if arm.failed}
    return say("verdict.failures", failed=failed, compared=evidence.compared, most=MOST_NAMES) if failed else []


def _at_the_longest(evidence: Evidence, measure: Measure) -> tuple[int, dict[str, EvalResult]]:
    """The longest length at which some arm has this measure, and the records there by arm."""
    by_arm = {arm.name: arm.by_length(measure) for arm in evidence.arms}
    longest = max((length for found in by_arm.values() for length in found), default=0)
    return longest, {name: found[longest] for name, found in by_arm.items() if longest in found}


def _end(arm: Arm, measure: Measure) -> tuple[int, float]:
    """Orders arms by how far they were measured, the longest first, and by perplexity there."""
    longest, record = max(arm.by_length(measure).items())
    return -longest, record.value


def _holds_zero(one: Difference) -> bool:
    return one.ci_low is not None and one.ci_high is not None and one.ci_low <= 0 <= one.ci_high


def _overlap(first: EvalResult, second: EvalResult) -> bool:
    if None in (first.ci_low, first.ci_high, second.ci_low, second.ci_high):
        return math.isclose(first.value, second.value)
    return first.ci_low <= second.ci_high and second.ci_low <= first.ci_high  # type: ignore[operator]

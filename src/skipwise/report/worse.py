"""What an extension costs its users: short text, time and memory of long requests, kinds of question that fall."""

import math
from collections.abc import Mapping
from typing import Any

from skipwise.report.contest import Contest
from skipwise.report.evidence import LOG_RATIO, Measure
from skipwise.report.words import say

_MOST_KINDS = 3


def what_gets_worse(contest: Contest) -> list[str]:
    """A sentence for each cost that was measured, and whether short text loses anything."""
    extended = contest.extended
    if extended is None:
        return []
    return say(
        "decision.worse",
        original=contest.evidence.original_tokens,
        task=contest.task,
        lost=(lost := max(extended.by_length(Measure("regression", LOG_RATIO)).items(), default=None)),
        same_top=extended.by_length(Measure("regression", "same_top")).get(lost[0]) if lost else None,
        within=short_perplexities(contest),
        requests=_requests(contest),
        fallen=_fallen(contest),
        both=_tuning(contest) == "full",
    )


def short_perplexities(contest: Contest) -> tuple[int, Any, Any] | None:
    """Length, and perplexities of the base and the extended model, within the original window."""
    if contest.base is None or contest.extended is None:
        return None
    before, after = (arm.by_length(contest.evidence.perplexity) for arm in (contest.base, contest.extended))
    within = [length for length in before.keys() & after.keys() if length <= contest.evidence.original_tokens]
    return (max(within), before[max(within)], after[max(within)]) if within else None


def _requests(contest: Contest) -> list[dict[str, Any]]:
    """Seconds and bytes of the longest request up to the target, and of the longest within the original window."""
    if contest.extended is None:
        return []
    found = {
        name: contest.extended.by_length(Measure("serving", f"{name}"))
        for name in ("prefill_seconds", "token_seconds", "cache_bytes", "peak_bytes")
    }
    lengths = [length for length in found["prefill_seconds"] if length <= contest.target]
    within = [length for length in lengths if length <= contest.evidence.original_tokens]
    chosen = dict.fromkeys((max(lengths, default=None), max(within, default=None)))
    return [
        {"length": length} | {name: _value(records, length) for name, records in found.items()}
        for length in chosen
        if length is not None
    ]


def _fallen(contest: Contest) -> list[tuple[Any, ...]]:
    """Kinds of question that fall: within the original window against the base, at the target against both."""
    return [
        one
        for one in contest.fallen()
        if one[-1] == contest.longest or (one[-1] <= contest.evidence.original_tokens and one[1] is contest.base)
    ][:_MOST_KINDS]


def _tuning(contest: Contest) -> str | None:
    """What was trained: `full`, `lora`, `qlora`; None if unknown."""
    evidence = contest.evidence
    settings: list[Any] = [run.config.get("tuning") for run in evidence.runs]
    if evidence.comparison and contest.extended:
        arm = evidence.comparison.arms.get(contest.extended.name)
        shared = evidence.comparison.settings
        # Full tuning is what a run does that does not say.
        default = {"kind": "full"} if shared else None
        settings = [arm.settings.get("tuning") if arm else None, shared.get("tuning", default), *settings]
    return next((str(one["kind"]) for one in settings if isinstance(one, Mapping) and "kind" in one), None)


def _value(records: Mapping[int, Any], length: int) -> float | None:
    return records[length].value if length in records and math.isfinite(records[length].value) else None

"""The few numbers that a decision rests on, as tables that fit a phone."""

from collections.abc import Iterator
from functools import partial

from skipwise.report.contest import Contest, counts
from skipwise.report.evidence import Evidence, Measure
from skipwise.report.quantities import ABSENT, bytes_text, duration_text, hours_text, machine_text, money_text
from skipwise.report.tables import Table
from skipwise.report.words import say
from skipwise.window import length_label


def decisive_tables(evidence: Evidence) -> list[Table]:
    """Questions by length and arm, seconds and memory of requests, the full run by machine; those that are known."""
    contest = Contest.of(evidence)
    if contest is None:
        return []
    return [*_questions(contest), *_requests(contest), *_full_runs(evidence)]


def _questions(contest: Contest) -> Iterator[Table]:
    arms = {"extended": contest.extended, "interpolation only": contest.interpolated, "base": contest.base}
    found = {
        name: {at: count for at in counts(arm, contest.task) if (count := contest.count(arm, at))}
        for name, arm in arms.items()
        if arm is not None
    }
    lengths = sorted({length for of_arm in found.values() for length in of_arm})
    if contest.task is None or not lengths:
        return
    (title,) = say("decision.titles.questions", task=contest.task)
    yield Table(
        title=title,
        header=("Tokens", *found),
        rows=tuple(
            (length_label(at), *(of_arm[at].text if at in of_arm else ABSENT for of_arm in found.values()))
            for at in lengths
        ),
    )


def _requests(contest: Contest) -> Iterator[Table]:
    if contest.extended is None:
        return
    columns = {
        "to read": ("prefill_seconds", duration_text),
        "a new token": ("token_seconds", duration_text),
        "cache": ("cache_bytes", partial(bytes_text, digits=2)),
    }
    found = {
        title: (contest.extended.by_length(Measure("serving", metric)), text)
        for title, (metric, text) in columns.items()
    }
    found = {title: one for title, one in found.items() if one[0]}
    lengths = sorted({length for records, _ in found.values() for length in records})
    if lengths:
        yield Table(
            title=say("decision.titles.requests")[0],
            header=("Tokens", *found),
            rows=tuple(
                (
                    length_label(at),
                    *(text(records[at].value) if at in records else ABSENT for records, text in found.values()),
                )
                for at in lengths
            ),
        )


def _full_runs(evidence: Evidence) -> Iterator[Table]:
    pilot = evidence.pilot
    if pilot and (runs := pilot.full_runs):
        yield Table(
            title=say("decision.titles.full_runs", prices=pilot.made.get("prices"))[0],
            header=("Machine", "Time", "Money", "Memory"),
            rows=tuple(
                (
                    machine_text(run),
                    _brief(hours_text(run.hours)) if run.fits else "too small",
                    ABSENT if run.cost is None or not run.fits else _brief(money_text(run.cost)),
                    bytes_text(run.total_bytes, digits=2),
                )
                for run in runs
            ),
        )


def _brief(text: str) -> str:
    """The same in fewer letters, for a cell."""
    return text.removeprefix("about ").replace("less than a minute", "< 1 minute").replace("less than ", "< ")

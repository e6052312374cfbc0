"""The few numbers that a decision rests on, as tables that fit a phone."""

from collections.abc import Iterator

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
    found = {name: counts(arm, contest.task) for name, arm in arms.items() if arm is not None}
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
        "cache": ("cache_bytes", bytes_text),
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
    runs = evidence.pilot.full_runs if evidence.pilot else ()
    if runs:
        yield Table(
            title=say("decision.titles.full_runs")[0],
            header=("Machine", "Time", "Money", "Memory"),
            rows=tuple(
                (
                    machine_text(run),
                    hours_text(run.hours).removeprefix("about ") if run.fits else "too small",
                    ABSENT if run.cost is None or not run.fits else money_text(run.cost).removeprefix("about "),
                    bytes_text(run.total_bytes),
                )
                for run in runs
            ),
        )

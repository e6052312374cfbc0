"""The operations of a server for people: sentences, tables and a page. It has no text, and names no key or holder."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from skipwise import __version__
from skipwise.report.page import Section, render_page
from skipwise.report.quantities import ABSENT, seconds_text
from skipwise.report.tables import Table, table
from skipwise.report.words import say, section
from skipwise.serve.operations import ANSWERED, LEFT, Durations, Limit, Operations, Tally

# The limit that is told as an example would have refused at most this share of the role's requests, if one does.
_FEW = 0.05


def in_short(found: Operations) -> list[str]:
    """The findings, one sentence an entry; none if nobody asked for an answer."""
    total = found.where()
    if not total.requests:
        return [f"No request for an answer is in the log, only {found.others:,} to other routes."]
    reasons = {name: number for name, number in total.outcomes.items() if name not in (ANSWERED, LEFT)}
    best = _example(found)
    return say(
        "operations.short",
        total=total,
        refused=sum(reasons.values()),
        reason=_reason(max(reasons, key=lambda name: reasons[name])) if reasons else "",
        left=total.outcomes[LEFT],
        window=found.original_tokens,
        computed=found.where(lambda cell: cell.ran).requests,
        beyond=found.where(lambda cell: cell.ran and cell.beyond),
        waits=total.waits,
        best=best,
        who=best and (f"the role {best.role}" if best.role not in (None, "-") else "requests without a role"),
        of=best and found.where(lambda cell: cell.role == best.role).requests,
    )


def sections(found: Operations) -> list[Section]:
    """What there is to say of each subject, in reading order."""
    total = found.where()
    ran = found.where(lambda cell: cell.ran)
    if not total.requests:
        return []
    made = [
        section("operations.modes", tables=_modes(found, total)),
        section("operations.roles", tables=_roles(found, total)),
        section("operations.outcomes", tables=_outcomes(found, total)),
        section("operations.waiting", tables=_waiting(found)),
        section("operations.lengths", tables=_lengths(found, ran)),
        section("operations.limits", tables=_limits(found, total)),
        section("operations.time", tables=_over_time(found, total)),
    ]
    missing = section(
        "operations.missing",
        older=found.older,
        uncomputed=ran.requests - ran.computed,
        computed=ran.computed,
        ran=ran.requests,
        estimated=ran.estimated,
        window=found.original_tokens,
        windows=len(found.windows),
        broken=found.broken,
        torn=found.torn,
    )
    return [one for one in made if one.tables] + ([missing] if missing.words else [])


def title_of(found: Operations) -> str:
    """The title, with the time of the first and of the last request."""
    first, last = (
        datetime.fromisoformat(time).strftime("%d %b %Y %H:%M").lstrip("0")
        for time in (found.first_time, found.last_time)
    )
    (title,) = say("operations.title", first=first, last=last)
    return title


def write_operations_page(found: Operations, path: Path, files: Sequence[Path]) -> None:
    """Writes the page; an older one is replaced."""
    made = {
        "files": ", ".join(file.name for file in files),
        "requests": f"{found.where().requests:,} for answers, {found.others:,} to other routes",
        "skipwise": __version__,
    }
    render_page(title_of(found), sections(found), path, verdict=in_short(found), made=made)


def operations_json(found: Operations) -> dict[str, Any]:
    """Everything that the page shows, as JSON values; seconds and tokens are numbers."""
    total = found.where()
    return {
        "title": title_of(found),
        "verdict": in_short(found),
        "first_time": found.first_time,
        "last_time": found.last_time,
        "original_tokens": found.original_tokens,
        "requests": _values(total),
        "needed_long": _values(found.where(lambda cell: cell.ran and cell.beyond)),
        "modes": {mode or "none": _values(_of(found, mode=mode)) for mode in ("short", "long", None)},
        "roles": {
            _role(role): {**_values(_of(found, role=role)), "keys": len(found.keys.get(role, ()))}
            for role in found.roles
        },
        "lengths": {str(length): _values(_of(found, length=length, ran=True)) for length in _known_lengths(found)},
        "limits": [
            {"role": _role(limit.role), "max_context": limit.tokens, **_values(limit.refused)}
            for limit in found.limits()
        ],
        "time": {time: _values(tally) for time, tally in found.by_time().items()},
        "other_requests": found.others,
        "older_lines": found.older,
        "broken_lines": found.broken,
        "torn_lines": found.torn,
    }


def _values(tally: Tally) -> dict[str, Any]:
    def seconds(durations: Durations) -> dict[str, Any]:
        found = {name: durations.quantile(share) for name, share in (("median", 0.5), ("p95", 0.95))}
        return {**found, "worst": durations.most if durations.count else None, "requests": durations.count}

    return {
        "requests": tally.requests,
        "outcomes": dict(tally.outcomes),
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "compute_seconds": round(tally.compute_seconds, 4) if tally.computed else None,
        "wait_seconds": seconds(tally.waits),
        "first_token_seconds": seconds(tally.first_tokens),
    }


def _of(found: Operations, **values: Any) -> Tally:
    """The sum over the cells with these values."""
    return found.where(lambda cell: all(getattr(cell, name) == value for name, value in values.items()))


def _known_lengths(found: Operations) -> list[int]:
    return sorted({cell.length for cell in found.cells if cell.ran})


def _example(found: Operations) -> Limit | None:
    """Of the limits that refuse few requests of their role, the one that saves the most; else the mildest."""
    saving = [limit for limit in found.limits() if limit.refused.compute_seconds]
    few = [limit for limit in saving if limit.refused.requests <= _FEW * _of(found, role=limit.role).requests]
    if few:
        return max(few, key=lambda limit: limit.refused.compute_seconds)
    return min(saving, key=lambda limit: (limit.refused.requests, -limit.refused.compute_seconds), default=None)


def _modes(found: Operations, total: Tally) -> list[Table]:
    names = {"short": "short: the base model", "long": "long: the extended model", None: "refused before"}
    tallies = {name: _of(found, mode=mode) for mode, name in names.items()}
    rows = (
        (name, *_counts(tally), *_compute(tally, total), f"{tally.prompt_tokens:,}", f"{tally.completion_tokens:,}")
        for name, tally in tallies.items()
        if tally.requests
    )
    header = ("Mode", "Requests", "Answered", "Compute time", "Share of it", "Prompt tokens", "New tokens")
    return table("Requests, tokens and compute time by mode", header, rows)


def _roles(found: Operations, total: Tally) -> list[Table]:
    def row(role: str | None) -> tuple[str, ...]:
        tally = _of(found, role=role)
        beyond = found.where(lambda cell: cell.role == role and cell.ran and cell.beyond)
        keys = f"{len(found.keys.get(role, ())):,}"
        return (
            _role(role),
            keys,
            *_counts(tally),
            f"{beyond.requests:,}",
            *_compute(tally, total),
            f"{tally.tokens:,}",
        )

    header = ("Role", "Keys", "Requests", "Answered", "Needed the long mode", "Compute time", "Share of it", "Tokens")
    return table("Requests, tokens and compute time by role", header, map(row, found.roles))


def _outcomes(found: Operations, total: Tally) -> list[Table]:
    def row(name: str, number: int) -> tuple[str, ...]:
        by_role = {_role(role): _of(found, role=role).outcomes[name] for role in found.roles}
        roles = ", ".join(f"{role} {count:,}" for role, count in by_role.items() if count)
        return (_reason(name), f"{number:,}", _percent(number, total.requests), roles)

    header = ("Outcome", "Requests", "Share", "By role")
    return table("Outcomes", header, (row(*one) for one in total.outcomes.most_common()), wraps=True)


def _waiting(found: Operations) -> list[Table]:
    named = {f"{mode} mode": _of(found, mode=mode) for mode in ("short", "long")}
    if len(found.roles) > 1:
        named |= {f"role {_role(role)}": _of(found, role=role) for role in found.roles}
    header = ("", "Requests", "Median", "95%", "Worst")

    def rows(durations: Iterable[tuple[str, Durations]]) -> Iterable[Sequence[str]]:
        for name, one in durations:
            if one.count:
                times = (one.quantile(0.5), one.quantile(0.95), one.most)
                yield (name, f"{one.count:,}", *(seconds_text(time or 0.0) for time in times))

    return [
        *table("Wait in the queue", header, rows((name, one.waits) for name, one in named.items())),
        *table("Time to the first text", header, rows((name, one.first_tokens) for name, one in named.items())),
    ]


def _lengths(found: Operations, ran: Tally) -> list[Table]:
    def row(length: int) -> tuple[str, ...]:
        tally = found.where(lambda cell: cell.ran and cell.length == length)
        long = _percent(tally.in_long_mode, tally.requests)
        share = _percent(tally.requests, ran.requests)
        return (f"up to {length:,}", f"{tally.requests:,}", share, *_compute(tally, ran), long, f"{tally.tokens:,}")

    header = ("Tokens asked for", "Requests", "Share", "Compute time", "Share of it", "In long mode", "Tokens")
    return table("Computed requests by length", header, map(row, _known_lengths(found)))


def _limits(found: Operations, total: Tally) -> list[Table]:
    def row(limit: Limit) -> tuple[str, ...]:
        refused, of = limit.refused, _of(found, role=limit.role).requests
        window = " (the window)" if limit.tokens == found.original_tokens else ""
        return (
            _role(limit.role),
            f"{limit.tokens:,}{window}",
            f"{refused.requests:,}",
            _percent(refused.requests, of),
            *_compute(refused, total),
            f"{refused.tokens:,}",
        )

    header = ("Role", "Limit, tokens", "Refused", "Of its requests", "Compute saved", "Of all compute", "Tokens saved")
    return table("What lower limits would have saved", header, map(row, found.limits()))


def _over_time(found: Operations, total: Tally) -> list[Table]:
    def row(time: str, tally: Tally) -> tuple[str, ...]:
        wait = tally.waits.quantile(0.95)
        return (
            time.replace("T", " ") + (":00" if "T" in time else ""),
            *_counts(tally),
            f"{tally.in_long_mode:,}",
            f"{tally.tokens:,}",
            *_compute(tally, total),
            ABSENT if wait is None else seconds_text(wait),
        )

    header = (
        "Time (UTC)",
        "Requests",
        "Answered",
        "In long mode",
        "Tokens",
        "Compute time",
        "Share of it",
        "Wait, 95%",
    )
    return table("Requests over time", header, (row(*one) for one in found.by_time().items()))


def _counts(tally: Tally) -> tuple[str, str]:
    return f"{tally.requests:,}", f"{tally.answered:,}"


def _compute(tally: Tally, total: Tally) -> tuple[str, str]:
    """Compute time, and its share of the total; absent where the log does not say it."""
    if not tally.computed:
        return (ABSENT, ABSENT) if tally.requests else (seconds_text(0), _percent(0, total.compute_seconds))
    return seconds_text(tally.compute_seconds), _percent(tally.compute_seconds, total.compute_seconds)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ABSENT


def _role(role: str | None) -> str:
    return {None: "not in the log", "-": "no key"}.get(role, str(role))


def _reason(name: str) -> str:
    try:
        return say(f"operations.reasons.{name}")[0]
    except KeyError:  # The status of a line without a code, or the code of another version.
        return f"status {name}" if name.isdecimal() else name

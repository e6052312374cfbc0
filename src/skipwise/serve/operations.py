"""What an audit log says of the running of a server: counts, tokens, seconds, by mode, role, length and hour.

Lines are read one at a time and added to tallies, so memory does not grow with the log.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from skipwise.errors import ConfigError
from skipwise.inference.engine import Mode
from skipwise.serve.audit import AuditRecord, read_log

ANSWER_ENDPOINTS = ("/v1/completions", "/v1/chat/completions")
"""The routes whose requests are counted; the others compute nothing."""

ANSWERED, LEFT = "answered", "client_left"
"""Outcomes beside the codes of refusals."""

# Neighbouring bounds of the histogram of seconds differ by this much, so a quantile is off by 1% at most.
_STEP = math.log(1.02)
_LEAST_SECONDS, _ZERO_BIN = 1e-4, -(10**6)
_HOURLY_DAYS, _DAILY_DAYS = 3, 92


class Cell(NamedTuple):
    """What requests are told apart by.

    Attributes:
        role: of the key; "-" for none, None if the line does not say.
        mode: None if it was refused before.
        ran: whether any of it was computed: it was let in, and its client did not leave before its turn.
        length: the smallest power of two that holds the tokens that it asked for; 0 if unknown.
        beyond: whether these are more than the original window; None if unknown.
    """

    role: str | None
    mode: Mode | None
    ran: bool
    length: int
    beyond: bool | None


@dataclass(slots=True)
class Durations:
    """A histogram of seconds in bounded memory: exact count, sum and maximum, quantiles to within 1%."""

    count: int = 0
    most: float = 0.0
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        """Counts a duration."""
        self.count += 1
        self.most = max(self.most, seconds)
        self.bins[round(math.log(seconds) / _STEP) if seconds >= _LEAST_SECONDS else _ZERO_BIN] += 1

    def update(self, other: "Durations") -> None:
        """Counts those of another histogram as well."""
        self.count += other.count
        self.most = max(self.most, other.most)
        self.bins.update(other.bins)

    def quantile(self, share: float) -> float | None:
        """The smallest duration that at least this share of all do not exceed; None without any."""
        missing = math.ceil(share * self.count)
        for number in sorted(self.bins):
            missing -= self.bins[number]
            if missing <= 0:
                return min(self.most, math.exp(number * _STEP)) if number != _ZERO_BIN else 0.0
        return None


@dataclass(slots=True)
class Tally:
    """Sums over requests; tokens are of those that ran.

    Attributes:
        outcomes: by `ANSWERED`, `LEFT`, the code of the refusal, or the status where a line has no code.
        computed: requests whose compute time is known.
        estimated: requests whose tokens were counted from prompt and answer, since the line does not say how many were
            asked for.
    """

    requests: int = 0
    in_long_mode: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed: int = 0
    compute_seconds: float = 0.0
    estimated: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    waits: Durations = field(default_factory=Durations)
    first_tokens: Durations = field(default_factory=Durations)

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def answered(self) -> int:
        """Requests with a whole answer."""
        return self.outcomes[ANSWERED]

    def add(self, record: AuditRecord) -> None:
        """Counts a request."""
        self.requests += 1
        self.in_long_mode += record.mode == "long"
        self.outcomes[outcome_of(record)] += 1
        if has_run(record):
            self.prompt_tokens += record.prompt_tokens
            self.completion_tokens += record.completion_tokens
            self.estimated += record.asked_tokens is None
        if record.compute_seconds:
            self.computed += 1
            self.compute_seconds += record.compute_seconds
        if record.wait_seconds is not None:
            self.waits.add(record.wait_seconds)
        if record.first_token_seconds is not None:
            self.first_tokens.add(record.first_token_seconds)

    def update(self, other: "Tally") -> None:
        """Counts those of another tally as well."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.waits.update(other.waits)
        self.first_tokens.update(other.first_tokens)


_SUMS = ("requests", "in_long_mode", "prompt_tokens", "completion_tokens", "computed", "compute_seconds", "estimated")


class Limit(NamedTuple):
    """What a lower limit on a role's requests would have kept from the machine.

    Attributes:
        tokens: the limit: most tokens of a request, new ones included.
        refused: the computed requests beyond it.
    """

    role: str | None
    tokens: int
    refused: Tally


@dataclass(slots=True)
class Operations:
    """All that one or more logs say.

    Attributes:
        cells: requests for answers, by what they are told apart by.
        hours: the same by the hour in UTC, `2026-11-30T06`.
        keys: ids of the keys of each role, to count them.
        others: requests to other routes.
        broken, torn: lines that could not be read; torn ones at the end of a file.
        older: lines by earlier versions, without role, reason, waiting and compute time.
        windows: original windows that the lines name, in tokens.
        largest: most tokens that a computed request of each role asked for.
    """

    cells: dict[Cell, Tally] = field(default_factory=lambda: defaultdict(Tally))
    hours: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    keys: dict[str | None, set[str]] = field(default_factory=dict)
    others: int = 0
    broken: int = 0
    torn: int = 0
    older: int = 0
    windows: Counter[int] = field(default_factory=Counter)
    largest: dict[str | None, int] = field(default_factory=dict)
    first_time: str = ""
    last_time: str = ""

    @classmethod
    def read(cls, paths: Sequence[Path], *, original_tokens: int | None = None) -> "Operations":
        """Reads logs, in any order.

        Args:
            paths: the files; those with the same requests count them twice.
            original_tokens: the original window, for lines that do not say it.

        Raises:
            ConfigError: a file cannot be read, is not an audit log, or is given twice; or no file has any record.
        """
        made, seen = cls(), set[Path]()
        for path in paths:
            if path.resolve() in seen:
                raise ConfigError(f"the audit log {str(path)!r} is given twice; give each once")
            seen.add(path.resolve())
            for record in read_log(path):
                match record:
                    case "broken":
                        made.broken += 1
                    case "torn":
                        made.torn += 1
                    case _:
                        made.add(record, original_tokens)
        if not made.first_time:
            names = ", ".join(repr(str(path)) for path in paths)
            raise ConfigError(f"there is no request in {names}; give a log of a server that was asked something")
        return made

    def add(self, record: AuditRecord, original_tokens: int | None = None) -> None:
        """Counts a line of a log."""
        self.first_time = min(self.first_time or record.time, record.time)
        self.last_time = max(self.last_time, record.time)
        self.older += record.role is None
        if record.endpoint not in ANSWER_ENDPOINTS:
            self.others += 1
            return
        window = record.original_window or original_tokens
        asked = asked_tokens(record)
        if window is not None:
            self.windows[window] += 1
        if has_run(record):
            self.largest[record.role] = max(self.largest.get(record.role, 0), asked)
        if record.key != "-":
            self.keys.setdefault(record.role, set()).add(record.key)
        length = 1 << (asked - 1).bit_length() if asked else 0
        cell = Cell(record.role, record.mode, has_run(record), length, asked > window if asked and window else None)
        self.cells[cell].add(record)
        self.hours[record.time[:13]].add(record)

    def where(self, wanted: Callable[[Cell], object] = lambda _: True) -> Tally:
        """The sum over the cells that are wanted."""
        return summed(tally for cell, tally in self.cells.items() if wanted(cell))

    @property
    def roles(self) -> list[str | None]:
        """Those that asked for answers; "-" and unknown ones last."""
        return sorted({cell.role for cell in self.cells}, key=lambda role: (role is None, role == "-", role or ""))

    @property
    def original_tokens(self) -> int | None:
        """The original window that most lines name."""
        return max(self.windows, key=lambda window: self.windows[window], default=None)

    def limits(self) -> list[Limit]:
        """For each role, the powers of two from the original window to below its largest request, as its limit.

        The lowest limit is the original window itself, if it is known: it keeps the role out of the long mode. A role
        without a request beyond the window has that limit alone, which refuses none.
        """
        window = self.original_tokens
        found: list[Limit] = []
        for role, largest in self.largest.items():
            lowest = window or max(1, (1 << (largest - 1).bit_length()) >> 4)
            powers = [1 << bits for bits in range(53) if lowest < 1 << bits < largest]
            if window is not None:
                beyond = self.where(lambda cell, role=role: cell.role == role and cell.ran and cell.beyond)
                found.append(Limit(role, window, beyond))
            for tokens in powers:
                above = self.where(
                    lambda cell, role=role, tokens=tokens: cell.role == role and cell.ran and cell.length > tokens
                )
                found.append(Limit(role, tokens, above))
        order = {role: number for number, role in enumerate(self.roles)}
        return sorted(found, key=lambda limit: (order[limit.role], limit.tokens))

    def by_time(self) -> Mapping[str, Tally]:
        """Sums by hour, by day beyond three days, or by month beyond three months; empty for a day or less."""
        if not self.hours or _moment(self.last_time) - _moment(self.first_time) <= timedelta(days=1):
            return {}
        days = (_moment(self.last_time) - _moment(self.first_time)) / timedelta(days=1)
        letters = 13 if days <= _HOURLY_DAYS else 10 if days <= _DAILY_DAYS else 7
        times = sorted({hour[:letters] for hour in self.hours})
        return {time: summed(tally for hour, tally in self.hours.items() if hour.startswith(time)) for time in times}


def summed(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    total = Tally()
    for tally in tallies:
        total.update(tally)
    return total


def outcome_of(record: AuditRecord) -> str:
    """How a request ended: `ANSWERED`, `LEFT`, or why it was refused."""
    if record.status < 400:
        return ANSWERED
    return LEFT if record.status == 499 else record.code or str(record.status)


def has_run(record: AuditRecord) -> bool:
    """Whether any of a request was computed."""
    if record.compute_seconds is not None:
        return record.compute_seconds > 0
    # Of vLLM and of earlier versions; the latter do not say who was refused by a full queue.
    return record.mode is not None and (record.wait_seconds is not None or record.status in (200, 499))


def asked_tokens(record: AuditRecord) -> int:
    """Tokens that a request asked for, new ones included; of earlier versions' lines what it came to, at least."""
    return record.asked_tokens or record.prompt_tokens + record.completion_tokens


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)

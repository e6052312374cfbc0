"""What was measured, as lines of JSON and as a table."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OURS = "skipwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of one side.

    Attributes:
        part: of the benchmark.
        case: what both sides did.
        metric: name of the number, with its unit.
        side: who did it; `OURS`, perhaps with a variant behind a comma, or a peer.
        values: of every repeat.
        different: what this side does otherwise than skipwise; empty if it does the same.
    """

    part: str
    case: str
    metric: str
    side: str
    values: Sequence[float]
    different: str = ""

    @property
    def median(self) -> float:
        """Over the repeats."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A part, or a side of it, that could not be measured."""

    part: str
    side: str
    reason: str


def as_json(row: Row | Skipped) -> dict[str, Any]:
    """A line of the file."""
    return asdict(row) if isinstance(row, Skipped) else {**asdict(row), "median": row.median}


def table(rows: Iterable[Row | Skipped]) -> str:
    """The rows in Markdown; the last column is our median over that of this side."""
    found = list(rows)
    ours = {(row.part, row.case, row.metric): row.median for row in found if isinstance(row, Row) and row.side == OURS}
    lines = ["| case | metric | side | median | range | skipwise / this |", "|---|---|---|---|---|---|"]
    for row in found:
        if isinstance(row, Skipped):
            lines.append(f"| {row.part} | | {row.side} | skipped | {row.reason} | |")
            continue
        own = ours.get((row.part, row.case, row.metric))
        ratio = f"{own / row.median:.3f}" if own is not None and row.side != OURS and row.median else ""
        spread = f"{_short(min(row.values))} to {_short(max(row.values))}" if len(row.values) > 1 else ""
        side = f"{row.side} ({row.different})" if row.different else row.side
        lines.append(f"| {row.case} | {row.metric} | {side} | {_short(row.median)} | {spread} | {ratio} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""Tables of results: one value that the page, the model card and the terminal each draw their own way."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import rich.box
import rich.table
from rich.text import Text

from skipwise.report.evidence import Arm, Measure, measures
from skipwise.report.quantities import ABSENT
from skipwise.window import length_label

# With an interval each, more do not fit beside each other on 80 characters.
_MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text under a header; the first column names its row.

    Attributes:
        title: what the numbers are, with their unit.
        header: one text per column.
        rows: as many cells each as the header has.
        underlined: cells that stand out, by row (-1 is the header) and column.
        wraps: whether cells hold sentences, which may break into lines.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    underlined: frozenset[tuple[int, int]] = frozenset()
    wraps: bool = False

    def markdown(self) -> str:
        """The table in the pipe syntax of GitHub and the hub; the title is left to the text around it."""
        header, *rows = (
            "| " + " | ".join(self._markdown_cell(row, column, text) for column, text in enumerate(line)) + " |"
            for row, line in enumerate((self.header, *self.rows), start=-1)
        )
        return "\n".join((header, "| " + " | ".join(("---", *("---:" for _ in self.header[1:]))) + " |", *rows))

    def _markdown_cell(self, row: int, column: int, text: str) -> str:
        cell = markdown_cell(text)
        return f"<ins>{cell}</ins>" if (row, column) in self.underlined else cell


CODE = "((?<!`)`[^`]+`(?!`))"
"""Splits text into what is not code, at even places, and what is, with its backticks."""


def markdown_cell(text: str) -> str:
    """Text that stays inside one cell of a pipe table: no line breaks, no bare pipes, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def markdown_text(text: str) -> str:
    """Text on one line that Markdown shows as it is: no HTML, no markup of its own but code between backticks."""
    parts = re.split(CODE, " ".join(text.split()))
    return "".join(
        part if number % 2 else re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", part).replace("<", "&lt;")
        for number, part in enumerate(parts)
    )


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, wraps: bool = False) -> list[Table]:
    """A table in a list, which is empty where there are no rows."""
    made = tuple(map(tuple, rows))
    return [Table(title=title, header=tuple(header), rows=made, wraps=wraps)] if made else []


def by_length(title: str, rows: Sequence[tuple[str, Mapping[int, str]]], first: str = "Arm") -> Table:
    """A row for each name, a column for each length in tokens that some row has."""
    at = sorted({length for _, cells in rows for length in cells})
    return Table(
        title=title,
        header=(first, *map(length_label, at)),
        rows=tuple((name, *(cells.get(length, ABSENT) for length in at)) for name, cells in rows),
    )


def table_of(arms: Sequence[Arm], measure: Measure, *, arms_down: bool = False) -> Table:
    """One measure by length and arm, with intervals.

    Args:
        arms: models under comparison.
        measure: of what.
        arms_down: a row for each arm that was measured so, where there are too many for a column each.
    """
    found = [(arm.name, arm.by_length(measure)) for arm in arms]
    has_intervals = any(measure.interval(record) for _, records in found for record in records.values())
    title = f"{measure.title}, with 95% intervals" if has_intervals else measure.title
    rows = [(name, measure.texts(records)) for name, records in found if records or not arms_down]
    table = by_length(title, rows)
    if arms_down:
        return table
    header, *columns = zip(table.header, *table.rows, strict=True)
    return replace(table, header=("Tokens", *header[1:]), rows=tuple(columns))


def results_table(arms: Sequence[Arm]) -> rich.table.Table:
    """Everything measured, for a terminal: a block of rows per measure, a column per arm or, of many, per length."""
    arms_down = len(arms) > _MOST_COLUMNS
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_header=not arms_down)
    if arms_down:
        table.padding = (0, 0, 0, 1)
    blocks = {measure.title: table_of(arms, measure, arms_down=arms_down) for measure in measures(arms)}
    # Lengths may be others for each measure, so then they stand beside its title.
    columns = [""] * max(len(block.header) - 1 for block in blocks.values()) if arms_down else [a.name for a in arms]
    table.add_column("" if arms_down else "Tokens", no_wrap=not arms_down, overflow="fold")
    for name in columns:
        # Text, not str: a name in square brackets is a name, not markup.
        table.add_column(Text(name), justify="right", overflow="fold")
    for title, block in blocks.items():
        table.add_row(Text(title, style="bold"), *(block.header[1:] if arms_down else ()))
        for first, *values in block.rows:
            table.add_row(Text(first if arms_down else f"  {first}"), *values)
        table.add_section()
    return table

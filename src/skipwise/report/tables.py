"""Tables of results: one value that the page, the model card and the terminal each draw their own way."""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
import rich.table
from rich.text import Text

from skipwise.report.records import Arm, Measure, length_label, lengths, measures

ABSENT = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text under a header; the first column names its row.

    Attributes:
        title: what the numbers are, with their unit.
        header: one text per column.
        rows: as many cells each as the header has.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in the pipe syntax of GitHub and the hub; the title is left to the text around it."""
        lines = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        return "\n".join("| " + " | ".join(markdown_cell(cell) for cell in line) + " |" for line in lines)


def markdown_cell(text: str) -> str:
    """Text that stays inside one cell of a pipe table: no line breaks, no bare pipes, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table_of(arms: Sequence[Arm], measure: Measure) -> Table:
    """One measure by length (rows) and arm (columns), with intervals."""
    columns = [arm.by_length(measure) for arm in arms]
    return Table(
        title=f"{measure.title}, with 95% intervals",
        header=("Tokens", *(arm.name for arm in arms)),
        rows=tuple(
            (
                length_label(length),
                *(measure.text_with_interval(found[length]) if length in found else ABSENT for found in columns),
            )
            for length in lengths(arms, measure)
        ),
    )


def results_table(arms: Sequence[Arm]) -> rich.table.Table:
    """Everything measured, for a terminal: a block of rows per measure, a column per arm."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Tokens", no_wrap=True)
    for arm in arms:
        # Text, not str: a name in square brackets is a name, not markup.
        table.add_column(Text(arm.name), justify="right")
    for measure in measures(arms):
        table.add_row(Text(measure.title, style="bold"))
        for length, *values in table_of(arms, measure).rows:
            table.add_row(f"  {length}", *values)
        table.add_section()
    return table

"""An export and its README.md: what it is, how to serve it, and how it compares with the trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skipwise.records.verdict import Verdict
from skipwise.report.tables import markdown_cell

_HEADING = "## Export"
_CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        folder: where it lies.
        format: one of `FORMATS`.
        dtype: numbers of its weights.
        engine: what loaded it again for the comparison.
        verdicts: of the comparison, one a part.
        commands: to serve it, by engine.
        notes: what a user should know.
    """

    folder: Path
    format: str
    dtype: str
    engine: str
    verdicts: Sequence[Verdict]
    commands: Mapping[str, str]
    notes: Sequence[str]


def write_card(folder: Path, source: Path, what: str, made: Exported) -> Path:
    """Writes the card of an export: that of its run, where it has one and the folder loads as that does, and a section.

    Args:
        folder: where the export lies now.
        source: of the run.
        what: the export in a few words.
        made: the export; of a whole checkpoint the card is the run's own, and more.
    """
    own = source / _CARD
    before = own.read_text(encoding="utf-8") if own.is_file() and made.format == "hf" else f"# {source.name}: {what}\n"
    before = before.split(f"\n{_HEADING}\n")[0].rstrip()
    lines = [before, "", _HEADING, "", f"This is {what}, made by skipwise of `{source.name}`.", ""]
    for name, command in made.commands.items():
        lines += [f"{markdown_cell(name)}:", "", "```", command, "```", ""]
    lines += [f"- {markdown_cell(note)}" for note in made.notes] + ([""] if made.notes else [])
    lines += [f"It was loaded again, by {made.engine}, and compared with the trained model:", ""]
    lines += [f"- {verdict.status}: {verdict.name}: {markdown_cell(verdict.detail)}" for verdict in made.verdicts]
    path = folder / _CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

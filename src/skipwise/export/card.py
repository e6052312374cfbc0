"""An export and its README.md: how to serve it, and how it compares with the trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skipwise.records.verdict import Verdict
from skipwise.report.tables import markdown_cell

_HEADING = "## Export"
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes:
        folder: of the export.
        format: one of `FORMATS`.
        dtype: number format of its weights.
        engine: the engine that loaded it again for the comparison.
        verdicts: of the comparison, one a part.
        commands: to serve it, by engine.
        notes: for users.
    """

    folder: Path
    format: str
    dtype: str
    engine: str
    verdicts: Sequence[Verdict]
    commands: Mapping[str, str]
    notes: Sequence[str] = ()


def write_card(folder: Path, source: Path, what: str, made: Exported) -> Path:
    """Writes the card of an export: a section on the export, for a whole checkpoint below the card of its run.

    Args:
        folder: where the export is now.
        source: of the run.
        what: the export in a few words.
        made: the export.
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

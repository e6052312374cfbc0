"""The README.md of an export: what it is, how to serve it, and how it compares with the trained model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from skipwise.records.verdict import Verdict
from skipwise.report.tables import markdown_cell

_HEADING = "## Export"
_CARD = "README.md"


def write_card(
    folder: Path,
    *,
    source: Path,
    what: str,
    commands: Mapping[str, str],
    verdicts: Sequence[Verdict],
    engine: str,
    notes: Sequence[str] = (),
    whole: bool = True,
) -> Path:
    """Writes the card of an export: that of its run, where it has one and the folder loads as that does, and a section.

    Args:
        folder: of the export.
        source: of the run.
        what: the export in a few words.
        commands: to serve it, by engine.
        verdicts: of the comparison.
        engine: that computed the export's side of it.
        notes: what a user should know.
        whole: the folder is a checkpoint, as the run's own folder is.
    """
    own = source / _CARD
    before = own.read_text(encoding="utf-8") if own.is_file() and whole else f"# {source.name}: {what}\n"
    before = before.split(f"\n{_HEADING}\n")[0].rstrip()
    lines = [before, "", _HEADING, "", f"This is {what}, made by skipwise of `{source.name}`.", ""]
    for name, command in commands.items():
        lines += [f"{markdown_cell(name)}:", "", "```", command, "```", ""]
    lines += [f"- {markdown_cell(note)}" for note in notes] + ([""] if notes else [])
    lines += [f"It was loaded again, by {engine}, and compared with the trained model:", ""]
    lines += [f"- {verdict.status}: {verdict.name}: {markdown_cell(verdict.detail)}" for verdict in verdicts]
    path = folder / _CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

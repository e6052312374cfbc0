"""Write the README.md of an export: what it is, how to serve it, and how it compares with the trained model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from skipwise.doctor.verdict import Verdict
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
    """Writes the card of an export: the run's own card, if there is one and it applies, and a section on the export.

    Args:
        folder: folder of the export.
        source: folder of the run.
        what: a short description of the export.
        commands: commands that serve the export, by engine.
        verdicts: verdicts of the comparison.
        engine: name of the engine that ran the export for the comparison.
        notes: what the user should know.
        whole: whether the export is a whole checkpoint like the run's folder; only then the run's card applies.
    """
    own = source / _CARD
    before = own.read_text(encoding="utf-8") if own.is_file() and whole else f"# {source.name}: {what}\n"
    before = before.split(f"\n{_HEADING}\n")[0].rstrip()
    lines = [before, "", _HEADING, "", f"This is {what}, exported by skipwise from `{source.name}`.", ""]
    for name, command in commands.items():
        lines += [f"{markdown_cell(name)}:", "", "```", command, "```", ""]
    lines += [f"- {markdown_cell(note)}" for note in notes] + ([""] if notes else [])
    lines += [f"It was loaded with {engine} and compared with the trained model:", ""]
    lines += [f"- {verdict.status}: {verdict.name}: {markdown_cell(verdict.detail)}" for verdict in verdicts]
    path = folder / _CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

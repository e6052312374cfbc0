"""The README.md of an extended checkpoint: what was done, how to load it, what was measured and what was not."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from skipwise.errors import CheckpointError
from skipwise.records.verdict import Verdict
from skipwise.report.effective import EffectiveLength, basis
from skipwise.report.evidence import Arm, measures
from skipwise.report.page import TEMPLATES
from skipwise.report.quantities import settings_text
from skipwise.report.tables import markdown_cell, table_of
from skipwise.window import Window, length_label

_MEASURED = "## What was measured"
_EFFECTIVE = "Effective context length:"
_FACTOR = "Attention factor:"
_UNMEASURED = f"{_EFFECTIVE} not measured; `skipwise eval <this folder> --task ruler --verdict` measures it"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_model_card(
    folder: Path,
    *,
    base: str,
    window: Window,
    interpolation: Mapping[str, object],
    sampler: Mapping[str, object],
    tuning: Mapping[str, object],
    data: Mapping[str, object],
    drawn: Mapping[str, str] = MappingProxyType({}),
    attention_factor: str | None = None,
    results: Sequence[Arm] = (),
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Writes `README.md` into a checkpoint folder, with the front matter that the hub reads; returns its path.

    Args:
        folder: the checkpoint.
        base: the model that was extended, as the user named it; a name on the hub becomes a link.
        window: lengths of the extension, in tokens.
        interpolation: its kind and settings.
        sampler: of positions: its kind and settings.
        tuning: what was trained: its kind and settings.
        data: source of the text, and settings.
        drawn: what was drawn from each source of a mixture, by name.
        attention_factor: chosen by a calibration after training, and by what; None without one.
        results: what was measured, one arm per model.
        verdicts: of the preflight.
        notes: limits and other remarks, a sentence or more each.
    """
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["long-context", "skipwise"]}
    if _HUB_NAME.fullmatch(base) and not Path(base).exists():
        front["base_model"] = base
    made = {
        "Base model": base,
        "Original window": f"{window.original} tokens",
        "Target window": f"{window.target} tokens ({window.factor:g} times)",
        "Training window": f"{window.train} tokens",
        "Interpolation": settings_text(interpolation),
        **({} if attention_factor is None else {_FACTOR.removesuffix(":"): attention_factor}),
        "Positions": settings_text(sampler),
        "Tuning": settings_text(tuning),
        "Data": data_text(data),
        **{f"Drawn from {source}": told for source, told in drawn.items()},
    }
    path = folder / "README.md"
    text = TEMPLATES.get_template("card.md").render(
        front=yaml.safe_dump(front, sort_keys=True, allow_unicode=True),
        name=Path(base).name,
        target=length_label(window.target),
        window=window,
        effective=_UNMEASURED,
        made=made,
        results=[table_of(results, measure) for measure in measures(results)],
        verdicts=verdicts,
        notes=notes,
        plain=markdown_cell,
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def data_text(data: Mapping[str, Any], sources: str | None = None) -> str:
    """What was trained on, as a sentence; defaults that few readers ask for are in `skipwise.json`.

    Args:
        data: settings of `data`, complete or in part.
        sources: words for the sources; None for their names in the settings.
    """
    named = data.get("source")
    names = [named] if isinstance(named, str) else list(named or ())
    told = ["Python's own sources (stdlib)" if name == "stdlib" else str(name) for name in names]
    parts = [sources or ", ".join(told) or "the sources below"]
    if data.get("format") == "conversations":
        parts.append("as conversations in the model's chat template")
    if data.get("join"):
        parts.append("short documents joined")
    if min_tokens := data.get("min_tokens"):
        parts.append(f"documents of at least {min_tokens} tokens")
    if held_out := data.get("held_out"):
        parts.append(f"{held_out:.0%} of the documents held out of training")
    if retrieval := data.get("retrieval"):
        parts.append(f"{retrieval:.0%} of the windows generated as retrieval exercises")
    return "; ".join(parts)


def state_effective_length(folder: Path, found: Sequence[EffectiveLength]) -> None:
    """Writes the effective context length into the card of an extended model, beside the configured one.

    The line says under which rules, over which tasks and prompts, and the mean score at each length.

    Args:
        folder: the checkpoint.
        found: one under each rule, of each group of tasks.

    Raises:
        CheckpointError: the card has no line for it.
    """
    parts = []
    for _, of_group in groupby(found, key=lambda one: one.group):
        rules = list(of_group)
        verdicts = "; ".join(one.line for one in rules).replace("effective context length ", "")
        means = ", ".join(score.text for score in rules[0].scores)
        parts.append(f"{verdicts}; {basis(rules[0].scores)}; mean score {means}")
    line = f"- {_EFFECTIVE} {'; '.join(parts)}"
    missing = f"line '- {_EFFECTIVE} ...' to state the verdict in"
    _replace(folder, rf"(?m)^- {_EFFECTIVE}.*$", lambda _: line, missing)


def state_results(folder: Path, arms: Sequence[Arm]) -> None:
    """Writes what was measured into the card of an extended model, in place of what its section held before.

    Args:
        folder: the checkpoint.
        arms: models under comparison, each a column or, where they are many, a row.

    Raises:
        CheckpointError: there is no card, or it has no section for it.
    """
    tables = [table_of(arms, measure, arms_down=len(arms) > 4) for measure in measures(arms)]
    blocks = [_MEASURED, *(f"{markdown_cell(table.title)}:\n\n{table.markdown()}" for table in tables)]
    blocks.append("These numbers hold for the lengths, tasks and documents that were measured.")
    section = "\n\n".join(blocks) + "\n\n"
    missing = f"section {_MEASURED!r} to put results in"
    _replace(folder, rf"(?ms)^{_MEASURED}$.*?(?=^## |\Z)", lambda _: section, missing)


def state_attention_factor(folder: Path, chosen: str) -> None:
    """Writes what a calibration chose into the card of an extended model, below its interpolation.

    Args:
        folder: the checkpoint.
        chosen: the attention factor and what it was chosen by, in a line.

    Raises:
        CheckpointError: the card has no line to put it below.
    """
    line = f"- {_FACTOR} {markdown_cell(chosen)}\n"
    pattern = rf"(?m)(^- {_FACTOR}.*\n)*(^- Interpolation:.*\n)(^- {_FACTOR}.*\n)*"
    missing = "line '- Interpolation: ...' to put the factor below"
    _replace(folder, pattern, lambda found: found[2] + line, missing)


def _replace(folder: Path, pattern: str, text: Callable[[re.Match[str]], str], missing: str) -> None:
    """Replaces the one place of a card that a pattern matches; without exactly one, `missing` tells what is needed."""
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    after, count = re.subn(pattern, text, before)
    if count != 1:
        raise CheckpointError(f"{str(path)!r} has no {missing}; add one to it")
    path.write_text(after, encoding="utf-8", errors="backslashreplace")

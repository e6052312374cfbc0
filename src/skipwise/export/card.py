"""A finished export, commands that serve it with explicit lengths and rope settings, and its README.md."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.export.gguf_rope import GgufRope
from skipwise.model import rope_state
from skipwise.plan.engines import overrides
from skipwise.records.verdict import Verdict
from skipwise.report.tables import markdown_cell
from skipwise.rope import RopeState

# vLLM's default for --max-lora-rank.
_VLLM_RANK = 16
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
        base_weight: share of the base model in a weighted mean; None if it is the extended model.
    """

    folder: Path
    format: str
    dtype: str
    engine: str
    verdicts: Sequence[Verdict]
    commands: Mapping[str, str]
    notes: Sequence[str] = ()
    base_weight: float | None = None

    @property
    def reference(self) -> str:
        """The model that it was compared with."""
        return "trained model" if self.base_weight is None else "weighted mean"


def hf_commands(folder: Path, config: Any) -> dict[str, str]:
    """Commands for a checkpoint folder, whose config contains all settings."""
    state = rope_state(config)
    length = ["--max-model-len", str(state.maximum)]
    return {
        "vLLM": shlex.join(["vllm", "serve", str(folder), *length]),
        "vLLM, with the rope said in full": shlex.join(
            ["vllm", "serve", str(folder), *length, "--hf-overrides", json.dumps(overrides(config))]
        ),
    }


def adapter_commands(folder: Path, base: str, config: Any, adapter: dict[str, Any]) -> dict[str, str]:
    """Commands for an adapter on its base model, with the extension's settings; advice if vLLM cannot serve it."""
    state = rope_state(config)
    if adapter.get("modules_to_save"):
        return {
            "vLLM": "does not support adapters with trained norms or embeddings; serve the whole model: skipwise "
            "export --to hf"
        }
    command = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"{folder.name}={folder}"]
    if adapter["r"] > _VLLM_RANK:
        command += ["--max-lora-rank", str(adapter["r"])]
    command += ["--max-model-len", str(state.maximum), "--hf-overrides", json.dumps(overrides(config))]
    return {"vLLM": shlex.join(command)}


def gguf_commands(path: Path, state: RopeState, rope: GgufRope) -> dict[str, str]:
    """Commands for a GGUF file, whose metadata contains all settings."""
    command = ["llama-server", "-m", str(path), "-c", str(state.maximum)]
    commands = {"llama.cpp": shlex.join(command)}
    entries = rope.entries
    flags = ["--rope-scaling", entries["rope.scaling.type"], "--rope-freq-base", f"{entries['rope.freq_base']:.8g}"]
    if (factor := entries.get("rope.scaling.factor")) is not None:
        flags += ["--rope-scale", f"{factor:.8g}"]
    if entries["rope.scaling.type"] == "yarn":
        flags += ["--yarn-orig-ctx", str(state.original)]
    # There are no flags for divisors, and none that works for a chosen attention factor: both come from the file.
    if not rope.tensors:
        commands["llama.cpp, with the rope said in full"] = shlex.join(command + flags)
    return commands


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
    lines += [f"It was loaded again, by {made.engine}, and compared with the {made.reference}:", ""]
    lines += [f"- {verdict.status}: {verdict.name}: {markdown_cell(verdict.detail)}" for verdict in made.verdicts]
    path = folder / _CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

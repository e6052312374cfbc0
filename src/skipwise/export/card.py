"""A finished export, commands that serve it with explicit lengths and rope settings, and its README.md."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from skipwise.export import RECORD_FILE
from skipwise.export.gguf_rope import GgufRope
from skipwise.export.modelfile import FILE as MODELFILE
from skipwise.model import rope_state
from skipwise.plan.engines import held_for, overrides
from skipwise.records.verdict import Verdict
from skipwise.report.tables import markdown_cell
from skipwise.rope import RopeState

# vLLM's default for --max-lora-rank.
_VLLM_RANK = 16
_SGLANG = ("python", "-m", "sglang.launch_server", "--model-path")
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

    @classmethod
    def read(cls, folder: Path) -> Self:
        """An earlier export, from the record in its folder."""
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        verdicts = [Verdict(**verdict) for verdict in record["comparison"]]
        about = (record["format"], record["dtype"], record["compared_by"])
        return cls(folder, *about, verdicts, record["commands"], record["notes"], record.get("base_weight"))


def hf_commands(place: str, config: Any) -> dict[str, str]:
    """Commands for a checkpoint, whose config contains all settings; `place` is its folder or name on the hub.

    A maximum that is left at the original window is overridden, as vLLM and SGLang would refuse more.
    """
    state, rope = rope_state(config), overrides(config)
    says = config.get_text_config(decoder=True).max_position_embeddings
    vllm = ["vllm", "serve", place, "--max-model-len", str(state.maximum)]
    sglang = [*_SGLANG, place, "--context-length", str(state.maximum)]
    commands = {}
    if says >= state.maximum:
        commands |= {"vLLM": shlex.join(vllm), "SGLang": shlex.join(sglang)}
    in_full = json.dumps(rope)
    commands["vLLM, with the rope said in full"] = shlex.join([*vllm, "--hf-overrides", in_full])
    commands["SGLang, with the rope said in full"] = shlex.join([*sglang, "--json-model-override-args", in_full])
    return commands


def adapter_commands(place: str, base: str, config: Any, adapter: dict[str, Any]) -> dict[str, str]:
    """Commands for an adapter on its base model, with the extension's settings; advice if engines cannot serve it."""
    state = rope_state(config)
    if adapter.get("modules_to_save"):
        return {
            "vLLM and SGLang": "do not support adapters with trained norms or embeddings; serve the whole model: "
            "skipwise export --to hf"
        }
    served, in_full = f"{Path(place).name}={place}", json.dumps(overrides(config))
    command = ["vllm", "serve", base, "--enable-lora", "--lora-modules", served]
    if adapter["r"] > _VLLM_RANK:
        command += ["--max-lora-rank", str(adapter["r"])]
    command += ["--max-model-len", str(state.maximum), "--hf-overrides", in_full]
    sglang = [*_SGLANG, base, "--lora-paths", served, "--context-length", str(state.maximum)]
    return {
        "vLLM": shlex.join(command),
        "SGLang": shlex.join([*sglang, "--json-model-override-args", in_full]),
    }


def gguf_commands(path: str, state: RopeState, rope: GgufRope) -> dict[str, str]:
    """Commands for a GGUF file, whose metadata contains all settings, and for the Modelfile beside it."""
    command = ["llama-server", "-m", path, "-c", str(state.maximum)]
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
    name, modelfile = Path(path).stem.lower(), str(Path(path).with_name(MODELFILE))
    ollama = (["ollama", "create", name, "-f", modelfile], ["ollama", "run", name])
    commands["Ollama"] = " && ".join(map(shlex.join, ollama))
    return commands


def window_notes(state: RopeState) -> list[str]:
    """What engines would take for the window of a checkpoint if a command did not say it, where that is wrong."""
    if state.kind == "linear":
        wrong = round(state.maximum * state.factor)
        return [
            "Keep --max-model-len and --context-length: without them vLLM and SGLang multiply the factor "
            f"{state.factor:g} into the maximum again and take {wrong} tokens for the window"
        ]
    if state.kind == "longrope":
        return [f"Keep --max-model-len: without it vLLM serves LongRoPE at the original {state.original} tokens"]
    return []


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
    lines += [f"- {markdown_cell(note)}" for note in [held_for(made.commands), *made.notes]] + [""]
    lines += [f"It was loaded again, by {made.engine}, and compared with the {made.reference}:", ""]
    lines += [f"- {verdict.status}: {verdict.name}: {markdown_cell(verdict.detail)}" for verdict in made.verdicts]
    path = folder / _CARD
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

"""Commands that serve an export with vLLM and llama.cpp, with explicit lengths and rope settings."""

import json
import shlex
from pathlib import Path
from typing import Any

from skipwise.export.gguf_rope import GgufRope
from skipwise.model import rope_state
from skipwise.rope import RopeState

# vLLM's default for --max-lora-rank.
_VLLM_RANK = 16


def hf_commands(folder: Path, config: Any) -> dict[str, str]:
    """Commands for a checkpoint folder, whose config contains all settings."""
    state = rope_state(config)
    length = ["--max-model-len", str(state.maximum)]
    return {
        "vLLM": shlex.join(["vllm", "serve", str(folder), *length]),
        "vLLM, with the rope said in full": shlex.join(
            ["vllm", "serve", str(folder), *length, "--hf-overrides", json.dumps(overrides(config, state))]
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
    command += ["--max-model-len", str(state.maximum), "--hf-overrides", json.dumps(overrides(config, state))]
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


def overrides(config: Any, state: RopeState) -> dict[str, Any]:
    """The settings of an extended config that its base model's config lacks, in the form of `--hf-overrides`."""
    text = config.get_text_config(decoder=True)
    settings = {
        "rope_parameters": text.to_dict()["rope_parameters"],
        "max_position_embeddings": state.maximum,
        "original_max_position_embeddings": state.original,
    }
    inside = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    return {inside: settings} if inside else settings

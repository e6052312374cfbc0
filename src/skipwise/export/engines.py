"""Settings of vLLM and llama.cpp that serve an export, with lengths and rope said in full."""

import json
import shlex
from pathlib import Path
from typing import Any

from skipwise.export.gguf_rope import GgufRope
from skipwise.model import rope_state
from skipwise.rope import RopeState

# vLLM allows no more unless told.
_VLLM_RANK = 16


def hf_commands(folder: Path, config: Any) -> dict[str, str]:
    """Of a checkpoint folder, whose config has all settings."""
    state = rope_state(config)
    length = ["--max-model-len", str(state.maximum)]
    return {
        "vLLM": shlex.join(["vllm", "serve", str(folder), *length]),
        "vLLM, with the rope said in full": shlex.join(
            ["vllm", "serve", str(folder), *length, "--hf-overrides", json.dumps(overrides(config, state))]
        ),
    }


def adapter_commands(folder: Path, base: str, config: Any, adapter: dict[str, Any]) -> dict[str, str]:
    """Of an adapter over its base model, which must be told the extension; none where vLLM cannot serve the adapter."""
    state = rope_state(config)
    if adapter.get("modules_to_save"):
        return {
            "vLLM": "takes no adapter with trained norms or embeddings; serve the whole model: skipwise export --to hf"
        }
    command = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"{folder.name}={folder}"]
    if adapter["r"] > _VLLM_RANK:
        command += ["--max-lora-rank", str(adapter["r"])]
    command += ["--max-model-len", str(state.maximum), "--hf-overrides", json.dumps(overrides(config, state))]
    return {"vLLM": shlex.join(command)}


def gguf_commands(path: Path, state: RopeState, rope: GgufRope) -> dict[str, str]:
    """Of a GGUF file, whose metadata has all settings."""
    command = ["llama-server", "-m", str(path), "-c", str(state.maximum)]
    commands = {"llama.cpp": shlex.join(command)}
    entries = rope.entries
    flags = ["--rope-scaling", entries["rope.scaling.type"], "--rope-freq-base", f"{entries['rope.freq_base']:.8g}"]
    if (factor := entries.get("rope.scaling.factor")) is not None:
        flags += ["--rope-scale", f"{factor:.8g}"]
    if entries["rope.scaling.type"] == "yarn":
        flags += ["--yarn-orig-ctx", str(state.original)]
    # Divisors have no flags, and a chosen attention factor none that works: they come from the file.
    if not rope.tensors:
        commands["llama.cpp, with the rope said in full"] = shlex.join(command + flags)
    return commands


def overrides(config: Any, state: RopeState) -> dict[str, Any]:
    """What of an extended config its base does not say."""
    text = config.get_text_config(decoder=True)
    said = {
        "rope_parameters": text.to_dict()["rope_parameters"],
        "max_position_embeddings": state.maximum,
        "original_max_position_embeddings": state.original,
    }
    inside = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    return {inside: said} if inside else said

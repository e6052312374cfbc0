"""Ready settings of inference engines.

An extended checkpoint carries its rope settings in its config, and a GGUF file made of it in its metadata, so both
engines read them by themselves. The flags that lay a scaling over the base model are for trying what interpolation
alone does, and for engines that are given the base's weights.
"""

import json
import shlex
from typing import Any

from skipwise.model import rope_state
from skipwise.plan.serving import Deployment

LLAMA_CPP_MODELS = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3"),
    *("gemma3_text", "phi3", "deepseek_v2", "deepseek_v3", "olmo2", "granite", "cohere2", "glm4", "smollm3"),
)
"""Kinds of model that llama.cpp can run, of those that skipwise extends."""

_LLAMA_CPP_CACHE = {16: "f16", 8: "q8_0", 4: "q4_0"}


def engine_commands(
    base: str,
    target_tokens: int,
    deployment: Deployment,
    extended: Any,
    *,
    requests: int = 1,
    memory_share: float = 0.92,
    part: str | None = None,
) -> dict[str, str]:
    """Commands to serve the extended checkpoint, and the base model stretched without training, by engine.

    Args:
        base: the base model's folder or name.
        target_tokens: longest request.
        deployment: how they are served.
        extended: config of the extended model.
        requests: at once.
        memory_share: of each accelerator's memory that may be filled.
        part: of the base's config that the text model is, where `extended` is that part alone.
    """
    note = _vllm_note(deployment)
    limits: dict[str, Any] = {"requests": requests, "memory_share": memory_share, "part": part}
    # llama.cpp's weights have the bits of their file.
    kind = {16: "", 8: "-Q8_0", 4: "-Q4_0"}[deployment.weight_bits]
    commands = {
        f"vLLM, the extended checkpoint{note}": vllm_command("CHECKPOINT", target_tokens, deployment, **limits),
    }
    if not hasattr(extended, "converted_from"):
        # Of a model that is read as another one, the base has another config.
        stretched = vllm_command(base, target_tokens, deployment, extended, **limits)
        commands[f"vLLM, the base model stretched{note}"] = stretched
    if extended.model_type not in LLAMA_CPP_MODELS:
        return commands
    commands |= {
        "llama.cpp, the extended checkpoint's file": llama_cpp_command(
            f"CHECKPOINT{kind}.gguf", target_tokens, deployment, requests=requests
        ),
    }
    if _rope_flags(extended):
        commands["llama.cpp of September 2026 and later, the base model's file stretched"] = llama_cpp_command(
            f"BASE{kind}.gguf", target_tokens, deployment, extended, requests=requests
        )
    return commands


def _vllm_note(deployment: Deployment) -> str:
    """What of the bits asked for vLLM cannot do here."""
    if deployment.machine.bits == 32:
        return " (built for CPUs, which serves 16 bits)"
    if deployment.kv_bits < 8:
        return " (its cache has 8 bits at the least)"
    if not deployment.machine.fp8 and 8 in (deployment.kv_bits, deployment.weight_bits):
        return f" (no 8-bit floating point on {deployment.machine.name}: what would be in it is in 16 bits)"
    return ""


def vllm_command(
    model: str,
    target_tokens: int,
    deployment: Deployment,
    extended: Any = None,
    *,
    requests: int = 1,
    memory_share: float = 0.92,
    part: str | None = None,
) -> str:
    """A `vllm serve` command.

    Args:
        model: folder or name.
        target_tokens: longest request.
        deployment: how it is served; vLLM's cache has 8 bits or 16.
        extended: config with the scaling to be laid over a base model; None for a checkpoint that has it.
        requests: at once; of one, vLLM's own number stands, as shorter ones share the room.
        memory_share: of each accelerator's memory that may be filled.
        part: of the base's config that the text model is, where `extended` is that part alone.
    """
    command = ["vllm", "serve", model, "--max-model-len", str(target_tokens)]
    on_cpu, fp8 = deployment.machine.bits == 32, deployment.machine.fp8
    if not on_cpu:
        command += ["--gpu-memory-utilization", f"{memory_share:g}"]
    if requests > 1:
        command += ["--max-num-seqs", str(requests)]
    if deployment.count > 1:
        command += ["--tensor-parallel-size", str(deployment.count)]
    if deployment.machine.half == "float16":
        command += ["--dtype", "half"]
    if deployment.kv_bits < 16 and fp8:
        command += ["--kv-cache-dtype", "fp8"]
    if deployment.weight_bits == 8 and fp8:
        command += ["--quantization", "fp8"]
    if deployment.weight_bits == 4 and not on_cpu:
        command += ["--quantization", "bitsandbytes"]
    if extended is not None:
        command += ["--hf-overrides", json.dumps(_overrides(extended, part))]
    return shlex.join(command)


def _overrides(extended: Any, part: str | None) -> dict[str, Any]:
    """What of an extended config its base does not say, at the place where it stands: a text model may be a part."""
    text = extended.get_text_config(decoder=True)
    said = text.to_dict()
    names = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")
    overrides: dict[str, Any] = {name: said[name] for name in names if name in said}
    inside = next((name for name in extended.sub_configs if getattr(extended, name, None) is text), part)
    return {inside: overrides} if inside else overrides


def llama_cpp_command(
    model: str, target_tokens: int, deployment: Deployment, extended: Any = None, *, requests: int = 1
) -> str:
    """A `llama-server` command.

    Args:
        model: a GGUF file.
        target_tokens: longest request.
        deployment: how it is served.
        extended: config with the scaling to be laid over a base model's file; None for a file whose metadata has it.
        requests: at once, each with a share of the context.
    """
    command = ["llama-server", "-m", model, "-c", str(requests * target_tokens)]
    if requests > 1:
        command += ["-np", str(requests)]
    if deployment.kv_bits < 16:
        kept = _LLAMA_CPP_CACHE[deployment.kv_bits]
        command += ["--flash-attn", "on", "--cache-type-k", kept, "--cache-type-v", kept]
    if extended is not None:
        command += _rope_flags(extended)
    return shlex.join(command)


def _rope_flags(extended: Any) -> list[str]:
    """llama.cpp's flags for what it can compute; for other scalings none, and its file must carry them."""
    state = rope_state(extended)
    factor = f"{state.maximum / state.original:g}"
    if state.kind == "yarn":
        return ["--rope-scaling", "yarn", "--rope-scale", factor, "--yarn-orig-ctx", str(state.original)]
    if state.kind == "linear":
        return ["--rope-scaling", "linear", "--rope-scale", factor]
    if state.kind in ("ntk", "none"):
        return ["--rope-freq-base", f"{state.parameters['rope_theta']:.8g}"]
    return []

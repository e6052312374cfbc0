"""Commands that serve the model with vLLM, SGLang and llama.cpp.

An extended checkpoint carries its rope settings in its config, and a GGUF file in its metadata, so engines need no
flags for them. Rope flags are for the base model: to try the interpolation without training. The window is always
given: vLLM and SGLang would multiply a linear factor into a maximum that is already extended, and vLLM would serve
LongRoPE at the original window. `tests/export/test_windows.py` has these rules.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from skipwise.model import rope_state
from skipwise.plan.serving import Deployment

LLAMA_CPP_MODELS = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3"),
    *("gemma3_text", "phi3", "deepseek_v2", "deepseek_v3", "olmo2", "granite", "cohere2", "glm4", "smollm3"),
)
"""Model types that llama.cpp runs, of those that skipwise extends."""

ENGINE_VERSIONS = {
    "vLLM": "0.33.0",
    "SGLang": "0.5.23",
    "llama.cpp": "as in llama-cpp-python 0.3.36",
    "Ollama": "0.30.0 to 0.32.15",
}
"""Versions that the commands were checked for, by engine."""

_LLAMA_CPP_CACHE = {16: None, 8: "q8_0", 4: "q4_0"}
_LLAMA_CPP_FILE = {16: "", 8: "-Q8_0", 4: "-Q4_0"}


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
    """Commands by engine, for the extended checkpoint and for the base model stretched without training.

    Args:
        base: folder or name of the base model.
        target_tokens: longest request.
        deployment: how the model is served.
        extended: config of the extended model.
        requests: concurrent requests.
        memory_share: fraction of each accelerator's memory that may be filled.
        part: name of the text model's part in the base's config, if `extended` is that part alone.
    """
    note, ending = _vllm_note(deployment), _LLAMA_CPP_FILE[deployment.weight_bits]
    limits: dict[str, Any] = {"requests": requests, "memory_share": memory_share}
    commands = {f"vLLM, the extended checkpoint{note}": vllm_command("CHECKPOINT", target_tokens, deployment, **limits)}
    if not hasattr(extended, "converted_from"):  # The base of a converted model has another config.
        stretched = vllm_command(base, target_tokens, deployment, extended, part=part, **limits)
        commands[f"vLLM, the base model stretched{note}"] = stretched
    if not deployment.machine.is_cpu:
        sglang = {"SGLang, the extended checkpoint": sglang_command("CHECKPOINT", target_tokens, deployment)}
        if not hasattr(extended, "converted_from"):
            stretched = sglang_command(base, target_tokens, deployment, extended, part=part)
            sglang["SGLang, the base model stretched"] = stretched
        commands |= {f"{name}{_sglang_note(deployment)}": command for name, command in sglang.items()}
    if extended.model_type in LLAMA_CPP_MODELS:
        commands["llama.cpp, the extended checkpoint's file"] = llama_cpp_command(
            f"CHECKPOINT{ending}.gguf", target_tokens, deployment, requests=requests
        )
        if _rope_flags(extended):
            commands["llama.cpp of September 2026 and later, the base model's file stretched"] = llama_cpp_command(
                f"BASE{ending}.gguf", target_tokens, deployment, extended, requests=requests
            )
    return commands


def _vllm_note(deployment: Deployment) -> str:
    """Which of the requested bits vLLM cannot provide."""
    if deployment.machine.is_cpu:
        return " (built for CPUs, which serves 16 bits)"
    if deployment.kv_bits < 8:
        return " (its cache has 8 bits at the least)"
    if not deployment.machine.fp8 and 8 in (deployment.kv_bits, deployment.weight_bits):
        return f" (no 8-bit floating point on {deployment.machine.name}: 16 bits are used instead)"
    return ""


def _sglang_note(deployment: Deployment) -> str:
    """Which of the requested bits the SGLang command does not have."""
    if deployment.weight_bits < 8:
        return " (weights in 16 bits)"
    return _vllm_note(deployment)


def held_for(engines: Iterable[str]) -> str:
    """For which versions the commands of engines were checked, as a sentence; names may go on after a comma."""
    named = dict.fromkeys(name.partition(",")[0] for name in engines)
    versions = [f"{name} {ENGINE_VERSIONS[name]}" for name in named if name in ENGINE_VERSIONS]
    return f"The commands were checked against the sources of {', '.join(versions)}."


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
    """A `vllm serve` command; arguments as for `engine_commands`.

    `extended` is given for a base model, whose config needs the scaling. With one request vLLM keeps its own limit on
    concurrent requests, because shorter ones share the cache.
    """
    machine, weight_bits = deployment.machine, deployment.weight_bits
    return _command(
        ["vllm", "serve", model],
        {
            "--max-model-len": target_tokens,
            "--gpu-memory-utilization": None if machine.is_cpu else f"{memory_share:g}",
            "--max-num-seqs": requests if requests > 1 else None,
            "--tensor-parallel-size": deployment.count if deployment.count > 1 else None,
            "--dtype": "half" if machine.half == "float16" else None,
            "--kv-cache-dtype": "fp8" if deployment.kv_bits < 16 and machine.fp8 else None,
            "--quantization": "fp8"
            if weight_bits == 8 and machine.fp8
            else "bitsandbytes"
            if weight_bits == 4 and not machine.is_cpu
            else None,
            "--hf-overrides": None if extended is None else json.dumps(overrides(extended, part)),
        },
    )


def sglang_command(
    model: str, target_tokens: int, deployment: Deployment, extended: Any = None, *, part: str | None = None
) -> str:
    """A command that starts SGLang's server; arguments as for `vllm_command`.

    Its share of memory and its limit on concurrent requests are left to SGLang, which chooses them by the accelerator.
    """
    machine = deployment.machine
    return _command(
        ["python", "-m", "sglang.launch_server", "--model-path", model],
        {
            "--context-length": target_tokens,
            "--tp-size": deployment.count if deployment.count > 1 else None,
            "--dtype": "half" if machine.half == "float16" else None,
            "--kv-cache-dtype": "fp8_e4m3" if deployment.kv_bits < 16 and machine.fp8 else None,
            "--quantization": "fp8" if deployment.weight_bits == 8 and machine.fp8 else None,
            "--json-model-override-args": None if extended is None else json.dumps(overrides(extended, part)),
        },
    )


def overrides(extended: Any, part: str | None = None) -> dict[str, Any]:
    """The rope settings and lengths of an extended config in the form of vLLM's `--hf-overrides` and SGLang's
    `--json-model-override-args`, nested as in its base's.

    Args:
        extended: config of the extended model.
        part: name of the text model's part in the base's config, if `extended` is that part alone.
    """
    text, state = extended.get_text_config(decoder=True), rope_state(extended)
    settings = {
        "rope_parameters": text.to_dict()["rope_parameters"],
        "max_position_embeddings": state.maximum,
        "original_max_position_embeddings": state.original,
    }
    inside = next((name for name in extended.sub_configs if getattr(extended, name, None) is text), part)
    return {inside: settings} if inside else settings


def llama_cpp_command(
    model: str, target_tokens: int, deployment: Deployment, extended: Any = None, *, requests: int = 1
) -> str:
    """A `llama-server` command for a GGUF file; `extended` is given for a base model's file, which needs the scaling.

    The context (`-c`) is shared by all concurrent requests.
    """
    cache = _LLAMA_CPP_CACHE[deployment.kv_bits]
    return _command(
        ["llama-server", "-m", model],
        {
            "-c": requests * target_tokens,
            "-np": requests if requests > 1 else None,
            "--flash-attn": "on" if cache else None,
            "--cache-type-k": cache,
            "--cache-type-v": cache,
            **({} if extended is None else _rope_flags(extended)),
        },
    )


def _rope_flags(extended: Any) -> dict[str, object]:
    """llama.cpp's flags for scalings that it computes itself; others must be in the file."""
    state = rope_state(extended)
    factor = f"{state.maximum / state.original:g}"
    if state.kind == "yarn":
        return {"--rope-scaling": "yarn", "--rope-scale": factor, "--yarn-orig-ctx": state.original}
    if state.kind == "linear":
        return {"--rope-scaling": "linear", "--rope-scale": factor}
    if state.kind in ("ntk", "none"):
        return {"--rope-freq-base": f"{state.parameters['rope_theta']:.8g}"}
    return {}


def _command(words: list[str], flags: Mapping[str, object]) -> str:
    return shlex.join([*words, *(str(w) for flag, value in flags.items() if value is not None for w in (flag, value))])

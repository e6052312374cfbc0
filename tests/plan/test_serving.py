"""Estimates of serving, and commands for engines."""

from functools import cache
from typing import Any

import pytest
from tiny_models import WINDOW, family_config

from skipwise.model import rope_state
from skipwise.model.extend import extended_config
from skipwise.plan.engines import engine_commands, held_for, llama_cpp_command, sglang_command, vllm_command
from skipwise.plan.machines import MACHINES, Utilisation, machine_of
from skipwise.plan.profiles import Profiles, formula_prefill_work
from skipwise.plan.serving import (
    BITS,
    Deployment,
    cache_copies,
    fewest_accelerators,
    longest_context,
    serving_estimate,
    sharing_count,
    weight_bytes,
)
from skipwise.plan.shape import model_shape
from skipwise.rope import interpolation_from
from skipwise.window import Window

SHARES = Utilisation()


@cache
def profiles_of(card: str) -> Profiles:
    return Profiles(model_shape(card))


def on(name: str, count: int = 1, **options: int) -> Deployment:
    return Deployment(machine=machine_of(name), count=count, **options)  # pyright: ignore[reportArgumentType]


def extended(card: str, target: int, kind: str = "yarn") -> Any:
    shape = model_shape(card)
    window = Window(train=512, original=shape.original_tokens, target=target)
    return extended_config(shape.config, interpolation_from(kind), window)


def test_serving_holds_weights_and_the_cache_of_every_request() -> None:
    profiles, h100 = profiles_of("llama-3-8b"), on("h100")
    one, four = (serving_estimate(profiles, h100, SHARES, 32768, requests=n) for n in (1, 4))
    assert one.weight_bytes == 2 * profiles.shape.counts.total
    assert one.kv_bytes == 4 * 2**30
    assert four.kv_bytes == 4 * one.kv_bytes
    assert four.token_seconds > one.token_seconds
    assert one.most_requests == (one.limit_bytes - one.weight_bytes - one.work_bytes) // one.kv_bytes
    longest = longest_context(profiles, h100, SHARES)
    assert serving_estimate(profiles, h100, SHARES, longest).fits
    assert not serving_estimate(profiles, h100, SHARES, round(1.01 * longest)).fits
    assert longest_context(profiles, on("h100", kv_bits=8), SHARES) == pytest.approx(longest * 16 / 8.5, rel=0.01)
    assert fewest_accelerators(profiles_of("llama-3-70b"), SHARES, 131072, on("h100")) == 4


def test_the_formula_of_prefill_is_near_the_trace() -> None:
    profiles = profiles_of("llama-3-8b")
    assert formula_prefill_work(profiles.shape, 2048) == pytest.approx(profiles.prefill_work(2048), rel=0.5)


@pytest.mark.parametrize("length", [8192, 131072])
def test_cost_is_that_of_a_full_batch(length: int) -> None:
    profiles = profiles_of("llama-3-8b")
    found = serving_estimate(profiles, on("h100"), SHARES, length, price=3.6)
    most = found.most_requests
    batch = serving_estimate(profiles, on("h100"), SHARES, length, requests=most)
    seconds = most * found.first_token_seconds + 256 * batch.token_seconds
    assert found.cost_per_million == pytest.approx(3.6 / 3600 * seconds / (most * length) * 1e6)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_fewer_bits_apply_to_the_weights_in_layers(bits: int) -> None:
    blocks = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    others = 2 * 128256 * 4096 + 65 * 4096
    assert weight_bytes(model_shape("llama-3-8b"), bits) == blocks * BITS[bits] / 8 + 2 * others


def test_heads_are_distributed_and_a_compressed_state_is_copied() -> None:
    llama, deepseek, qwen = (model_shape(card) for card in ("llama-3-8b", "deepseek-v3", "qwen2.5-7b"))
    h200 = [on("h200", count) for count in (8, 16)]
    assert [cache_copies(llama, one) for one in h200] == [1, 2], "8 key-value heads"
    assert [cache_copies(deepseek, one) for one in h200] == [8, 16]
    assert [sharing_count(llama, n) for n in (1, 2, 3, 8, 12, 33)] == [1, 2, 2, 8, 8, 32]
    # 28 query heads, 4 key-value heads, 18944 rows.
    assert [sharing_count(qwen, n) for n in (3, 7, 8)] == [2, 4, 4]


def test_a_token_takes_as_long_as_each_reads_its_copy_and_all_add_up() -> None:
    """DeepSeek-V3 on H200: the compressed state belongs to all heads, so every accelerator reads all of it."""
    shares = Utilisation(decode=1.0)
    seconds = [
        serving_estimate(profiles_of("deepseek-v3"), on("h200", n), shares, 131072, requests=16).token_seconds
        for n in (16, 32)
    ]
    cache_bytes = 16 * 131072 * 61 * (512 + 64) * 2
    assert min(seconds) > cache_bytes / 4.8e12, "as one accelerator alone"
    assert seconds[1] > 0.8 * seconds[0]
    llama = profiles_of("llama-3-8b")
    alone, eight = (serving_estimate(llama, on("h100", n), shares, 8192).token_seconds for n in (1, 8))
    read = 2 * (llama.shape.counts.total - llama.shape.counts.embedding) + 2**30
    assert alone == pytest.approx(read / 3.35e12, rel=0.01)
    sums = 2 * 32 * (1e-5 + 2 * 7 / 8 * 4096 * 2 / (450e9 * 0.7))
    assert eight == pytest.approx(read / 8 / 3.35e12 + sums, rel=0.01)


@pytest.mark.parametrize(
    ("command", "present", "absent"),
    [
        (vllm_command("m", 1024, on("h100", 2)), "--tensor-parallel-size 2", "--kv-cache-dtype"),
        (vllm_command("m", 1024, on("h100", kv_bits=8)), "--kv-cache-dtype fp8", "--quantization"),
        (vllm_command("m", 1024, on("h100", weight_bits=8)), "--quantization fp8", "--kv-cache-dtype"),
        (vllm_command("m", 1024, on("h100"), requests=4), "--gpu-memory-utilization 0.92 --max-num-seqs 4", "--dtype"),
        (vllm_command("m", 1024, on("v100-32", weight_bits=8, kv_bits=8)), "--dtype half", "fp8"),
        (vllm_command("m", 1024, on("cpu", weight_bits=8)), "--max-model-len 1024", "--gpu-memory-utilization"),
        (llama_cpp_command("m.gguf", 1024, on("h100", kv_bits=8)), "--cache-type-k q8_0 --cache-type-v q8_0", "-np"),
        (llama_cpp_command("m.gguf", 1024, on("h100"), requests=4), "-c 4096 -np 4", "--flash-attn"),
        (sglang_command("m", 1024, on("h100", 2)), "--context-length 1024 --tp-size 2", "--kv-cache-dtype"),
        (sglang_command("m", 1024, on("h100", kv_bits=8)), "--kv-cache-dtype fp8_e4m3", "--quantization"),
        (sglang_command("m", 1024, on("v100-32", weight_bits=8, kv_bits=8)), "--dtype half", "fp8"),
    ],
)
def test_engines_get_flags_that_the_machine_supports(command: str, present: str, absent: str) -> None:
    assert present in command
    assert absent not in command


def test_only_base_models_get_rope_flags() -> None:
    engines = engine_commands("m", 32768, on("h100"), extended("smollm2-135m", 32768))
    assert '"rope_type": "yarn"' in engines["vLLM, the base model stretched"]
    assert "--hf-overrides" not in engines["vLLM, the extended checkpoint"]
    assert '"rope_type": "yarn"' in engines["SGLang, the base model stretched"]
    assert "--json-model-override-args" not in engines["SGLang, the extended checkpoint"]
    assert all(f"{name} {version}" in held_for(engines) for name, version in (("vLLM", "0.33.0"), ("SGLang", "0.5.23")))
    flags = "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 8192"
    assert flags in engines["llama.cpp of September 2026 and later, the base model's file stretched"]
    assert flags not in engines["llama.cpp, the extended checkpoint's file"]
    old = engine_commands("m", 16384, on("v100-32", weight_bits=8, kv_bits=8), extended("smollm2-135m", 16384))
    assert sum("no 8-bit floating point on V100 32 GB" in name for name in old) == 4, "vLLM's and SGLang's"
    on_cpu = engine_commands("m", 16384, on("cpu"), extended("smollm2-135m", 16384))
    assert not any("SGLang" in name for name in on_cpu)
    assert "-m CHECKPOINT-Q8_0.gguf" in old["llama.cpp, the extended checkpoint's file"]
    gptj = engine_commands("m", 8192, on("l4"), extended("gpt-j-6b", 8192))
    assert not any("llama.cpp" in name for name in gptj), "llama.cpp does not run it"


def test_overrides_are_nested_as_the_text_model_is() -> None:
    within = extended_config(family_config("gemma3"), interpolation_from("yarn"), WINDOW)
    assert rope_state(model_shape("gemma-3-27b").config).kind == "linear"
    part = extended("gemma-3-27b", 262144, "linear")
    for config, name in ((within, None), (part, "text_config")):
        command = vllm_command("m", 1024, Deployment(machine=MACHINES["h100"]), config, part=name)
        assert '\'{"text_config": {"rope_parameters": ' in command

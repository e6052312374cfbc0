"""Bytes and operations from shapes, compared with published figures and counts by hand."""

from typing import Any

import pytest

from skipwise.errors import ConfigError
from skipwise.memory import (
    LayerShape,
    Moment,
    ParameterCounts,
    Sharding,
    StepProfile,
    TrainingState,
    decode_bytes,
    kv_cache_bytes,
    prefill_flops,
    training_flops,
)

LLAMA_3_8B = [LayerShape(query_heads=32, kv_heads=8, key_dim=128, value_dim=128)] * 32


def test_llama_3_8b_keeps_128_kib_a_token_and_16_gib_of_128k() -> None:
    assert kv_cache_bytes(LLAMA_3_8B, 1) == 128 * 1024
    assert kv_cache_bytes(LLAMA_3_8B, 128 * 1024) == 16 * 2**30
    assert kv_cache_bytes(LLAMA_3_8B, 128 * 1024, bits=4.5) == 4.5 * 2**30


def test_latent_attention_keeps_its_compressed_state_where_the_engine_does() -> None:
    # DeepSeek-V3: 61 layers of 512 + 64 numbers (arXiv 2412.19437).
    layer = LayerShape(query_heads=128, kv_heads=128, key_dim=192, value_dim=128, latent_dim=576)
    assert kv_cache_bytes([layer] * 61, 1, latent=True) == 2 * 61 * 576
    assert kv_cache_bytes([layer] * 61, 1, latent=False) == 2 * 61 * 128 * 320


@pytest.mark.parametrize(("window", "pairs"), [(None, 15), (2, 9), (3, 12), (5, 15), (8, 15)])
def test_pairs_are_those_that_a_mask_lets_through(window: int | None, pairs: int) -> None:
    layer = LayerShape(query_heads=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=window)
    seen = sum(key <= query and (window is None or query - key < window) for query in range(5) for key in range(5))
    assert layer.attended_pairs(5) == pairs == seen


def test_a_layer_that_reads_anothers_cache_keeps_none() -> None:
    owner = LayerShape(query_heads=2, kv_heads=1, key_dim=4, value_dim=4, window_tokens=4)
    reader = LayerShape(query_heads=2, kv_heads=1, key_dim=4, value_dim=4, owns_cache=False)
    assert kv_cache_bytes([owner, reader], 100) == 3 * 8 * 2


def test_decoding_reads_the_weights_once_and_every_cache() -> None:
    counts = ParameterCounts(embedding=10, head=10, attention=100, experts=800, active_experts=100)
    layer = LayerShape(query_heads=1, kv_heads=1, key_dim=1, value_dim=1)
    assert counts.total == 920
    quantised = decode_bytes(counts, [layer], 50, weight_bits=4)
    assert quantised == 200 // 2 + 2 * 10 + 2 * 100, "the head stays in 16 bits"
    assert decode_bytes(counts, [layer], 50) == 2 * (100 + 100 + 10) + 2 * 100
    assert decode_bytes(counts, [layer], 50, requests=4) == 2 * (100 + 400 + 10) + 4 * 2 * 100
    assert decode_bytes(counts, [layer], 50, requests=64) == 2 * (100 + 800 + 10) + 64 * 2 * 100


def test_checkpointing_computes_layers_four_times_and_the_head_three() -> None:
    counts = ParameterCounts(embedding=7, attention=100)
    layer = LayerShape(query_heads=1, kv_heads=1, key_dim=1, value_dim=1)
    forward = 2 * 100 * 10 + 2 * 55 * 2
    assert training_flops(counts, [layer], 10, checkpointing=False) == 3 * (forward + 2 * 7 * 10)
    assert training_flops(counts, [layer], 10, checkpointing=True) == 4 * forward + 3 * 2 * 7 * 10
    assert prefill_flops(counts, [layer], 10) == forward + 2 * 7
    # Frozen weights spare their own gradients; attention has none to spare.
    frozen = training_flops(counts, [layer], 10, checkpointing=False, frozen=True)
    assert frozen == 2 * 2 * 100 * 10 + 3 * 2 * 55 * 2 + 2 * 2 * 7 * 10


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ddp", (800, 800, 1600, 800)),
        ("zero1", (800, 800, 200, 800)),
        ("zero2", (800, 100, 200, 800)),
        ("zero3", (100, 100, 200, 800)),
        ("fsdp", (100, 100, 200, 50)),
    ],
)
def test_each_sharding_splits_one_thing_more(kind: str, expected: tuple[int, ...]) -> None:
    state = TrainingState(parameters=800, gradients=800, optimizer=1600)
    shard = state.sharded(Sharding(processes=8, kind=kind), numbers=200, trained=200, whole_bytes=50)
    assert (shard.parameters, shard.gradients, shard.optimizer, shard.in_transit) == expected
    assert shard.total == sum(expected)
    assert state.sharded(Sharding(), numbers=200, trained=200, whole_bytes=50) == state


def test_deepspeed_keeps_a_thousand_million_parameters_whole() -> None:
    state = TrainingState(parameters=14 * 10**9, gradients=14 * 10**9, optimizer=84 * 10**9)
    shard = state.sharded(Sharding(processes=8, kind="zero3"), numbers=7 * 10**9, trained=7 * 10**9, whole_bytes=1)
    assert shard.in_transit == 3 * 10**9


@pytest.mark.parametrize(
    ("kind", "each"),
    [
        # ZeRO's paper, section 7: twice the model's size for data parallel and stages 1 and 2, three times for stage 3.
        ("ddp", 2 * 4),
        ("zero1", 2 * 2),
        ("zero2", 2 * 2),
        ("zero3", 3 * 2),
        ("fsdp", 3 * 2),
    ],
)
def test_what_moves_in_a_step_of_one_micro_batch_is_what_the_paper_counts(kind: str, each: int) -> None:
    over = Sharding(processes=8, kind=kind)
    assert over.moved_bytes(gathered_bytes=16000, trained=8000, micro_batches=1) == each * 7000
    more = over.moved_bytes(gathered_bytes=16000, trained=8000, micro_batches=4)
    assert more == {"ddp": 8, "zero1": 4, "zero2": 2 * 5}.get(kind, 4 * 6) * 7000, "what is split comes anew each time"
    assert Sharding().moved_bytes(gathered_bytes=16000, trained=8000, micro_batches=4) == 0


def test_the_peak_of_a_step_is_its_highest_moment() -> None:
    moments = (Moment(per_layer=10, outside=5), Moment(per_layer=8, outside=20))
    only, another = (StepProfile(moments=moments, gradients_held=held) for held in (False, True))
    assert only.peak(2, 0) == 36
    assert only.peak(40, 0) == 405
    assert only.peak(2, 100) == 100, "all gradients are there in the end"
    assert another.peak(2, 100) == 136
    assert only.with_more(7).peak(2, 0) == 36, "it is gone by the last moment"
    assert only.with_more(12).peak(2, 0) == 37


@pytest.mark.parametrize(
    ("settings", "named"), [({"processes": 2, "kind": "zero4"}, "'zero4'.*'zero3'"), ({"processes": 0}, "0")]
)
def test_what_cannot_be_split_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Sharding(**settings)

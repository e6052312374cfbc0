"""Serving: the cache's bytes by the formula, times that are the machine's own, and never from a cache of samples."""

import gc
import json
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from transformers import DynamicCache

import skipwise.evals.tasks.serving as module
from skipwise.evals import SampleCache, evaluate
from skipwise.evals.tasks.serving import serve
from skipwise.runtime import peak as peaks
from skipwise.runtime.caches import cache_bytes

from .tiny import by_metric, calls_of, make_llama, with_adapters

QUICK: dict[str, Any] = {"kind": "serving", "new_tokens": 4, "repeats": 2, "warm_ups": 0}
METRICS = ["prefill_seconds", "token_seconds", "cache_bytes", "peak_bytes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 37])
def test_the_cache_of_a_llama_is_the_formula(
    dtype: torch.dtype, chunk: int | None, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr(module, "pass_columns", lambda *_: chunk)
    model = make_llama(num_hidden_layers=3, head_dim=16).to(dtype)  # pyright: ignore[reportArgumentType]
    results = evaluate(model, tokenizer, [QUICK], [100, 300], progress=False)
    assert [(result.length_tokens, result.metric) for result in results] == [
        (length, metric) for length in (100, 300) for metric in METRICS
    ]
    for result in results:
        if result.metric == "cache_bytes":
            layers, kv_heads, head_dim, bytes_each = 3, 2, 16, dtype.itemsize
            assert result.value == 2 * layers * kv_heads * head_dim * bytes_each * result.length_tokens


def test_layers_of_a_limited_reach_keep_less(tokenizer) -> None:
    layers = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    model = tiny_model(tiny_config("gemma2", hidden_size=32, sliding_window=32, max_position_embeddings=512, **layers))
    results = by_metric(evaluate(model, tokenizer, [QUICK], [200], progress=False))
    # A sliding layer needs no key that the next token cannot see.
    assert results["cache_bytes"].value == 2 * 2 * 8 * 4 * (200 + 31)


def test_only_what_the_cache_holds_is_counted_and_once() -> None:
    cache = DynamicCache()
    keys = torch.zeros(1, 2, 10, 8)
    cache.update(keys, keys.clone(), 0)
    assert cache_bytes(cache) == 2 * 160 * 4
    cache.layers[0].more_states = [keys, (keys,)]  # pyright: ignore[reportAttributeAccessIssue]
    assert cache_bytes(cache) == 3 * 160 * 4


def test_counting_lets_go_of_the_cache_at_once() -> None:
    cache: Any = DynamicCache()
    cache.update(torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8), 0)
    keys = weakref.ref(cache.layers[0].keys)
    gc.disable()
    try:
        cache_bytes(cache)
        del cache
        assert keys() is None, "the next request's peak would have this one's cache in it"
    finally:
        gc.enable()


def test_tokens_are_written_as_the_model_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps timed are those of greedy decoding: each token is what generate() would write."""
    model: Any = make_llama()
    prompt = torch.randint(0, 257, (1, 50), generator=torch.Generator().manual_seed(0))
    expected = model.generate(prompt, do_sample=False, max_new_tokens=6, min_new_tokens=6)[0, 50:]
    calls = calls_of(model)
    serve(model, prompt, 6)
    assert torch.equal(torch.cat([call["input_ids"][0] for call in calls]), torch.cat([prompt[0], expected]))


def test_seconds_are_of_the_prefill_and_of_each_step(tokenizer) -> None:
    model: Any = make_llama()

    def slow(_: Any, __: Any, given: dict[str, Any]) -> None:
        time.sleep(0.3 if given["input_ids"].shape[1] > 1 else 0.05)

    model.register_forward_pre_hook(slow, with_kwargs=True)
    results = by_metric(evaluate(model, tokenizer, [QUICK], [64], progress=False))
    assert 0.05 <= results["token_seconds"].value < 0.3 <= results["prefill_seconds"].value


def test_memory_is_the_peak_not_what_is_left(tokenizer) -> None:
    model: Any = make_llama()
    quiet = by_metric(evaluate(model, tokenizer, [QUICK], [64], progress=False))["peak_bytes"]

    def hungry(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > 1:
            torch.ones(50 * 2**20)  # 200 MiB, touched and freed

    handle = model.register_forward_pre_hook(hungry, with_kwargs=True)
    peak = by_metric(evaluate(model, tokenizer, [QUICK], [64], progress=False))["peak_bytes"]
    handle.remove()
    gc.collect()
    after = by_metric(evaluate(model, tokenizer, [QUICK], [64], progress=False))["peak_bytes"]
    if peak.details["peak_of"] == "high-water mark of process":
        assert peak.value > quiet.value + 150 * 2**20
        assert after.value < peak.value - 100 * 2**20, "each repeat counts from its own start"


def test_where_no_peak_is_kept_it_is_looked_up(tokenizer, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_CLEAR_REFS", tmp_path / "no" / "file")
    peak = by_metric(evaluate(make_llama(), tokenizer, [QUICK], [64], progress=False))["peak_bytes"]
    assert peak.details["peak_of"] == "process, looked up"
    assert peak.value > 2**20


def test_nothing_comes_from_a_cache_of_samples(tokenizer, tmp_path) -> None:
    model: Any = make_llama()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        calls.clear()
        evaluate(model, tokenizer, [QUICK], [64], cache=SampleCache(tmp_path), progress=False)
        assert len(calls) == 2 * (1 + 4)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_warm_ups_are_run_once_a_length_and_not_counted(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Iterator[float] = iter([9.0, 1.0, 2.0, 9.0, 3.0, 5.0])

    def timed(*_: Any) -> module.Request:
        return module.Request(next(seconds), 1.0, 10, 20, "nothing")

    monkeypatch.setattr(module, "serve", timed)
    results = evaluate(make_llama(), tokenizer, [QUICK | {"warm_ups": 1}], [64, 128], progress=False)
    assert [result.value for result in results if result.metric == "prefill_seconds"] == [1.5, 4.0]


def test_repeats_give_an_interval_and_one_gives_none(tokenizer, tmp_path, capsys) -> None:
    samples = tmp_path / "samples.jsonl"
    results = by_metric(evaluate(make_llama(), tokenizer, [QUICK], [64], samples_out=samples, progress=True))
    assert "serving at 64" in capsys.readouterr().err
    for metric in ("prefill_seconds", "token_seconds"):
        result = results[metric]
        assert 0 <= (result.ci_low or 0) <= result.value <= (result.ci_high or 0)
        assert result.num_samples == 2
    assert results["cache_bytes"].ci_low is None
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 2
    assert len({line["prompt_sha256"] for line in lines}) == 1
    once = by_metric(evaluate(make_llama(), tokenizer, [QUICK | {"repeats": 1}], [64], progress=False))
    assert once["prefill_seconds"].ci_low is None


def test_adapters_are_part_of_what_is_served(tokenizer) -> None:
    results = by_metric(evaluate(with_adapters(make_llama()), tokenizer, [QUICK], [64], progress=False))
    assert results["cache_bytes"].value == 2 * 2 * 2 * 8 * 4 * 64

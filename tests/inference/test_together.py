"""Tokens of several requests in one pass: the numbers of each alone, and the answers of each alone."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, family_config, tiny_model

import skipwise.inference.generate
from skipwise.errors import CheckpointError
from skipwise.inference.engine import Generation, GenerationRequest
from skipwise.inference.generate import LocalEngine
from skipwise.inference.modes import TwoModes
from skipwise.model import hold_in_eight_bits
from skipwise.runtime.caches import make_cache
from skipwise.runtime.session import Session
from skipwise.runtime.together import can_step_together, step_together

from .conftest import answer, finish, random_ids

TOGETHER = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "cohere", "granite", "mixtral", "qwen3_moe"}


def begun(model: Any, ids: Sequence[int], cache: str = "dynamic") -> Session:
    session = Session(model, make_cache(cache, model, len(ids) + 8), length=len(ids) + 8)
    session.step(torch.tensor([list(ids)]), 0)
    return session


@pytest.mark.parametrize("cache", ["dynamic", "quantized-8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_library_without_a_cache(family: str, cache: str) -> None:
    model = tiny_model(family_config(family, max_position_embeddings=256), noise=0.1)
    if cache != "dynamic" and family not in TOGETHER:
        pytest.skip("asked with the cache of the model's own type")
    does = can_step_together(model, lambda: make_cache(cache, model, 64))
    assert does or family not in TOGETHER
    if not does:
        return
    # Quantized caches round blocks of 64 tokens.
    prompts, new = [random_ids(63, 1), random_ids(3, 2), random_ids(31, 3)], [[5, 6], [7, 8], [9, 10]]
    sessions = [begun(model, ids, cache) for ids in prompts]
    for step in range(2):
        logits = step_together(model, sessions, [tokens[step] for tokens in new])
        for row, ids, tokens in zip(logits, prompts, new, strict=True):
            expected = model(torch.tensor([[*ids, *tokens[: step + 1]]]), use_cache=False).logits[0, -1]
            far = 1e-5 if cache == "dynamic" else 0.1
            assert (row[0] - expected).norm() < far * expected.norm()
    assert [session.columns for session in sessions] == [65, 5, 33]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_layers_that_see_a_window_alone_are_left_to_their_own_attention(family: str) -> None:
    model = tiny_model(family_config(family))
    assert not can_step_together(model, lambda: make_cache("dynamic", model, 64))


def test_a_cache_of_fixed_size_and_tables_that_follow_the_length_are_left_out() -> None:
    model = tiny_model(family_config("llama"))
    assert not can_step_together(model, lambda: make_cache("static", model, 64))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = tiny_model(family_config("llama", rope_parameters=dynamic))
    assert not can_step_together(model, lambda: make_cache("dynamic", model, 64))


def test_a_model_that_makes_other_numbers_of_several_rows_is_found_out() -> None:
    model = tiny_model(family_config("llama"), noise=0.1)
    layer = model.model.layers[0].mlp
    own = layer.forward
    layer.forward = lambda hidden: own(hidden.flip(0))
    assert not can_step_together(model, lambda: make_cache("dynamic", model, 64))
    layer.forward = own
    assert can_step_together(model, lambda: make_cache("dynamic", model, 64))


class Passes:
    """Counts passes of all models of an engine."""

    def __init__(self, modes: TwoModes) -> None:
        self.number = 0
        self._hooks = [modes.model(mode).register_forward_hook(self._count) for mode in modes.modes]

    def _count(self, *_: Any) -> None:
        self.number += 1

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def run_all(engine: LocalEngine, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """Answers to requests that run at the same time; the one that is behind has the turn."""
    going: list[Generation] = [engine.start(request) for request in requests]
    written: dict[Generation, list[int]] = {generation: [] for generation in going}
    while left := [generation for generation in going if not generation.is_done]:
        first = min(left, key=lambda one: len(written[one]))
        for generation, tokens in engine.step(first, [one for one in left if one is not first]).items():
            assert not isinstance(tokens, Exception)
            written[generation] += tokens
    return list(written.values())


def test_answers_are_those_of_each_request_alone_in_a_fraction_of_the_passes(modes: TwoModes) -> None:
    prompts = [random_ids(length, length) for length in (40, 3, 12, 30, 200, 150)]
    requests = [GenerationRequest(prompt_ids=ids, max_new_tokens=12 + number) for number, ids in enumerate(prompts)]
    requests += [GenerationRequest(prompt_ids=prompts[0], max_new_tokens=12, temperature=2.0, seed=3, top_p=0.9)]
    alone = [
        answer(
            LocalEngine(modes, chunk_tokens=64, prefixes=0),
            request.prompt_ids,
            request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
            top_p=request.top_p,
        )
        for request in requests
    ]
    engine = LocalEngine(modes, chunk_tokens=64, prefixes=0)
    run_all(engine, requests)  # The first time, models are tried.
    passes = Passes(modes)
    assert run_all(engine, requests) == alone
    passes.close()
    prefill, written = 5 + 4 + 3, sum(map(len, alone))
    # Two modes, and requests that end or begin later than others.
    assert passes.number < prefill + 0.5 * written


@pytest.mark.parametrize("how", ["8 bits", "bfloat16"])
def test_weights_in_eight_bits_and_sixteen(how: str) -> None:
    model = tiny_model(family_config("llama"), noise=0.1)
    if how == "8 bits":
        hold_in_eight_bits([model])
    else:
        model.to(torch.bfloat16)
    assert can_step_together(model, lambda: make_cache("dynamic", model, 64))


def decoding(engine: LocalEngine, lengths: Sequence[int], new: int = 8) -> list[Any]:
    """Generations that have read their prompts and written a token."""
    rows = [
        engine.start(GenerationRequest(prompt_ids=random_ids(length, length), max_new_tokens=new)) for length in lengths
    ]
    for row in rows:
        while not row.step():
            pass
    return rows


def test_a_row_with_nan_fails_alone(modes: TwoModes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, sessions: Sequence[Session], tokens: Sequence[int]) -> torch.Tensor:
        logits = step_together(model, sessions, tokens)
        logits[1] = torch.nan
        return logits

    rows = decoding(engine := LocalEngine(modes, chunk_tokens=64), [5, 9, 20])
    monkeypatch.setattr(skipwise.inference.generate, "step_together", broken)
    stepped = engine.step(rows[0], rows[1:])
    assert [type(stepped[row]) for row in rows] == [list, CheckpointError, list]
    assert "position 9" in str(stepped[rows[1]])
    assert [row.is_done for row in rows] == [False, True, False]


@pytest.mark.parametrize("cache", ["dynamic", "quantized-8"])
def test_after_a_pass_that_failed_halfway_requests_go_on(
    cache: str, modes: TwoModes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [5, 20, 50]
    engine = LocalEngine(modes, cache=cache, chunk_tokens=64, prefixes=0)
    monkeypatch.setattr(type(modes), "choose", lambda *_: "long")
    rows = decoding(engine, lengths, 2)
    assert engine._steps_together("long")
    layer: Any = modes.model("long").model.layers[1].self_attn.o_proj

    def failing(*_: Any) -> None:
        if len(rows) == 3 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("of the test")

    failed: list[bool] = []
    hook = layer.register_forward_pre_hook(failing)
    stepped = engine.step(rows[0], rows[1:])
    hook.remove()
    assert failed
    # The one whose turn it was has been stepped alone; the others are where they were.
    assert [*stepped] == [rows[0]]
    assert not isinstance(stepped[rows[0]], Exception)
    for session in (row._session for row in rows[1:]):
        assert {layer.get_seq_length() for layer in session.cache.layers} == {session.columns}
    written = [[rows[0]._ids[-2], *stepped[rows[0]]]]  # type: ignore[misc]
    for row in rows[1:]:
        written.append([row._ids[-1], *row.step()])
    expected = [answer(engine, random_ids(length, length), 2) for length in lengths]
    assert written == expected


def test_a_block_that_a_failed_pass_has_rounded_ends_its_request_alone(
    modes: TwoModes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(modes), "choose", lambda *_: "long")
    rows = decoding(engine := LocalEngine(modes, cache="quantized-8", chunk_tokens=64), [63, 20])
    assert engine._steps_together("long")

    def failing(*_: Any) -> None:
        hook.remove()
        raise RuntimeError("of the test")

    hook = modes.model("long").get_output_embeddings().register_forward_pre_hook(failing)  # pyright: ignore
    stepped = engine.step(rows[1], rows[:1])
    assert isinstance(stepped[rows[0]], RuntimeError)
    assert rows[0].is_done
    assert not isinstance(stepped[rows[1]], Exception)


def test_another_thread_may_run_the_model_meanwhile(modes: TwoModes) -> None:
    model = modes.model("long")
    expected = model(torch.tensor([random_ids(30)])).logits
    found: list[torch.Tensor] = []
    layer: Any = model.model.layers[1]  # type: ignore[attr-defined]

    def meanwhile(*_: Any) -> None:
        hook.remove()
        thread = threading.Thread(target=lambda: found.append(modes(torch.tensor([random_ids(30)])).logits.detach()))
        with modes.mode("long"):
            thread.start()
            thread.join()

    rows = decoding(engine := LocalEngine(modes, chunk_tokens=64), [70, 90])
    assert engine._steps_together("long")
    hook = layer.register_forward_pre_hook(meanwhile)
    engine.step(rows[0], rows[1:])
    short = modes.model("short")(torch.tensor([random_ids(30)])).logits
    torch.testing.assert_close(found[0], short)
    assert not torch.equal(expected, short)


def test_a_cache_that_was_read_in_shared_passes_serves_later_requests(modes: TwoModes) -> None:
    engine = LocalEngine(modes, chunk_tokens=64, prefixes=2)
    prompts = [random_ids(70, 1), random_ids(70, 2)]
    first = run_all(engine, [GenerationRequest(prompt_ids=ids, max_new_tokens=70) for ids in prompts])
    longer = [[*ids, *written[:-2]] for ids, written in zip(prompts, first, strict=True)]
    expected = [answer(LocalEngine(modes, chunk_tokens=64, prefixes=0), ids, 4) for ids in longer]
    going = [engine.start(GenerationRequest(prompt_ids=ids, max_new_tokens=4)) for ids in longer]
    assert [finish(generation) for generation in going] == expected
    assert [generation.stats.reused_tokens for generation in going] == [128, 128]


def test_a_request_that_is_closed_between_passes_leaves_the_others_alone(modes: TwoModes) -> None:
    expected = [answer(LocalEngine(modes, chunk_tokens=64), random_ids(length, length), 8) for length in (5, 20)]
    rows = decoding(engine := LocalEngine(modes, chunk_tokens=64), [5, 20, 9])
    written = {row: [row._ids[-1]] for row in rows}
    engine.step(rows[0], rows[1:])
    rows[2].close()
    for row in rows[:2]:
        written[row].append(row._ids[-1])
    while any(not row.is_done for row in rows[:2]):
        for row, tokens in engine.step(rows[0], rows[1:]).items():
            written[row] += tokens  # type: ignore[operator]
    assert [written[row] for row in rows[:2]] == expected
    assert all(row.stats.decode_seconds > 0 for row in rows)

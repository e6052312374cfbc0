from typing import Any

import pytest
import torch

from skipwise.inference.engine import GenerationRequest
from skipwise.inference.generate import LocalEngine, LocalGeneration
from skipwise.inference.modes import TwoModes
from skipwise.inference.prefix import PrefixStore

from .conftest import answer, finish, random_ids

DOCUMENT = random_ids(180, 7)


def with_stats(engine: LocalEngine, prompt: list[int], **how: Any) -> tuple[list[int], int]:
    """Tokens after a prompt, and how many of the prompt came from an earlier cache."""
    with engine.start(GenerationRequest(prompt_ids=prompt, max_new_tokens=8, **how)) as generation:
        return finish(generation), generation.stats.reused_tokens


@pytest.mark.parametrize("cache", ["dynamic", "quantized-8", "quantized-4"])
def test_a_second_question_on_a_document_gets_the_same_answer_and_reads_only_itself(
    cache: str, modes: TwoModes
) -> None:
    questions = [random_ids(20, seed) for seed in (8, 9, 10)]
    engine, alone = (LocalEngine(modes, cache=cache, chunk_tokens=64, prefixes=kept) for kept in (1, 0))
    for number, question in enumerate(questions):
        tokens, reused = with_stats(engine, DOCUMENT + question)
        assert reused == (128 if number else 0)
        assert (tokens, 0) == with_stats(alone, DOCUMENT + question)


@pytest.mark.parametrize("cache", ["dynamic", "quantized-8", "quantized-4"])
def test_numbers_from_a_prefix_are_the_same_to_the_bit(
    cache: str, modes: TwoModes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    choose = LocalGeneration._choose

    def watched(generation: LocalGeneration, logits: torch.Tensor) -> int:
        seen.append(logits.clone())
        return choose(generation, logits)

    monkeypatch.setattr(LocalGeneration, "_choose", watched)
    prompt = DOCUMENT + random_ids(30, 8)
    answer(LocalEngine(modes, cache=cache, chunk_tokens=64, prefixes=0), prompt)
    engine = LocalEngine(modes, cache=cache, chunk_tokens=64)
    answer(engine, DOCUMENT)
    fresh = seen[:8]
    seen.clear()
    answer(engine, prompt)
    assert len(fresh) == len(seen) == 8
    assert all((one == other).all() for one, other in zip(fresh, seen, strict=True))


def test_a_cache_never_serves_another_mode(modes: TwoModes) -> None:
    engine = LocalEngine(modes, prefixes=4)
    # Cut finer than passes are, so that prompts of short mode have something to share.
    engine.prefixes = PrefixStore(4, 16)
    prompt = DOCUMENT[:48]
    expected = {mode: answer(LocalEngine(modes, prefixes=0), prompt, mode=mode) for mode in modes.modes}
    assert expected["short"] != expected["long"]
    found = [with_stats(engine, prompt, mode=mode) for mode in ("short", "long", "short", "long")]
    assert found == [(expected[mode], reused) for reused in (0, 32) for mode in ("short", "long")]


def test_a_cache_serves_one_request_at_a_time(modes: TwoModes) -> None:
    engine = LocalEngine(modes, chunk_tokens=64)
    answer(engine, DOCUMENT)
    first, second = (
        engine.start(GenerationRequest(prompt_ids=DOCUMENT + random_ids(20, seed), max_new_tokens=8)) for seed in (1, 2)
    )
    for generation in (first, second):
        generation.step()
    assert (first.stats.reused_tokens, second.stats.reused_tokens) == (128, 0)
    expected = [answer(LocalEngine(modes, chunk_tokens=64), DOCUMENT + random_ids(20, seed)) for seed in (1, 2)]
    assert [finish(first), finish(second)] == expected


def test_the_longest_is_taken_and_the_oldest_given_up(modes: TwoModes) -> None:
    engine = LocalEngine(modes, chunk_tokens=64, prefixes=2)
    other = random_ids(180, 20)
    answer(engine, DOCUMENT[:100])
    answer(engine, other)
    assert with_stats(engine, DOCUMENT)[1] == 64
    # Now the other document's is the older one.
    answer(engine, random_ids(180, 21))
    assert with_stats(engine, other)[1] == 0
    engine.prefixes.clear()
    assert with_stats(engine, other)[1] == 0


def test_the_last_token_of_a_prompt_is_always_read(modes: TwoModes) -> None:
    engine = LocalEngine(modes, chunk_tokens=64)
    prompt = DOCUMENT[:128]
    expected = answer(engine, prompt)
    assert with_stats(engine, prompt) == (expected, 64)


def test_caches_that_cannot_be_cut_are_not_kept(modes: TwoModes) -> None:
    engine = LocalEngine(modes, cache="static", chunk_tokens=64)
    expected = answer(engine, DOCUMENT)
    assert with_stats(engine, DOCUMENT) == (expected, 0)

from typing import Any

import pytest
import torch

from skipwise.inference.generate import LocalEngine, LocalGeneration
from skipwise.inference.modes import TwoModes
from skipwise.inference.prefix import PrefixStore

from .conftest import answer, finish, random_ids
from .test_generate import start

DOCUMENT = random_ids(180, 7)
REWINDABLE = ["dynamic", "quantized-8", "quantized-4"]


def engine_of(modes: TwoModes, prefixes: int = 1, **how: Any) -> LocalEngine:
    return LocalEngine(modes, chunk_tokens=64, prefixes=prefixes, **how)


def with_stats(engine: LocalEngine, prompt: list[int], **how: Any) -> tuple[list[int], int]:
    """Tokens after a prompt, and how many of the prompt came from an earlier cache."""
    with start(engine, prompt, 8, **how) as generation:
        return finish(generation), generation.stats.reused_tokens


@pytest.mark.parametrize("cache", REWINDABLE)
def test_a_second_question_on_a_document_gets_the_same_answer_and_reads_only_itself(
    cache: str, modes: TwoModes
) -> None:
    engine, alone = (engine_of(modes, kept, cache=cache) for kept in (1, 0))
    for reused, seed in ((0, 8), (128, 9), (128, 10)):
        prompt = DOCUMENT + random_ids(20, seed)
        assert with_stats(engine, prompt) == (with_stats(alone, prompt)[0], reused)


@pytest.mark.parametrize("cache", REWINDABLE)
def test_numbers_from_a_prefix_are_the_same_to_the_bit(cache: str, modes: TwoModes, monkeypatch: Any) -> None:
    seen: list[Any] = []
    choose = LocalGeneration._choose

    def watched(generation: LocalGeneration, logits: torch.Tensor) -> int:
        seen.append(logits.clone())
        return choose(generation, logits)

    monkeypatch.setattr(LocalGeneration, "_choose", watched)
    prompt = DOCUMENT + random_ids(30, 8)
    answer(engine_of(modes, 0, cache=cache), prompt)
    engine = engine_of(modes, cache=cache)
    answer(engine, DOCUMENT)
    fresh = seen[:8]
    seen.clear()
    answer(engine, prompt)
    assert len(fresh) == len(seen) == 8
    assert all((one == other).all() for one, other in zip(fresh, seen, strict=True))


def test_a_cache_never_serves_another_mode(modes: TwoModes) -> None:
    engine = engine_of(modes, 4)
    # Cut finer than passes are, so that prompts of short mode have something to share.
    engine.prefixes = PrefixStore(4, 16)
    prompt = DOCUMENT[:48]
    expected = {mode: answer(engine_of(modes, 0), prompt, mode=mode) for mode in modes.modes}
    assert expected["short"] != expected["long"]
    found = [with_stats(engine, prompt, mode=mode) for mode in ("short", "long", "short", "long")]
    assert found == [(expected[mode], reused) for reused in (0, 32) for mode in ("short", "long")]


def test_a_cache_serves_one_request_at_a_time(modes: TwoModes) -> None:
    engine = engine_of(modes)
    answer(engine, DOCUMENT)
    prompts = [DOCUMENT + random_ids(20, seed) for seed in (1, 2)]
    going = [start(engine, prompt, 8) for prompt in prompts]
    for generation in going:
        generation.step()
    assert [generation.stats.reused_tokens for generation in going] == [128, 0]
    assert list(map(finish, going)) == [answer(engine_of(modes, 0), prompt) for prompt in prompts]


def test_the_longest_is_taken_and_the_oldest_given_up(modes: TwoModes) -> None:
    engine = engine_of(modes, 2)
    other = random_ids(180, 20)
    answer(engine, DOCUMENT[:100])
    answer(engine, other)
    assert with_stats(engine, DOCUMENT)[1] == 64
    # Now the other document's is the older one.
    answer(engine, random_ids(180, 21))
    assert with_stats(engine, other)[1] == 0
    engine.prefixes.clear()
    assert with_stats(engine, other)[1] == 0


@pytest.mark.parametrize(
    ("cache", "tokens", "reused"), [("dynamic", 128, 64), ("dynamic", 129, 128), ("static", 180, 0)]
)
def test_the_last_token_is_always_read_and_a_cache_that_cannot_be_cut_is_not_kept(
    cache: str, tokens: int, reused: int, modes: TwoModes
) -> None:
    engine, prompt = engine_of(modes, cache=cache), DOCUMENT[:tokens]
    assert with_stats(engine, prompt) == (answer(engine_of(modes, 0, cache=cache), prompt), 0)
    assert with_stats(engine, prompt) == (answer(engine_of(modes, 0, cache=cache), prompt), reused)

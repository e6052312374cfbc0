from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_runs import TARGET

from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.engine import GenerationRequest
from skipwise.inference.generate import LocalEngine
from skipwise.inference.modes import TwoModes

from .conftest import ORIGINAL, Run, answer, finish, random_ids

SHORT, LONG = random_ids(40, 1), random_ids(200, 2)


@pytest.fixture
def engine(modes: TwoModes) -> LocalEngine:
    return LocalEngine(modes, chunk_tokens=64)


@pytest.fixture
def fresh(modes: TwoModes) -> Callable[..., list[int]]:
    """The answer of an engine that has seen nothing before."""
    return lambda prompt, new=8: answer(LocalEngine(modes, chunk_tokens=64, prefixes=0), prompt, new)


def start(engine: LocalEngine, prompt: list[int], new: int, **how: Any) -> Any:
    return engine.start(GenerationRequest(prompt_ids=prompt, max_new_tokens=new, **how))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("mode", "prompt"), [("short", SHORT), ("long", LONG)])
def test_greedy_tokens_are_those_of_the_library(mode: Any, prompt: list[int], cache: str, modes: TwoModes) -> None:
    model: Any = modes.model(mode)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    assert answer(LocalEngine(modes, cache=cache, chunk_tokens=64), prompt, 16) == expected[0, -16:].tolist()


def test_a_step_is_a_chunk_or_a_token_and_stats_count_them(engine: LocalEngine) -> None:
    with start(engine, LONG, 3) as generation:
        assert generation.mode == "long"
        steps = []
        while not generation.is_done:
            steps.append(len(generation.step()))
        assert steps == [0, 0, 0, 1, 1, 1]
        assert generation.step() == []
    stats = generation.stats
    assert (stats.prompt_tokens, stats.new_tokens, stats.read_tokens, stats.reused_tokens) == (200, 3, 202, 0)
    assert generation.finish_reason == "length"
    assert stats.prefill_seconds > 0 < stats.decode_seconds
    # Two layers of two heads of 8 numbers of 4 bytes, keys and values.
    assert stats.cache_bytes == 202 * 2 * 2 * 8 * 4 * 2


@pytest.mark.parametrize(("new", "mode"), [(4, "short"), (5, "long")])
def test_requests_are_routed_by_prompt_and_new_tokens(new: int, mode: str, engine: LocalEngine) -> None:
    assert start(engine, random_ids(ORIGINAL - 4), new).mode == mode


def test_requests_in_turns_give_what_they_give_one_after_the_other(engine: LocalEngine, fresh: Any) -> None:
    prompts = [SHORT, LONG, random_ids(30, 3), random_ids(230, 4)]
    going = [start(engine, prompt, 12) for prompt in prompts]
    assert [generation.mode for generation in going] == ["short", "long", "short", "long"]
    together: list[list[int]] = [[] for _ in going]
    while not all(generation.is_done for generation in going):
        for tokens, generation in zip(together, going, strict=True):
            tokens += generation.step()
    assert together == [fresh(prompt, 12) for prompt in prompts]


def test_samples_follow_their_seed_and_top_p(engine: LocalEngine) -> None:
    def draw(**how: Any) -> list[int]:
        return answer(engine, SHORT, 16, temperature=2.0, **how)

    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    # Among the likeliest tokens of almost no probability is the likeliest alone.
    assert draw(seed=1, top_p=1e-6) == answer(engine, SHORT, 16)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_the_coldest_samples_are_the_likeliest_tokens(temperature: float, engine: LocalEngine) -> None:
    assert answer(engine, LONG, 16, temperature=temperature, seed=1) == answer(engine, LONG, 16)


def test_samples_follow_the_softmax(engine: LocalEngine) -> None:
    generation = start(engine, [1], 1, temperature=0.5, seed=0)
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    drawn = torch.tensor([generation._choose(logits) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, (logits[0] / 0.5).softmax(-1), atol=0.03)


def test_an_end_token_and_a_stop_text_end_the_output(modes: TwoModes) -> None:
    engine = LocalEngine(modes)
    tokens = answer(engine, SHORT, 16)
    end = tokens[4]
    engine.end_ids = frozenset([end])
    assert answer(engine, SHORT, 16) == tokens[: tokens.index(end) + 1]
    engine.end_ids = frozenset()
    text = str(modes.tokenizer.decode(tokens))
    stop = text[3:5]
    with start(engine, SHORT, 16, stop=(stop,)) as generation:
        finish(generation)
        assert (generation.take_text(), generation.finish_reason) == (text[: text.index(stop)], "stop")
        assert generation.take_text() == ""


def test_closing_between_chunks_frees_the_cache(engine: LocalEngine, fresh: Any) -> None:
    generation = start(engine, LONG, 4)
    generation.step()
    generation.close()
    generation.close()
    assert (generation.is_done, generation.finish_reason, generation.step()) == (True, "closed", [])
    # What was read of the prompt serves the next request.
    again = start(engine, LONG, 4)
    assert finish(again) == fresh(LONG, 4)
    assert again.stats.reused_tokens == 64


def test_an_error_in_a_step_closes_the_request_and_keeps_nothing_of_it(
    engine: LocalEngine, modes: TwoModes, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = start(engine, LONG, 8)
    generation.step()
    layer: Any = modes.model("long").get_submodule("model.layers.1")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generation.step()
    assert generation.finish_reason == "closed"
    again = start(engine, LONG, 8)
    assert finish(again) == fresh(LONG)
    assert again.stats.reused_tokens == 0


def test_nan_logits_are_an_error(runs: dict[str, Run]) -> None:
    broken = TwoModes.load(runs["full"].folder)
    head: Any = broken.model("long").get_output_embeddings()
    with torch.no_grad():
        head.weight[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN.*199"):
        answer(LocalEngine(broken), LONG)
    assert len(answer(LocalEngine(broken), SHORT)) == 8


NO_ACCELERATOR = pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator has it")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt_ids": []}, "prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens.*0"),
        ({"temperature": -1.0}, "temperature.*-1"),
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"top_p": 0.0}, "top_p.*0"),
        ({"stop": ("",)}, "stop"),
        ({"seed": 2**64}, "seed.*18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"mode": "middle"}, "middle"),
        ({"prompt_ids": [1, 256]}, "255"),
        ({"prompt_ids": random_ids(TARGET)}, f"{TARGET + 4} tokens"),
        ({"chunk_tokens": 100}, "chunk_tokens.*100"),
        ({"cache": "tiny"}, "tiny.*dynamic"),
        ({"prefixes": -1}, "prefixes.*-1"),
        pytest.param({"cache": "offloaded"}, "'offloaded'", marks=NO_ACCELERATOR),
    ],
)
def test_a_bad_request_or_engine_is_refused_before_anything_runs(
    change: dict[str, Any], named: str, modes: TwoModes
) -> None:
    of_engine = {name: value for name, value in change.items() if name in ("chunk_tokens", "cache", "prefixes")}
    of_request = {name: value for name, value in change.items() if name not in of_engine}
    with pytest.raises(ConfigError, match=named):
        LocalEngine(modes, **of_engine).start(
            GenerationRequest(**{"prompt_ids": [1, 2], "max_new_tokens": 4, **of_request})
        )

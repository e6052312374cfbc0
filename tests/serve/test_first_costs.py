"""What a server says of requests at its start: which model, what they cost, and which roles may use the long mode."""

import math
from dataclasses import replace
from typing import Any

import pytest

from serve.standin import ByteTokenizer, StandIn
from skipwise.cli.serve_requests import requests_told
from skipwise.errors import ConfigError
from skipwise.inference.engine import GenerationRequest
from skipwise.memory import LayerShape, ParameterCounts, decode_bytes, kv_cache_bytes, prefill_flops
from skipwise.model import load_model
from skipwise.serve.backends import Embedded
from skipwise.serve.first_costs import Bench, RequestCost, Span, Work, reach, spans
from skipwise.serve.keys import Role
from skipwise.serve.scheduler import Turns

LINEAR = Work(prefill=lambda n: n, token=lambda n: 1.0, held=lambda n: n)


class Timed(StandIn):
    """A step takes a hundredth of a second for each token that it reads, a tenth for one that it writes."""

    now, most, write_seconds, asked = 0.0, math.inf, 0.1, ()

    def start(self, request: GenerationRequest) -> Any:
        generation = super().start(request)
        self.asked = (*self.asked, (generation.mode, request.total_tokens))
        step = generation.step

        def timed() -> list[int]:
            before = generation.stats.cache_bytes
            new = step()
            read = generation.stats.cache_bytes - before
            if generation.stats.cache_bytes > self.most:
                raise MemoryError
            self.now += read / 100 + len(new) * self.write_seconds
            return new

        generation.step = timed  # type: ignore[method-assign]
        return generation


def bench(engine: Timed, seconds: float, **how: Any) -> Bench:
    return Bench(engine, LINEAR, 250, seconds=seconds, clock=lambda: engine.now, **how)


@pytest.mark.parametrize(
    ("original", "target", "modes", "expected"),
    [
        (256, 1024, ("short", "long"), [(0, 256, "short"), (256, 1024, "long")]),
        (256, 4096, ("short", "long"), [(0, 256, "short"), (256, 1024, "long"), (1024, 4096, "long")]),
        (8192, 32768, ("short", "long"), [(0, 1024, "short"), (1024, 8192, "short"), (8192, 32768, "long")]),
        (40960, 40960, ("short",), [(0, 1024, "short"), (1024, 40960, "short")]),
        (256, 1024, ("long",), [(0, 1024, "long")]),
    ],
)
def test_the_spans_of_lengths(original: int, target: int, modes: Any, expected: list[Any]) -> None:
    assert spans(original, target, modes) == expected


def test_with_enough_time_every_length_is_measured() -> None:
    engine = Timed(original_window=64, target=1024)
    costs = bench(engine, 1000).measure([Span(0, 64, "short"), Span(64, 1024, "long")])
    # 8 of the tokens are written; the first of them comes with the last step of the prompt.
    assert [(cost.mode, cost.tokens, cost.estimated) for cost in costs] == [("short", 64, False), ("long", 1024, False)]
    assert [cost.first_token_seconds for cost in costs] == pytest.approx([0.56 + 0.1, 10.16 + 0.1])
    assert [cost.token_seconds for cost in costs] == pytest.approx([0.1, 0.1])
    assert [cost.cache_bytes for cost in costs] == [56, 1016]


@pytest.mark.parametrize("seconds", [0, 1, 5, 10, 20])
def test_it_takes_no_longer_than_it_may_and_says_what_it_estimated(seconds: float) -> None:
    engine = Timed(original_window=256, target=4096)
    costs = bench(engine, seconds).measure([Span(0, 256, "short"), Span(256, 4096, "long")])
    # A probe that has begun is finished, up to its first further token.
    assert engine.now <= max(seconds, 1) + 0.7
    assert costs[1].estimated
    assert costs[1].tokens == 4096
    assert costs[1].first_token_seconds == pytest.approx(4096 / 100, rel=0.35)
    if seconds == 20:
        assert ("long", 512) in engine.asked


def test_an_engine_that_writes_slowly_is_asked_for_two_tokens_alone() -> None:
    engine = Timed(original_window=64, target=1024)
    engine.write_seconds = 30.0
    (cost,) = bench(engine, 5).measure([Span(0, 1024, "long")])
    assert engine.asked == (("long", 64),)
    assert (cost.token_seconds, engine.now) == (pytest.approx(30), pytest.approx(60.56))


def test_no_more_than_half_of_the_free_memory_is_taken() -> None:
    engine = Timed(original_window=64, target=1024)
    (cost,) = bench(engine, 1000, free_bytes=1024).measure([Span(0, 1024, "long")])
    assert cost.estimated
    assert max(tokens for _, tokens in engine.asked) == 512


def test_a_length_that_does_not_fit_is_told() -> None:
    engine = Timed(original_window=64, target=1024)
    engine.most = 500
    assert [cost.fits for cost in bench(engine, 1000).measure([Span(0, 256, "long"), Span(256, 1024, "long")])] == [
        True,
        False,
    ]
    assert not engine.open


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ConfigError):
        bench(Timed(original_window=64, target=100), 10).measure([Span(0, 1000, "long")])


def test_costs_are_scaled_by_the_arithmetic_of_plan() -> None:
    model, _ = load_model("embedded")
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layer = LayerShape(query_heads=heads, kv_heads=config.num_key_value_heads, key_dim=width, value_dim=width)
    layers = [layer] * config.num_hidden_layers
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    counts = ParameterCounts(
        embedding=sum(size for name, size in sizes.items() if "embed" in name),
        head=sum(size for name, size in sizes.items() if "lm_head" in name),
        attention=sum(size for name, size in sizes.items() if "self_attn" in name and "norm" not in name),
        mlp=sum(size for name, size in sizes.items() if ".mlp." in name),
        norms=sum(size for name, size in sizes.items() if "norm" in name),
    )
    measured = RequestCost(mode="short", tokens=256, first_token_seconds=2.0, token_seconds=0.5, cache_bytes=1000)
    scaled = Work.of(model).scaled(measured, 4096, "long")
    assert (scaled.mode, scaled.tokens, scaled.estimated) == ("long", 4096, True)

    def ratio(work: Any, **how: Any) -> float:
        return work(counts, layers, 4096, **how) / work(counts, layers, 256, **how)

    assert scaled.first_token_seconds == pytest.approx(2.0 * ratio(prefill_flops))
    assert scaled.token_seconds == pytest.approx(0.5 * ratio(decode_bytes, weight_bits=32, kv_bits=32))
    assert scaled.cache_bytes == round(1000 * kv_cache_bytes(layers, 4096) / kv_cache_bytes(layers, 256)) == 16000


@pytest.mark.parametrize(
    ("role", "reached"),
    [
        (Role(), {"short": 64, "long": 4096}),
        (Role(max_context=64), {"short": 64}),
        (Role(max_context=40), {"short": 40}),
        (Role(max_context=65), {"short": 64, "long": 65}),
        (Role(models=["stand-in:short"]), {"short": 64}),
        (Role(models=["stand-in:long"]), {"long": 4096}),
        (Role(models=["stand-in:long"], max_context=40), {"long": 40}),
        (Role(models=["stand-in"]), {"short": 64, "long": 4096}),
        (Role(models=["another"]), {}),
    ],
)
def test_what_a_role_reaches(role: Role, reached: dict[str, int]) -> None:
    backend = Embedded(StandIn(), ByteTokenizer(), Turns())  # type: ignore[arg-type]
    assert reach(role, backend) == reached


def test_what_is_printed() -> None:
    backend = Embedded(StandIn(), ByteTokenizer(), Turns())  # type: ignore[arg-type]
    told = requests_told(backend, None, measure=False)
    assert [*told.lines()][1].split() == [
        "up",
        "to",
        "64",
        "tokens",
        "base",
        "\N{EN DASH}",
        "\N{EN DASH}",
        "\N{EN DASH}",
    ]
    assert [*told.lines()][-1] == "not measured: --no-measure was given"
    assert [one["tokens"] for one in told.to_json()["requests"]] == [64, 512, 4096]
    measured = RequestCost(mode="short", tokens=64, first_token_seconds=0.5, token_seconds=0.25, cache_bytes=1024)
    costs = [measured, replace(measured, estimated=True), replace(measured, fits=False)]
    _, *rows, _, note, role = replace(told, costs=costs, unmeasured="", roles={"r": {"short": 64}}).lines()
    assert [" ".join(row.split()) for row in rows] == [
        "up to 64 tokens base 0.50 s 4.0 1.00 KiB",
        "65 to 512 tokens extended 0.50 s* 4.0* 1.00 KiB",
        "513 to 4,096 tokens extended memory ran out \N{EN DASH} \N{EN DASH}",
    ]
    assert (note, role) == ("* estimated from a shorter request", "role r: base up to 64 tokens")

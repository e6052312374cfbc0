"""Settings of a mixture: what is read, and what is wrong with one, all of it in one line."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from skipwise.cli.options import assigned
from skipwise.config import DataConfig, RunConfig
from skipwise.config.reading import merge_settings
from skipwise.errors import ConfigError

SMALL = {"model": "some/model", "target": "32k"}
MIXTURE: list[Any] = [
    {"source": "docs/", "weight": 0.5, "join": False, "min_tokens": "2k"},
    {"source": ["a.jsonl", "b.jsonl"], "weight": 3, "field": "body.text", "control_tokens": "tokens"},
    {"weight": 0.1, "replay": True},
]


def run(data: Any, **more: Any) -> RunConfig:
    return RunConfig.from_mapping({**SMALL, "data": data, **more})


def test_an_entry_has_the_settings_of_the_whole_where_it_has_none_of_its_own() -> None:
    data = run({"mixture": MIXTURE, "join": True, "held_out": 0.2}).data
    first, second = data.entries()
    assert (first.source, first.join, first.min_tokens, first.field, first.held_out) == (
        "docs/",
        False,
        2048,
        "text",
        0.2,
    )
    assert (second.source, second.join, second.field) == (["a.jsonl", "b.jsonl"], True, "body.text")
    assert (second.control_tokens, second.held_out, second.mixture) == ("tokens", 0.2, [])
    assert data.source == ["docs/", "a.jsonl", "b.jsonl"]
    assert [entry.name for entry in data.mixture] == ["docs/", "a.jsonl, b.jsonl", "replay of the others"]
    assert DataConfig(source="docs").entries() == [DataConfig(source="docs")]


def test_a_source_is_measured_as_its_entry_reads_it() -> None:
    data = run({"mixture": MIXTURE, "held_out": 0.2}).data
    assert [entry.min_tokens for entry in data.measured_on().mixture] == [None] * 3
    for source in ("docs", str(Path("docs").absolute())):
        found = data.measured_on(source)
        assert (found.source, found.join, found.min_tokens, found.mixture) == (source, False, None, [])
    for source in (["b.jsonl", "a.jsonl"], "b.jsonl"):
        found = data.measured_on(source)
        assert (found.source, found.field, found.control_tokens) == (source, "body.text", "tokens")
    other = run({"source": "docs", "format": "text"}).data
    assert [other.measured_on(source).format for source in ("docs/", "others")] == ["text", "auto"]


def test_weights_are_taken_as_they_are_written() -> None:
    found = run(MIXTURE)
    assert found.short_share == Fraction(1, 36)
    assert run(
        [{"source": "a", "weight": 0.3}, {"source": "b", "weight": 0.7, "replay": True}]
    ).short_share == Fraction(7, 10)
    assert run([{"source": "a", "weight": 0.3}]).short_share == 0
    assert run({"source": "a"}, short_steps=0.25).short_share == 0.25
    assert found.without_short_steps().short_share == 0
    assert found.without_short_steps().data.source == found.data.source


def test_a_list_is_a_mixture_in_files_and_flags_alike() -> None:
    tree = merge_settings({**SMALL, "data": MIXTURE}, assigned("data.join=true"))
    assert RunConfig.from_mapping(tree) == run({"mixture": MIXTURE, "join": True})
    tree = merge_settings(SMALL, assigned("data=[{source: a, weight: 0.3}, {source: b, weight: 0.7}]"))
    assert [entry.weight for entry in RunConfig.from_mapping(tree).data.mixture] == [0.3, 0.7]
    for recipe in ("auto", "paper"):
        made = run(MIXTURE, recipe=recipe)
        assert RunConfig.from_mapping(yaml.safe_load(made.to_yaml())) == made


def test_everything_that_is_wrong_with_a_mixture_is_told_at_once_with_its_cure() -> None:
    wrong = [
        {"source": "a", "weight": 0},
        {"source": "b", "weight": -1.5},
        {"source": "c", "weight": float("nan")},
        {"weight": 1},
        {"source": "a/", "weight": 1},
        {"source": "d", "wieght": 1},
        {"source": "e", "weight": "much"},
        "docs",
    ]
    with pytest.raises(ConfigError) as raised:
        run(wrong, dtype="float33")
    told = str(raised.value)
    assert "\n" not in told
    for words in (
        "'data.mixture.0.weight' is 0; give more than 0",
        "'data.mixture.1.weight' is -1.5; give more than 0",
        "'data.mixture.2.weight' is nan; give a finite number",
        "'data.mixture.3.source' is missing",
        "'data.mixture.4.source' is 'a/'; data.mixture.0 has it too; give each source once, with",
        "'data.mixture.5.wieght' is unknown; did you mean 'weight'?",
        "'data.mixture.5.weight' is missing",
        "'data.mixture.6.weight' is 'much'; give a number",
        "'data.mixture.7' is 'docs'; give settings",
        "'dtype' is 'float33'; did you mean 'float32'?",
    ):
        assert words in told, told


REPLAY = {"weight": 1, "replay": True}
ONE = {"source": "a", "weight": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": [{**ONE, "replay": True}]}, "give an entry without replay"),
        ({"data": [ONE, REPLAY, REPLAY]}, "data.mixture.1 replays the texts of the others already"),
        ({"data": [{**ONE, "weight": float("inf")}]}, "'data.mixture.0.weight' is inf; give a finite number"),
        (
            {"data": [ONE, {"source": ["b", "a"], "weight": 1}]},
            "'data.mixture.1.source' is 'a'; data.mixture.0 has it too",
        ),
        ({"data": []}, "'data' is []; give settings"),
        ({"data": {"mixture": [ONE], "source": "b"}}, "'data.source' ('b') and 'data.mixture' are both given"),
        ({"data": {"mixture": [ONE], "streaming": True}}, "leave streaming out, or stream a single source"),
        ({"data": [ONE, REPLAY], "short_steps": 0.1}, "leave short_steps out"),
    ],
)
def test_what_goes_not_together_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_mapping({**SMALL, **settings})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_source_may_be_replayed_besides() -> None:
    assert run([ONE, {**ONE, "replay": True}]).short_share == Fraction(1, 2)

"""The search for rotary frequencies finds what was planted, keeps divisors in order, and gains or changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_config, tiny_model

from skipwise.calibrate import frequencies
from skipwise.calibrate.frequencies import (
    Candidates,
    FoundFrequencies,
    FrequencySearch,
    needle_nlls,
    search_frequencies,
    search_longrope,
    search_yarn,
    settings_of,
)
from skipwise.cli import main
from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.model import load_model, with_rope
from skipwise.records.stats import Estimate
from skipwise.rope import Interpolation, LongRoPE, RopeSpec, YaRN, interpolation_from
from skipwise.window import Window

WINDOW = Window(train=64, original=64, target=320)
SPEC = RopeSpec(rotary_dim=16, theta=10_000.0)


def away_from(planted: Interpolation) -> Callable[[Interpolation], float]:
    """Squared distance of log frequencies and log attention factor from those of another interpolation."""
    wanted = planted.table(SPEC, WINDOW)

    def distance(found: Interpolation) -> float:
        table = found.table(SPEC, WINDOW)
        apart = np.log(table.inv_freq / wanted.inv_freq)
        return float(apart @ apart) + math.log(table.attention_factor / wanted.attention_factor) ** 2

    return distance


@pytest.mark.parametrize(
    "planted", [YaRN(factor=10.0), YaRN(beta_fast=8.0, beta_slow=0.25), YaRN(attention_factor_scale=1.2, factor=7.0)]
)
def test_a_planted_ramp_and_factor_are_found(planted: YaRN) -> None:
    objective = away_from(planted)
    found = search_yarn(Candidates(objective, 200), WINDOW)
    assert objective(found) < 0.02 * objective(YaRN())


def test_the_rule_stays_where_it_is_best() -> None:
    assert search_yarn(Candidates(away_from(YaRN()), 200), WINDOW) == YaRN()


def test_planted_divisors_are_neared_and_never_fall() -> None:
    objective = away_from(LongRoPE(long_factor=(1, 1.5, 2, 3, 3.5, 4, 6, 8), attention_factor=1.3))
    seen: list[LongRoPE] = []

    def watched(candidate: Any) -> float:
        seen.append(candidate)
        return objective(candidate)

    candidates = Candidates(watched, 400)
    found = search_longrope(candidates, SPEC, WINDOW, np.random.default_rng(0))
    assert len(seen) == candidates.tried == 400
    for candidate in seen:
        divisors = candidate.long_factor
        assert divisors is not None
        assert list(divisors) == sorted(divisors)
        assert divisors[0] >= 1
        assert divisors[-1] <= 2 * WINDOW.factor * (1 + 1e-4)
    # The first one is YaRN by its rule.
    np.testing.assert_allclose(seen[0].table(SPEC, WINDOW).inv_freq, YaRN().table(SPEC, WINDOW).inv_freq, rtol=1e-4)
    assert objective(found) < 0.1 * objective(seen[0])
    assert objective(found) == min(map(objective, seen))
    again = search_longrope(Candidates(objective, 400), SPEC, WINDOW, np.random.default_rng(0))
    assert again == found


def test_a_budget_is_kept_and_no_candidate_is_judged_twice() -> None:
    judged: list[Interpolation] = []
    candidates = Candidates(lambda one: float(len(judged.append(one) or judged)), 2)
    values = [candidates(YaRN(beta_fast=beta)) for beta in (32, 32, 16, 8, 16)]
    assert values == [1, 1, 2, math.inf, 2]
    assert (candidates.is_spent, candidates.best()) == (True, YaRN())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_config("llama", max_position_embeddings=64), seed=3).eval()


def test_needles_are_judged_by_the_tokens_of_their_answers(model: Any) -> None:
    rng = np.random.default_rng(0)
    needles = [(rng.integers(0, 50, 70).tolist(), answer) for answer in (5, 3, 7)]
    changed = with_rope(model, LongRoPE(), WINDOW).eval()
    for found, (ids, answer) in zip(needle_nlls(changed, needles), needles, strict=True):
        with torch.no_grad():
            logits = changed(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = [-float(logits[place - 1, ids[place]]) for place in range(70 - answer, 70)]
        assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_search_is_repeated_exactly_and_its_settings_are_those_of_a_run(tiny_checkpoint: Any) -> None:
    loaded = load_model(tiny_checkpoint)
    documents = [np.random.default_rng(1).integers(0, 200, 500)]
    search = FrequencySearch(kind="longrope", candidates=4, trials=2, judged=3)
    before = loaded.model.config.to_dict()
    first, second = (
        search_frequencies(*loaded, documents, WINDOW, search=search, seed=2, progress=False) for _ in range(2)
    )
    assert first == second
    assert loaded.model.config.to_dict() == before
    assert first.tried == 4
    assert first.difference.value == pytest.approx(first.nlls[1] - first.nlls[0])
    assert interpolation_from(settings_of(first.best)) == first.best
    extended = load_model(tiny_checkpoint, interpolation=YaRN(), window=WINDOW)
    with pytest.raises(ConfigError, match="scaled by 'yarn' already"):
        search_frequencies(*extended, documents, WINDOW, search=search, progress=False)


@pytest.mark.parametrize(("high", "kind"), [(-0.1, "longrope"), (0.1, "yarn"), (None, "yarn")])
def test_without_a_measurable_gain_the_rule_stays(high: float | None, kind: str) -> None:
    best = LongRoPE(long_factor=(1.0, 2.0), attention_factor=1.1)
    difference = Estimate(-0.3, None if high is None else -0.5, high)
    found = FoundFrequencies(best=best, begin=YaRN(), difference=difference, nlls=(2.0, 1.7), tried=3)
    assert found.settings["kind"] == kind
    assert found.is_better == (kind == "longrope")


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'longrope'"):
        FrequencySearch(kind="longrop")
    with pytest.raises(ConfigError, match="candidates is 1; give 2 or more"):
        FrequencySearch(candidates=1)
    assert frequencies.KINDS == ("yarn", "longrope")


def test_the_verb_writes_settings_that_a_run_takes(
    tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the river is wide " * 400)
    command = ["calibrate", "rope", str(tiny_checkpoint), "--target", "320", "--kind", "yarn"]
    small = ["--candidates", "3", "--trials", "2", "--judged", "2", "--documents", str(tmp_path / "text.txt")]
    out = tmp_path / "run.yaml"
    assert main([*command, *small, "--out", str(out)]) == 0
    written = RunConfig.from_yaml(out)
    assert (written.target, written.build_interpolation().kind) == (320, "yarn")
    assert "# 3 tried; nats per answer token on other needles" in capsys.readouterr().out
    assert main([*command, *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interpolation"]["kind"] == "yarn"
    assert main([*command[:-1], "yarm"]) == 2

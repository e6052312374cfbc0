"""The effective context length: two rules, lower bounds, and honest refusals. All numbers here are made up."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from skipwise.errors import CheckpointError, DataError
from skipwise.report import effective_length, mean_scores, state_effective_length, write_model_card
from skipwise.window import Window


@dataclass(frozen=True, kw_only=True)
class Score:
    """The shape of an EvalResult."""

    task: str
    length_tokens: int
    value: float
    ci_low: float | None
    ci_high: float | None = None
    metric: str = "score"
    num_samples: int = 50
    details: dict[str, Any] = field(default_factory=dict)


def scores(**by_length: float) -> list[Score]:
    return [
        Score(task="vt", length_tokens=int(name[1:]), value=value, ci_low=value - 0.02)
        for name, value in by_length.items()
    ]


def test_the_lower_bound_decides_not_the_mean() -> None:
    # 0.87 is above RULER's 0.856, its lower end 0.85 is not.
    found = effective_length(scores(L1024=0.99, L2048=0.90, L4096=0.87, L8192=0.40), 8192)
    assert (found.effective_tokens, found.measured_tokens, found.holds) == (2048, 8192, False)
    assert "2k under RULER's rule" in found.line
    assert "85.6%" in found.line


def test_a_length_beyond_a_failing_one_does_not_count() -> None:
    assert effective_length(scores(L1024=0.99, L2048=0.50, L4096=0.99), 4096).effective_tokens == 1024


def test_the_relative_rule_holds_a_model_to_its_own_short_score() -> None:
    results = scores(L1024=0.50, L2048=0.46, L4096=0.44)
    assert effective_length(results, 4096).effective_tokens == 0
    # 85% of 0.50 is 0.425: 0.46 - 0.02 is above it, 0.44 - 0.02 below.
    found = effective_length(results, 2048, "relative")
    assert (found.threshold, found.effective_tokens, found.holds) == (pytest.approx(0.425), 2048, True)


def test_a_window_is_not_believed_further_than_it_was_measured() -> None:
    found = effective_length(scores(L1024=0.99, L2048=0.99), 4096)
    assert not found.holds
    assert "measured to 2k only" in found.line


def test_a_model_that_never_scores_has_no_effective_length() -> None:
    nothing = [Score(task="vt", length_tokens=length, value=0.0, ci_low=0.0) for length in (1024, 2048)]
    assert effective_length(nothing, 2048, "relative").effective_tokens == 0


def test_without_an_interval_nothing_is_sure() -> None:
    single = [Score(task="vt", length_tokens=1024, value=1.0, ci_low=None)]
    assert effective_length(single, 1024).effective_tokens == 0


def test_the_interval_of_the_mean_is_that_of_independent_tasks() -> None:
    """Against a simulation: the lower end of the mean of two binomial shares covers as often as it says."""
    rng = np.random.default_rng(0)
    truth, num = (0.8, 0.5), 200
    below = 0
    for _ in range(2000):
        shares = [rng.binomial(num, share) / num for share in truth]
        results = [
            Score(
                task=f"t{i}",
                length_tokens=1024,
                value=share,
                ci_low=share - 1.96 * math.sqrt(share * (1 - share) / num),
            )
            for i, share in enumerate(shares)
        ]
        (mean,) = mean_scores(results)
        assert mean.ci_low is not None
        below += mean.ci_low <= sum(truth) / 2
    assert 0.96 < below / 2000 < 0.99, "a one-sided error of 2.5%"


def test_every_length_has_the_same_tasks() -> None:
    results = [*scores(L1024=0.9, L2048=0.9), Score(task="cwe", length_tokens=1024, value=0.5, ci_low=0.4)]
    with pytest.raises(DataError, match="cwe was not measured at both 1024 and 2048"):
        effective_length(results, 2048)


def test_depths_controls_and_perplexities_are_no_scores() -> None:
    others = [
        Score(task="vt", length_tokens=1024, value=0.0, ci_low=0.0, details={"depth_from": 0.0, "depth_to": 0.5}),
        Score(task="suite", length_tokens=1024, value=0.0, ci_low=0.0, details={"kind": "continue_control"}),
        Score(task="perplexity", length_tokens=1024, value=9.0, ci_low=8.0, metric="perplexity"),
    ]
    (mean,) = mean_scores([*others, *scores(L1024=0.9)])
    assert (mean.value, mean.num_tasks) == (0.9, 1)
    with pytest.raises(DataError, match="no record has a retrieval score"):
        mean_scores(others)


def test_the_later_measurement_counts() -> None:
    (mean,) = mean_scores([*scores(L1024=0.2), *scores(L1024=0.9)])
    assert mean.value == 0.9


def test_the_model_card_states_it_beside_the_configured_length(tmp_path) -> None:
    window = Window(train=1024, original=2048, target=8192)
    settings = {"kind": "yarn"}
    write_model_card(
        tmp_path, base="m", window=window, interpolation=settings, sampler=settings, tuning=settings, data=settings
    )
    card = tmp_path / "README.md"
    assert "- Configured context length: 8192 tokens\n- Effective context length: not measured" in card.read_text()
    found = [effective_length(scores(L1024=0.99, L2048=0.9, L8192=0.6), 8192, rule) for rule in ("ruler", "relative")]
    for _ in range(2):
        state_effective_length(tmp_path, found)
    text = card.read_text()
    assert "- Effective context length: 2k under RULER's rule" in text
    assert "2k under the relative rule (85% of its own short score)" in text
    assert text.count("Effective context length:") == 1
    card.write_text("mine")
    with pytest.raises(CheckpointError, match="has no line"):
        state_effective_length(tmp_path, found)

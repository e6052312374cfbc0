"""The effective context length: two rules, lower bounds, and honest refusals. All numbers here are made up."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from skipwise.compare.settings import EvaluationConfig
from skipwise.demo import DemoSettings
from skipwise.errors import DataError
from skipwise.records.results import EvalResult
from skipwise.records.stats import wilson
from skipwise.report.effective import EffectiveLength, effective_length, mean_scores, short_limit
from skipwise.report.samples import Rule, enough_trials, least_samples

Score = partial(EvalResult, metric="score", num_samples=50, ci_high=None)


def scores(**by_length: float) -> list[EvalResult]:
    """Scores of 0.02 less to 0.01 more."""
    return [
        Score(task="vt", length_tokens=int(name[1:]), value=value, ci_low=value - 0.02, ci_high=value + 0.01)
        for name, value in by_length.items()
    ]


def effective(
    results: list[EvalResult], advertised: int, rule: Rule = "ruler", *, original: int = 1024
) -> EffectiveLength:
    return effective_length(results, advertised_tokens=advertised, original_tokens=original, rule=rule)


# 0.46 - 0.85 * 0.50 = 0.035 is above hypot(0.02, 0.85 * 0.01) = 0.022; 0.44 - 0.425 = 0.015 is not.
HALF_RIGHT = scores(L1024=0.50, L2048=0.46, L4096=0.44)
# 0.45 - 0.02 is above 0.425, but the short score may as well be 0.54.
UNCERTAIN = Score(task="vt", length_tokens=1024, value=0.50, ci_low=0.46, ci_high=0.54)
NEVER_RIGHT = [Score(task="vt", length_tokens=length, value=0.0, ci_low=0.0, ci_high=0.0) for length in (1024, 2048)]
SINGLE = Score(task="vt", length_tokens=1024, value=1.0, ci_low=None)


@pytest.mark.parametrize(
    ("results", "rule", "effective_tokens", "words"),
    [
        # 0.87 is above RULER's 0.856, its lower end 0.85 is not.
        (scores(L1024=0.99, L2048=0.90, L4096=0.87, L8192=0.40), "ruler", 2048, ["2k under RULER's rule", "85.6%"]),
        # A length beyond a failing one does not count.
        (scores(L1024=0.99, L2048=0.50, L4096=0.99), "ruler", 1024, []),
        # A window does not hold further than it was measured.
        (scores(L1024=0.99, L2048=0.99), "ruler", 2048, ["measured to 2k only"]),
        (HALF_RIGHT, "ruler", 0, []),
        (HALF_RIGHT, "relative", 2048, ["2k under the relative rule", "85% of its own 50.0% at 1k"]),
        # The reference itself holds.
        ([UNCERTAIN, *scores(L2048=0.45)], "relative", 1024, []),
        (NEVER_RIGHT, "relative", 0, []),
        # Without an interval nothing is sure.
        ([SINGLE], "ruler", 0, []),
        ([SINGLE, *scores(L2048=0.99)], "relative", 1024, []),
    ],
)
def test_the_lower_bound_decides_up_to_the_first_length_that_fails(
    results: list[EvalResult], rule: Rule, effective_tokens: int, words: list[str]
) -> None:
    found = effective(results, 8192, rule)
    assert (found.effective_tokens, found.holds) == (effective_tokens, False)
    assert found.measured_tokens == results[-1].length_tokens
    assert all(word in found.line for word in words)
    assert found.threshold == pytest.approx(0.856 if rule == "ruler" else 0.85 * results[0].value)


def test_a_score_is_not_held_to_itself() -> None:
    """A model that finds next to nothing keeps all of it, if its only length is its own reference."""
    for original in (4096, 32768):
        found = effective(scores(L32768=0.20), 32768, "relative", original=original)
        assert (found.decided, found.threshold, found.effective_tokens, found.holds) == (False, None, 0, False)
        limit = {4096: "4k", 32768: "16k"}[original]
        assert f"not decided under the relative rule: no short score, measure a length of at most {limit}" in found.line
    assert found.to_json()["threshold"] is None
    assert effective(scores(L4096=0.20, L32768=0.01), 32768, "relative", original=4096).effective_tokens == 4096


def test_short_is_the_original_window_or_half_of_one_never_extended() -> None:
    assert (short_limit(4096, 32768), short_limit(4096, 4097), short_limit(4096, 4096)) == (4096, 4096, 2048)


@pytest.mark.parametrize(
    ("by_length", "advertised", "outcome"),
    [
        ({"L1024": 0.99, "L2048": 0.99}, 2048, "holds"),
        ({"L1024": 0.99, "L2048": 0.99}, 4096, "holds as far as measured"),
        ({"L1024": 0.99, "L2048": 0.20}, 4096, "falls short"),
        ({"L1024": 0.20}, 4096, "falls short"),
        # What was measured beyond the window is held against nobody.
        ({"L1024": 0.99, "L2048": 0.99, "L4096": 0.20}, 2048, "holds"),
    ],
)
def test_a_length_that_nobody_measured_falls_short_of_nothing(
    by_length: dict[str, float], advertised: int, outcome: str
) -> None:
    for rule in ("ruler", "relative"):
        found = effective(scores(**by_length), advertised, rule)
        # A score is not held to itself.
        expected = "holds as far as measured" if rule == "relative" and by_length == {"L1024": 0.20} else outcome
        assert found.outcome == found.to_json()["outcome"] == expected


def passkeys(right: int, of: int, length: int = 512) -> list[EvalResult]:
    low, high = wilson(right, of).low, wilson(right, of).high
    return [Score(task="passkey", length_tokens=length, value=right / of, ci_low=low, ci_high=high, num_samples=of)]


def test_so_few_samples_that_no_score_can_pass_are_told_and_nothing_else() -> None:
    for right in (20, 19):
        found = effective(passkeys(right, 20), 512)
        assert (found.decided, found.outcome) == (False, "not decided")
        assert found.line == (
            "effective context length not decided under RULER's rule: at 512, 20 samples of a task are too few for any "
            "score to pass; measure 23 or more at every length; advertised 512"
        )
    assert effective(passkeys(23, 23), 512).holds, "0.856 * 1.96^2 / 0.144 = 22.8 samples, all right, are enough"
    for results in (passkeys(22, 23), passkeys(0, 20), passkeys(10, 20)):
        assert effective(results, 512).outcome == "falls short", "enough samples, or so bad that few tell it"
    # 0.85 * 1.96^2 / 0.15 = 21.8
    for of, outcome in ((21, "not decided"), (22, "holds")):
        results = [*passkeys(of, of, 512), *passkeys(of, of, 1024)]
        assert effective(results, 1024, "relative", original=512).outcome == outcome


def plain_wilson(right: int, of: int) -> tuple[float, float]:
    """The interval as textbooks write it, by the roots of (p - right/of)^2 = z^2 p (1 - p) / of."""
    z, p = 1.959963984540054, right / of
    a, b, c = 1 + z * z / of, -(2 * p + z * z / of), p * p
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_the_least_number_of_samples_is_that_at_which_a_perfect_score_passes_beside_any_short_one(
    num_tasks: int,
) -> None:
    def decidable(number: int) -> bool:
        below = (1 - plain_wilson(number, number)[0]) / math.sqrt(num_tasks)
        relative = all(
            1 - 0.85 * short / number
            >= math.hypot(below, 0.85 * (plain_wilson(short, number)[1] - short / number) / math.sqrt(num_tasks)) - 1e-9
            for short in range(number + 1)
        )
        return 1 - below >= 0.856 and relative

    least = least_samples(num_tasks)
    assert [decidable(number) for number in range(1, least + 3)] == [False] * (least - 1) + [True] * 3
    assert enough_trials(5, num_tasks=num_tasks) == next(n for n in range(least, 99) if n % 5 == 0)


def test_whoever_chooses_trials_chooses_enough() -> None:
    compared = next(task for task in EvaluationConfig().tasks if isinstance(task, dict) and task["kind"] == "passkey")
    assert compared["trials"] == DemoSettings().trials == 25
    assert compared["trials"] % compared["num_depths"] == DemoSettings().trials % DemoSettings().num_depths == 0


def test_the_relative_rule_errs_as_rarely_as_it_says() -> None:
    """At a true ratio of exactly the share, a length is taken for good in 2.5% of cases."""
    rng = np.random.default_rng(0)
    num, held = 100, 0
    for _ in range(1500):
        results = []
        for length, truth in ((1024, 0.8), (2048, 0.68)):
            estimate = wilson(int(rng.binomial(num, truth)), num)
            results.append(
                Score(
                    task="vt",
                    length_tokens=length,
                    value=estimate.value,
                    ci_low=estimate.low,
                    ci_high=estimate.high,
                )
            )
        held += effective(results, 2048, "relative").holds
    assert 0.01 < held / 1500 < 0.04


def ruler(length: int, num_samples: int = 20) -> list[EvalResult]:
    return [
        Score(
            task=f"ruler_{number}", length_tokens=length, value=1.0, ci_low=0.84, ci_high=1.0, num_samples=num_samples
        )
        for number in range(13)
    ]


def test_a_verdict_says_what_it_is_over() -> None:
    full = effective([*ruler(1024), *ruler(2048)], 2048).to_json()
    assert full["basis"].startswith("over 13 tasks x 20 prompts a length: RULER's 13 tasks in skipwise's own words")
    assert full["tasks"] == [f"ruler_{number}" for number in range(13)]
    assert full["mean_scores"][1] == {
        "length_tokens": 2048,
        "value": 1.0,
        "ci_low": pytest.approx(1 - 0.16 / math.sqrt(13)),
        "ci_high": 1.0,
        "num_samples": 260,
    }
    few = effective([*ruler(1024)[:2], *scores(L1024=0.9)], 2048).to_json()["basis"]
    assert few.startswith(
        "over 3 tasks x 20\N{EN DASH}50 prompts a length: ruler_0, ruler_1, vt; these are not RULER's"
    )
    needles = [replace(score, task="needles", details={"kind": "single"}) for score in scores(L1024=0.9)]
    assert (
        "over 1 task x 50 prompts a length: needles single; these are not"
        in effective(needles, 1024).to_json()["basis"]
    )


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
    with pytest.raises(DataError, match=r"cwe .* 1024 .* 2048"):
        effective(results, 2048)


def test_depths_controls_and_perplexities_are_no_scores() -> None:
    others = [
        Score(task="vt", length_tokens=1024, value=0.0, ci_low=0.0, details={"depth_from": 0.0, "depth_to": 0.5}),
        Score(task="suite", length_tokens=1024, value=0.0, ci_low=0.0, details={"kind": "continue_control"}),
        Score(task="perplexity", length_tokens=1024, value=9.0, ci_low=8.0, metric="perplexity"),
    ]
    (mean,) = mean_scores([*others, *scores(L1024=0.9)])
    assert (mean.value, mean.tasks) == (0.9, ("vt",))
    with pytest.raises(DataError, match="passkey"):
        mean_scores(others)


def test_the_later_measurement_counts() -> None:
    (mean,) = mean_scores([*scores(L1024=0.2), *scores(L1024=0.9)])
    assert mean.value == 0.9

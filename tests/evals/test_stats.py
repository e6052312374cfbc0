"""Intervals against published numbers and against repeated sampling."""

import numpy as np
import pytest

from skipwise.evals.stats import bootstrap_ratio, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    estimate = wilson(successes, trials)
    assert estimate == pytest.approx((successes / trials, low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert mirrored == pytest.approx((1 - successes / trials, 1 - high, 1 - low), abs=5e-5)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, size=400)
    estimate = bootstrap_ratio(values, np.ones(400), rng)
    error = values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate[1:] == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)


def test_bootstrap_weighs_by_tokens_and_draws_whole_documents() -> None:
    rng = np.random.default_rng(0)
    estimate = bootstrap_ratio([2.0, 300.0], [1, 100], rng)
    assert estimate.value == pytest.approx(302 / 101)
    # A quarter of the resamples are the first document alone, a quarter the second alone.
    assert estimate[1:] == pytest.approx((2.0, 3.0))


def test_one_document_has_no_interval() -> None:
    assert bootstrap_ratio([2.0], [4], np.random.default_rng(0)) == (0.5, None, None)

"""Intervals against published numbers and against repeated sampling."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.errors import CheckpointError
from skipwise.records.stats import Estimate, bootstrap_ratio, student_t, widened, wilson


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0), st.floats(0, 1))
def test_a_better_score_never_lowers_an_end(scores: list[float], place: int, raised: float) -> None:
    better = list(scores)
    better[place % len(scores)] = max(raised, scores[place % len(scores)])
    before, after = (np.array(wilson(math.fsum(each), len(each)), float) for each in (scores, better))
    assert (after >= before - 1e-12).all()


@pytest.mark.parametrize("grades", [[0.75], [0.0, 1.0], [0.5, 0.75, 1.0], [0.95, 1.0]])
def test_intervals_of_graded_scores_cover_at_least_as_often_as_they_say(grades: list[float]) -> None:
    rng = np.random.default_rng(0)
    sums = rng.choice(grades, size=(2000, 20)).sum(axis=1)
    _, low, high = np.array([wilson(total, 20) for total in sums], float).T
    assert ((low <= np.mean(grades)) & (np.mean(grades) <= high)).mean() > 0.94


def test_a_perplexity_beyond_any_float_is_the_checkpoints_fault() -> None:
    assert Estimate(1.0, 0.0, None).exp() == (pytest.approx(math.e), 1.0, None)
    with pytest.raises(CheckpointError, match=r" 800 .* 709"):
        Estimate(800.0, None, None).exp()
    with pytest.raises(CheckpointError, match=r" 700 .* 900.* 709"):
        Estimate(700.0, 500.0, 900.0).exp()


@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile"),
    # Published to three places.
    [
        *[(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (5, 0.95, 2.571), (9, 0.95, 2.262)],
        *[(30, 0.95, 2.042), (120, 0.95, 1.980), (1, 0.99, 63.657), (2, 0.99, 9.925), (10, 0.9, 1.812)],
    ],
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, confidence: float, quantile: float) -> None:
    assert student_t(degrees, confidence) == pytest.approx(quantile, abs=5e-4)


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
    # A quarter of the resamples are the first document alone, a quarter the second alone: before they are widened, the
    # ends are 2 and 3.
    factor = math.sqrt(2) * 12.706 / 1.96
    assert estimate[1:] == pytest.approx((0.0, 302 / 101 + factor * (3 - 302 / 101)), rel=1e-3)


def _normal(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(3.0, 0.3, size)


def _skewed(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.exp(rng.normal(-0.02, 0.2, size))


@pytest.mark.parametrize(("draw", "truth"), [(_normal, 3.0), (_skewed, 1.0)])
@pytest.mark.parametrize("num_documents", [2, 3, 5, 10, 20])
def test_few_documents_cover_as_often_as_they_say(
    draw: Callable[[np.random.Generator, int], np.ndarray], truth: float, num_documents: int
) -> None:
    """Plain percentiles cover 50%, 75%, 83%, 90% and 92% here."""
    rng = np.random.default_rng(1)
    weights = np.ones(num_documents)
    estimates = [bootstrap_ratio(draw(rng, num_documents), weights, rng, num_resamples=200) for _ in range(800)]
    _, low, high = np.array(estimates, float).T
    assert 0.915 <= ((low <= truth) & (truth <= high)).mean() <= 0.975


def test_ends_stay_among_the_values_that_there_are() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_ratio([9, 4], [10, 10], rng, most=1.0)[1:] == (0.0, 1.0)
    assert widened(2.0, np.array([2.5, 3.0]), 5).low == 2.0, "the value is within its interval"


def test_one_document_has_no_interval() -> None:
    assert bootstrap_ratio([2.0], [4], np.random.default_rng(0)) == (0.5, None, None)

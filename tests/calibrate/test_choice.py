"""The rule that chooses a factor, on tables of numbers whose right answer is plain."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from skipwise.calibrate.choice import FactorScores, Rule, finds_more, perplexity_ratio, scores_json

SHORT, TARGET = 256, 4096
RULE = Rule(target=TARGET, tolerance=0.03)
# What documents differ by is the same under every factor, as it is measured: pairs tell small changes apart.
DOCUMENTS = (0.3, -0.2, 0.0, 0.1, -0.1, -0.1)
JITTER = (0.001, -0.001, 0.002, -0.002, 0.0005, -0.0005)


def scores(scale: float, short: float, target: float | None, found: int | None, asked: int = 20) -> FactorScores:
    """Of one factor: perplexities, and that the first `found` passkeys were found."""
    nlls: dict[int, Sequence[float]] = {}
    for length, perplexity in ((SHORT, short), (TARGET, target)):
        if perplexity is not None:
            wobble = scale - 1
            nlls[length] = [
                math.log(perplexity) + own + wobble * jitter for own, jitter in zip(DOCUMENTS, JITTER, strict=True)
            ]
    passkeys = None if found is None else [place < found for place in range(asked)]
    return FactorScores(scale=scale, attention_factor=1.2 * scale, nlls=nlls, found=passkeys)


TABLES: dict[str, tuple[list[FactorScores], float]] = {
    "most passkeys within the tolerance": (
        [scores(1.0, 8.6, 9.2, 6), scores(1.1, 8.8, 9.0, 14), scores(1.2, 9.06, 9.1, None)],
        1.1,
    ),
    "passkeys never buy more perplexity at the target than the tolerance": (
        [scores(1.0, 8.6, 9.2, 6), scores(1.1, 8.6, 9.3, 13), scores(1.2, 8.6, 9.6, None)],
        1.1,
    ),
    "a tie goes to the nearest to 1, from below too": (
        [scores(1.0, 8.6, 9.2, 0), scores(1.1, 8.6, 9.2, 20), scores(1.05, 8.6, 9.2, 20), scores(0.96, 8.6, 9.2, 20)],
        0.96,
    ),
    "no gain in passkeys that chance explains": ([scores(1.0, 8.6, 9.2, 10), scores(1.1, 8.7, 9.3, 15)], 1.0),
    "one passkey more than chance explains": ([scores(1.0, 8.6, 9.2, 10), scores(1.1, 8.7, 9.3, 16)], 1.1),
    "a perplexity that is measurably better does not pay for fewer passkeys": (
        [scores(1.0, 8.6, 9.2, 10), scores(1.1, 8.6, 8.0, 9)],
        1.0,
    ),
    "no change is nearest to 1 where all find the same within the tolerance": (
        [scores(1.0, 8.6, 9.2, 20), scores(1.1, 8.6, 9.1, 20)],
        1.0,
    ),
    "no change gives way where it predicts worse than the tolerance allows": (
        [scores(1.0, 8.6, 9.2, 0), scores(1.1, 8.6, 8.5, 0), scores(1.2, 8.6, 8.4, 0)],
        1.1,
    ),
    "what spoils the short window sets no mark at the target": (
        [scores(1.0, 8.6, 9.2, 5), scores(1.3, 10.0, 7.0, None), scores(1.05, 8.7, 9.2, 15)],
        1.05,
    ),
    "alone": ([scores(1.0, 8.6, 9.2, 0)], 1.0),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_rule_chooses(name: str) -> None:
    measured, chosen = TABLES[name]
    assert RULE.choose(measured).scale == chosen
    assert RULE.choose(measured[::-1]).scale == chosen


@pytest.mark.parametrize("name", TABLES)
def test_a_choice_is_never_worse_than_no_change(name: str) -> None:
    measured, _ = TABLES[name]
    chosen, unchanged = RULE.choose(measured), next(one for one in measured if one.scale == 1.0)
    assert chosen.num_found >= unchanged.num_found
    for length in (SHORT, TARGET):
        assert chosen.log_perplexity(length) <= unchanged.log_perplexity(length) + math.log(1.03) + 1e-9


def test_one_document_measures_no_perplexity_apart() -> None:
    one, other = (
        FactorScores(scale=scale, attention_factor=scale, nlls={TARGET: [nll]}, found=[True])
        for scale, nll in ((1.0, 2.0), (1.1, 1.0))
    )
    assert RULE.choose([one, other]).scale == 1.0


def test_broken_logits_rule_a_factor_out() -> None:
    broken = FactorScores(scale=1.3, attention_factor=1.5, broken="NaN")
    measured = [scores(1.0, 8.6, 9.2, 5), broken]
    assert RULE.choose(measured).scale == 1.0
    assert RULE.verdict(broken, measured) == "NaN"


@pytest.mark.parametrize(
    ("wins", "losses", "more"),
    # Exact tails of a fair coin: 1/32, 1/64, (1 + 8)/256, (1 + 9)/512.
    [(5, 0, False), (6, 0, True), (7, 1, False), (8, 1, True), (0, 0, False), (0, 6, False)],
)
def test_the_sign_test_is_exact(wins: int, losses: int, more: bool) -> None:
    same = [True] * 3 + [False] * 4
    found = [True] * wins + [False] * losses + same
    assert finds_more(found, [False] * wins + [True] * losses + same) is more


def test_a_ratio_is_of_pairs_with_students_interval() -> None:
    one, other = scores(1.1, 8.6, 9.0, 0), scores(1.0, 8.6, 9.2, 0)
    ratio = perplexity_ratio(one, other, TARGET)
    differences = [a - b for a, b in zip(one.nlls[TARGET], other.nlls[TARGET], strict=True)]
    mean = statistics.mean(differences)
    # The table's 97.5% quantile at 5 degrees of freedom.
    reach = 2.570582 * statistics.stdev(differences) / math.sqrt(6)
    assert ratio == pytest.approx((math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)), rel=1e-7)
    assert ratio.value == pytest.approx(9.0 / 9.2, rel=1e-3)


def test_scores_are_told_with_intervals_and_what_was_left_out_is_not() -> None:
    measured = [scores(1.0, 8.6, 9.2, 5), scores(1.3, 10.0, None, None)]
    told: list[dict[str, Any]] = [scores_json(one, measured, RULE, seed=0) for one in measured]
    assert told[0]["passkeys"]["found"] == 5
    assert told[0]["passkeys"]["low"] < 0.25 < told[0]["passkeys"]["high"]
    assert told[0]["perplexity"]["4096"]["low"] < told[0]["perplexity"]["4096"]["value"]
    assert told[0]["verdict"] == "as trained"
    assert told[1]["perplexity"].keys() == {"256"}
    assert told[1]["passkeys"] is None
    assert told[1]["verdict"] == "over 3% lost below the target"

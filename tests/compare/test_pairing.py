"""Several seeds together and two arms sample by sample, against brute force and by what pairing is for."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipwise.compare.pairing import (
    Cell,
    Scores,
    difference,
    differences,
    pooled,
    pooled_results,
    read_scores,
    rises,
)
from skipwise.records.results import EvalResult
from skipwise.records.stats import wilson


def nlls(sums: np.ndarray, weights: np.ndarray | None = None) -> Scores:
    sums = np.atleast_2d(np.asarray(sums, np.float64))
    weights = np.full(sums.shape, 10.0) if weights is None else np.broadcast_to(weights, sums.shape).astype(float)
    return Scores(names=tuple(map(str, range(sums.shape[1]))), sums=sums, weights=weights, is_nll=True)


def shares(correct: np.ndarray) -> Scores:
    return dataclasses.replace(nlls(correct, np.ones(1)), is_nll=False)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def paired(arm: Scores, reference: Scores) -> tuple[float, float, float]:
    """Difference with both ends of its interval."""
    found = difference(arm, reference, rng())
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high


def test_what_is_hard_for_both_drops_out_of_their_difference() -> None:
    hard = np.random.default_rng(1).normal(30, 12, size=24)
    arm = nlls(hard - 1 + np.random.default_rng(2).normal(0, 0.2, 24))
    value, low, high = paired(arm, nlls(hard))
    assert value == pytest.approx(-0.1, abs=0.02)
    assert low < -0.1 < high < 0
    # By itself each arm's interval is far wider than what lies between them.
    alone, _ = pooled(arm, rng())
    assert alone.high is not None
    assert math.log(alone.high / alone.value) > 5 * (high - value)


def test_the_interval_is_that_of_the_paired_t_where_samples_are_many_and_normal() -> None:
    gaps = np.random.default_rng(3).normal(-0.5, 2.0, size=400)
    reference = np.full(400, 50.0)
    value, low, high = paired(nlls(reference + gaps), nlls(reference))
    error = gaps.std(ddof=1) / math.sqrt(400) / 10
    assert value == pytest.approx(gaps.mean() / 10)
    assert value - low == pytest.approx(1.966 * error, rel=0.08)
    assert high - value == pytest.approx(1.966 * error, rel=0.08)


def test_documents_weigh_by_their_tokens() -> None:
    weights = np.array([10.0, 90.0])
    value, _, _ = paired(nlls(np.array([20.0, 90.0]), weights), nlls(np.array([10.0, 90.0]), weights))
    assert value == pytest.approx(10 / 100)


def test_seeds_that_disagree_widen_the_interval() -> None:
    documents = np.random.default_rng(4).normal(30, 1, size=16)
    alike = np.stack([documents, documents + 0.01, documents - 0.01])
    apart = np.stack([documents, documents + 3, documents - 3])
    spread = []
    for seeds in (alike, apart):
        value, low, high = paired(nlls(seeds), nlls(documents))
        assert value == pytest.approx(0, abs=1e-9)
        spread.append(high - low)
    assert spread[1] > 5 * spread[0] > 0


def test_several_seeds_are_one_geometric_mean_perplexity() -> None:
    scores = nlls(np.array([[10.0, 20.0], [30.0, 40.0]]))
    estimate, interval = pooled(scores, rng())
    assert estimate.value == pytest.approx(math.sqrt(math.exp(30 / 20) * math.exp(70 / 20)))
    assert "seeds" in interval


def test_one_prompt_asked_of_several_seeds_is_one_prompt() -> None:
    estimate, _ = pooled(shares(np.array([[1, 1, 0, 0]] * 3)), rng())
    assert estimate == wilson(2, 4)
    assert estimate.low is not None
    assert (estimate.low or 0) < (wilson(6, 12).low or 0)


def test_scores_that_are_all_alike_leave_room_for_others() -> None:
    # Resampling five ones finds nothing but ones, and would be certain of what five prompts cannot tell.
    lowest = wilson(5, 5).low or 0.0
    assert paired(shares(np.ones(5)), shares(np.ones(5))) == pytest.approx((0, lowest - 1, 1 - lowest))
    value, low, high = paired(shares(np.zeros(5)), shares(np.ones(5)))
    assert value == low == -1 < high < 0


@pytest.mark.parametrize(("both", "one_only", "other_only"), [(0.5, 0.2, 0.1), (0.85, 0.1, 0.0), (0.1, 0.4, 0.1)])
def test_intervals_of_paired_scores_cover_as_they_say(both: float, one_only: float, other_only: float) -> None:
    draws, num_prompts, covered = np.random.default_rng(7), 20, 0
    chances = [both, one_only, other_only, 1 - both - one_only - other_only]
    for _ in range(600):
        kind = draws.choice(4, size=num_prompts, p=chances)
        _, low, high = paired(shares(kind < 2), shares((kind == 0) | (kind == 2)))
        covered += low <= one_only - other_only <= high
    assert covered / 600 >= 0.93


def test_arms_on_other_samples_are_not_compared() -> None:
    arm = nlls(np.array([1.0, 2.0]))
    other = Scores(names=("a", "b"), sums=arm.sums, weights=arm.weights, is_nll=True)
    assert difference(arm, other, rng()) is None
    heavier = Scores(names=arm.names, sums=arm.sums, weights=arm.weights * 2, is_nll=True)
    assert difference(arm, heavier, rng()) is None


def write_samples(file: Path, nll_sums: list[float], correct: list[bool]) -> Path:
    shared = {"task": "perplexity", "length_tokens": 64, "scored_tokens": 8}
    lines: list[dict[str, Any]] = [
        {**shared, "document": d, "prompt_sha256": f"p{d}", "nll_sum": nll} for d, nll in enumerate(nll_sums)
    ]
    lines += [
        {"task": "passkey", "length_tokens": 64, "prompt_sha256": f"q{i}", "correct": c} for i, c in enumerate(correct)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_samples_of_files_pair_by_what_was_asked(tmp_path: Path) -> None:
    ours = [write_samples(tmp_path / f"{seed}.jsonl", [8.0, 16.0 + seed], [True, False]) for seed in (0, 1)]
    theirs = [write_samples(tmp_path / "theirs.jsonl", [16.0, 24.0], [False, False])]
    scores = {"ours": read_scores(ours), "theirs": read_scores(theirs)}
    assert scores["ours"][Cell("perplexity", 64)].sums.tolist() == [[8.0, 16.0], [8.0, 17.0]]
    found = {(one.task, one.length_tokens): one for one in differences(scores, "theirs")}
    assert found["perplexity", 64].value == pytest.approx((24.5 - 40) / 16)
    assert found["passkey", 64].value == pytest.approx(0.5)
    assert found["passkey", 64].metric == "accuracy"
    assert found["perplexity", 64].num_seeds == 2


def test_longppl_is_paired_over_the_key_tokens_of_the_same_documents(tmp_path: Path) -> None:
    def written(arm: str, key_nlls: list[list[float]]) -> dict[Cell, Scores]:
        file = tmp_path / f"{arm}.jsonl"
        shared = {"task": "longppl", "length_tokens": 64, "scored_tokens": 8, "nll_sum": 8.0}
        lines = [
            {**shared, "document": d, "prompt_sha256": f"p{d}", "key_tokens": len(nlls), "key_nll_sum": sum(nlls)}
            for d, nlls in enumerate(key_nlls)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_scores([file])

    # The second document has no key token, and the last arm's own scorer finds others.
    keys = {"ours": [[1.0, 2.0], [], [6.0]], "theirs": [[2.0, 2.5], [], [7.0]], "own keys": [[1.0], [], [6.0]]}
    scores = {arm: written(arm, nlls) for arm, nlls in keys.items()}
    found = {(one.arm, one.metric): one for one in differences(scores, "theirs")}
    assert found["ours", "longppl"].value == pytest.approx((1 + 2 + 6 - 2 - 2.5 - 7) / 3)
    assert found["ours", "longppl"].num_pairs == 2
    assert found["ours", "longppl"].is_log_ratio
    assert found["ours", "perplexity"].value == 0
    assert ("own keys", "longppl") not in found


def test_a_seed_that_lacks_samples_takes_the_cell_away(tmp_path: Path) -> None:
    files = [write_samples(tmp_path / "0.jsonl", [8.0, 16.0], []), write_samples(tmp_path / "1.jsonl", [8.0], [])]
    assert read_scores(files) == {}


def test_pooled_results_say_each_number_once(tmp_path: Path) -> None:
    files = [write_samples(tmp_path / f"{seed}.jsonl", [8.0, 16.0 + 8 * seed], []) for seed in (0, 1)]
    scores = read_scores(files)

    def result(metric: str, value: float, seed: int) -> EvalResult:
        return EvalResult(
            task="perplexity", length_tokens=64, metric=metric, value=value, ci_low=1.0, ci_high=2.0, num_samples=2,
            num_skipped=0, seed=0, details={"compared": "arm", "train_seed": seed, "interval": "x"},
        )  # fmt: skip

    results = [[result("perplexity", 5.0 + s, s), result("nothing that is pooled", 1.0 + s, s)] for s in (0, 1)]
    first, second = pooled_results("arm", results, scores, [0, 1])
    assert first.value == pytest.approx(math.exp((24 + 32) / 2 / 16))
    assert first.ci_low is not None
    assert first.ci_low < first.value
    assert first.details["train_seeds"] == [0, 1]
    assert "train_seed" not in first.details
    assert (second.value, second.ci_low) == (1.5, None)


def test_a_rise_with_length_is_paired_by_document_though_more_of_it_is_read() -> None:
    """Documents differ by far more than the two lengths of each do."""
    hard = np.random.default_rng(4).normal(30, 12, size=16)
    longer = hard + 1 + np.random.default_rng(5).normal(0, 0.2, 16)

    def named(sums: np.ndarray, length: int) -> Scores:
        return dataclasses.replace(nlls(sums), names=tuple(f"{place}:{length}{place}" for place in range(16)))

    cells = {Cell("perplexity", 256): named(hard, 256), Cell("perplexity", 4096): named(longer, 4096)}
    other = dataclasses.replace(named(longer, 4096), names=tuple(f"other {place}:" for place in range(16)))
    (found,) = rises({"mine": cells, "other documents": {**cells, Cell("perplexity", 4096): other}})
    assert (found.arm, found.reference, found.length_tokens) == ("mine", "mine", 4096)
    assert found.value == pytest.approx((longer - hard).mean() / 10)
    assert found.ci_low is not None
    assert 0.05 < found.ci_low < found.value

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from test_positions import chunk_lengths, skip_law
from typer.testing import CliRunner, Result

from skipwise.cli import build_app
from skipwise.coverage import _covered_by, _two_chunks, coverage, coverage_with_error
from skipwise.errors import ConfigError, PositionError
from skipwise.positions import (
    CREAM,
    SAMPLERS,
    SKIPS,
    FullLength,
    Plain,
    PoSE,
    PositionSample,
    RandPos,
    SentenceGaps,
)
from skipwise.window import Window


def window(train: int, target: int) -> Window:
    return Window(train=train, original=train, target=target)


PAPER = window(2048, 32_768)


def distances(position_ids: np.ndarray) -> np.ndarray:
    differences = np.abs(position_ids[:, None] - position_ids[None, :])
    return np.unique(differences)


def enumerated(chunks: int, skips: str, lengths: Window) -> np.ndarray:
    """Coverage by looking at every example that there is."""
    law: dict[tuple, float] = defaultdict(float)
    for shifts, share in skip_law(skips, chunks, lengths):
        law[shifts] += share
    covered = np.zeros(lengths.target)
    for (pieces, share), (shifts, skip_share) in itertools.product(chunk_lengths(chunks, lengths.train), law.items()):
        position_ids = np.arange(lengths.train) + np.repeat((0, *shifts), pieces)
        covered[distances(position_ids)] += share * skip_share
    return covered


# Exact coverage


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize(("train", "target"), [(2, 3), (2, 9), (3, 4), (5, 7), (5, 14), (7, 30), (9, 13), (12, 12)])
def test_two_chunks_match_enumeration(train: int, target: int, skips: str) -> None:
    lengths = window(train, target)
    expected = enumerated(2, skips, lengths)
    np.testing.assert_allclose(coverage(PoSE(skips=skips), lengths), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize(
    ("train", "target"), [(3, 4), (3, 5), (3, 12), (4, 5), (4, 9), (5, 7), (6, 8), (6, 9), (7, 7), (7, 12), (8, 15)]
)
def test_three_chunks_match_enumeration(train: int, target: int, skips: str) -> None:
    lengths = window(train, target)
    expected = enumerated(3, skips, lengths)
    np.testing.assert_allclose(coverage(PoSE(chunks=3, skips=skips), lengths), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize(("train", "target"), [(96, 100), (96, 170), (96, 700)])
def test_three_chunks_match_samples_of_larger_windows(train: int, target: int, skips: str) -> None:
    lengths, sampler, rng = window(train, target), PoSE(chunks=3, skips=skips), np.random.default_rng(0)
    hits = np.zeros(target)
    for _ in range(2000):
        hits += _covered_by(sampler.sample(target, lengths, rng).position_ids, target)
    exact = coverage(sampler, lengths)
    error = np.sqrt(np.maximum(exact * (1 - exact), 1 / 2000) / 2000)
    assert (np.abs(hits / 2000 - exact) / error).max() < 5.5


def test_the_papers_window_has_the_figures_of_its_formula() -> None:
    share = coverage(PoSE(), PAPER)
    # Lc - 1 of the Lt - Lc + 1 skips cover a middle distance; of those covering D = 32,700 there are Lt - D = 68.
    assert share[16_384] == pytest.approx(2047 / 30_721)
    assert round(100 * share[16_384], 1) == 6.7
    assert share[32_700] == pytest.approx(68 / 30_721)
    assert share[32_767] == pytest.approx(1 / 30_721)
    assert share[0] == share[1023] == 1
    np.testing.assert_array_equal(share, coverage(PoSE(skips="simplex"), PAPER))


def test_full_plain_and_one_chunk() -> None:
    lengths = window(8, 32)
    np.testing.assert_array_equal(coverage(FullLength(), lengths), np.ones(32))
    short = np.repeat([1.0, 0.0], [8, 24])
    np.testing.assert_array_equal(coverage(Plain(), lengths), short)
    np.testing.assert_array_equal(coverage(PoSE(chunks=1), lengths), short)


@pytest.mark.parametrize("text", ["contiguous", "aligned"])
def test_text_makes_no_difference(text: str) -> None:
    np.testing.assert_array_equal(coverage(PoSE(text=text), window(8, 32)), coverage(PoSE(), window(8, 32)))


# Flat skips


@pytest.mark.parametrize(("train", "target"), [(2, 9), (16, 40), (64, 512), (2048, 32_768)])
def test_flat_skips_of_two_chunks_are_flat(train: int, target: int) -> None:
    share = coverage(PoSE(skips="flat"), window(train, target))
    level = (train - 1) / (target + train - 1)
    np.testing.assert_allclose(share[train : target - train + 1], level, rtol=1e-9)
    end = share[target - train + 1 :]
    assert (end >= level * (1 - 1e-9)).all()
    assert (end <= 2 * level * (1 + 1e-9)).all()
    assert share.min() >= level * (1 - 1e-9)
    # The best that any law of the skip can do for its worst distance: of the distances from Lt - 1 down to Lc in steps
    # of Lc - 1, one skip trains at most one.
    best = 1 / len(range(target - 1, train - 1, -(train - 1)))
    assert best >= level > (0.94 * best if target == 32_768 else 0.5 * best)


def test_exact_equality_would_need_a_grid_of_skips() -> None:
    lengths = window(64, 512)
    skip = np.zeros(512 - 64 + 1)
    skip[::-63] = 1 / len(skip[::-63])
    share = _two_chunks(63, skip, lengths)
    np.testing.assert_allclose(share[64:], 1 / 8)


@pytest.mark.parametrize(("train", "target"), [(256, 2048), (256, 4096), (2048, 32_768)])
def test_flat_skips_of_three_chunks_are_nearly_flat_and_twice_as_high(train: int, target: int) -> None:
    share = coverage(PoSE(chunks=3, skips="flat"), window(train, target))
    middle = share[train : target - train + 1]
    assert middle.max() < 1.2 * middle.min()
    assert share.min() == middle.min()
    two_chunks = (train - 1) / (target + train - 1)
    assert middle.min() > 1.85 * two_chunks
    sequential = coverage(PoSE(chunks=3), window(train, target))
    assert sequential[train : target - train + 1].max() > 1.6 * sequential[train : target - train + 1].min()
    assert sequential.min() < 0.03 * share.min()


@pytest.mark.parametrize("chunks", [4, 6])
def test_flat_skips_of_more_chunks_starve_no_distance(chunks: int) -> None:
    found = coverage_with_error(PoSE(chunks=chunks, skips="flat"), window(256, 4096), num_samples=3000)
    smooth = np.convolve(found.share[256:], np.ones(64) / 64, mode="valid")
    assert smooth.min() > 0.6 * smooth.mean()
    assert smooth.min() > 2 * coverage(PoSE(skips="flat"), window(256, 4096)).min()


# Sampled coverage


def test_every_sampler_has_a_coverage() -> None:
    lengths = window(32, 256)
    for variant in SAMPLERS.values():
        found = coverage_with_error(variant(), lengths, num_samples=20)
        assert found.share.shape == found.standard_error.shape == (256,)
        assert found.share.dtype == np.float64
        assert found.share[0] == 1
        assert ((found.share >= 0) & (found.share <= 1)).all()
        assert (found.standard_error.max() > 0) == (found.num_samples > 0)
        np.testing.assert_array_equal(coverage(variant(), lengths, num_samples=20), found.share)


def test_sampled_coverage_is_near_the_truth_by_its_stated_error() -> None:
    lengths, size = window(12, 64), 12
    found = coverage_with_error(RandPos(), lengths, num_samples=4000, seed=1)
    # The largest distance needs both ends: size (size - 1) of target (target - 1) ordered pairs.
    assert abs(found.share[63] - size * (size - 1) / (64 * 63)) < 5 * found.standard_error[63]
    # Of the two pairs at the distance before it, each is there alike, and both are with four given positions.
    pairs = size * (size - 1) / (64 * 63)
    both = pairs * (size - 2) * (size - 3) / (62 * 61)
    assert abs(found.share[62] - (2 * pairs - both)) < 5 * found.standard_error[62]
    assert found.num_samples == 4000
    again = coverage_with_error(RandPos(), lengths, num_samples=4000, seed=1)
    np.testing.assert_array_equal(again.share, found.share)


def test_a_distance_never_seen_still_has_an_error() -> None:
    found = coverage_with_error(CREAM(), PAPER, num_samples=50)
    assert found.share.min() == 0
    assert found.standard_error[found.share == 0].min() > 0.01


def test_samplers_from_outside_are_sampled() -> None:
    class EverySecond:
        uses_sentence_ends: ClassVar[bool] = False

        def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
            index = np.arange(window.train)
            return PositionSample(token_index=index, position_ids=2 * index)

    np.testing.assert_array_equal(coverage(EverySecond(), window(4, 10), num_samples=2), [1, 0] * 3 + [1] + [0] * 3)


@pytest.mark.parametrize("sampler", [RandPos(), CREAM(), SentenceGaps(), PoSE(chunks=40), Plain()], ids=str)
@pytest.mark.parametrize(("train", "target"), [(48, 48), (48, 64), (48, 700), (48, 20_000), (1024, 2048)])
def test_covered_distances_of_one_example(sampler: RandPos, train: int, target: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(2):
        position_ids = sampler.sample(target, window(train, target), rng).position_ids
        np.testing.assert_array_equal(np.flatnonzero(_covered_by(position_ids, target)), distances(position_ids))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        coverage(RandPos(), window(4, 8), num_samples=0)
    with pytest.raises(PositionError, match="chunks"):
        coverage(PoSE(chunks=3), window(2, 2))


# The verb


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(build_app(), ["coverage", "--train", "32", *arguments], catch_exceptions=False)

    return invoke


def records(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_verb_prints_a_table_for_every_target(run: Callable[..., Result]) -> None:
    output = run("--target", "128,256", "--samples", "20").output
    assert output.count("pose, 2 chunks, flat") == 2
    assert output.count("randpos") == 2
    assert "target 128" in output
    assert "target 256" in output
    assert "never" in output
    assert "exact" in output


def test_verb_prints_records_for_machines(run: Callable[..., Result]) -> None:
    found = records(run("--target", "1k", "--sampler", "pose,plain", "--chunks", "2", "--chunks", "3", "--json").output)
    assert [record["sampler"]["kind"] for record in found] == ["pose", "pose", "plain"]
    assert [record["sampler"].get("chunks") for record in found] == [2, 3, None]
    share = coverage(PoSE(chunks=3), window(32, 1024))
    record = found[1]
    assert record["window"] == {"train": 32, "original": 32, "target": 1024}
    assert record["share"] == [share[distance] for distance in record["distance_tokens"]]
    assert record["lowest_share"] == pytest.approx(share.min())
    assert record["lowest_share_distance_tokens"] == 1023
    assert record["num_samples"] == 0
    assert share[record["first_below_1_percent_tokens"]] < 0.01 <= share[record["first_below_1_percent_tokens"] - 1]
    assert found[2]["first_below_1_percent_tokens"] == 32


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_verb_plots(run: Callable[..., Result], tmp_path: Path, name: str) -> None:
    arguments = ("--target", "128,256", "--samples", "20", "--sampler", "pose,randpos", "--plot")
    assert run(*arguments, str(tmp_path / name)).exit_code == 0
    written = (tmp_path / name).read_bytes()
    assert len(written) < 200_000
    if name.endswith("svg"):
        assert all(text in written.decode() for text in ("32 to 128", "32 to 256", "randpos", "pose, 2 chunks"))
        run(*arguments, str(tmp_path / "again.svg"))
        assert (tmp_path / "again.svg").read_bytes() == written


@pytest.mark.parametrize("plot", ["x.gif", "/no/such/x.svg", "folder.svg"])
def test_verb_refuses_a_plot_before_it_counts(
    run: Callable[..., Result], plot: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    counting = sys.modules["skipwise.coverage"]  # The package's attribute of that name is the function.
    monkeypatch.setattr(counting, "coverage_with_error", lambda *_, **__: pytest.fail("it counted"))
    with pytest.raises(ConfigError, match=plot):
        run("--plot", plot)

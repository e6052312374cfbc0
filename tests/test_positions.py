import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.errors import ConfigError, PositionError
from skipwise.positions import (
    CREAM,
    END_TEXTS,
    ENDS,
    SAMPLERS,
    SKIPS,
    TEXTS,
    EndPrompt,
    FullLength,
    Plain,
    PoSE,
    PositionSample,
    PositionSampler,
    RandPos,
    SentenceGaps,
    draws,
    sampler_from,
)
from skipwise.window import Window

VARIANTS: list[PositionSampler] = [
    *(variant() for variant in SAMPLERS.values() if variant is not EndPrompt),
    *(PoSE(chunks=chunks, text=text, skips=skips) for chunks in (1, 2, 3, 7) for text in TEXTS for skips in SKIPS),
    *(PoSE(chunks=chunks, text=text, start="anywhere") for chunks in (1, 3) for text in TEXTS),
    SentenceGaps(sentence_tokens=1),
    *(EndPrompt(tokens=3, text=text, end=end) for text in END_TEXTS for end in ENDS),
]
LLAMA = Window(train=2048, original=2048, target=32768)


def window(train: int, target: int, original: int | None = None) -> Window:
    return Window(train=train, original=original or train, target=target)


@st.composite
def windows_and_documents(draw: st.DrawFn) -> tuple[Window, int]:
    target = draw(st.integers(7, 300))
    train = draw(st.integers(7, target))
    lengths = Window(train=train, original=draw(st.integers(2, target)), target=target)
    return lengths, draw(st.integers(train, 400))


def assert_follows(counts: Counter, law: dict) -> None:
    """Chi-square with a bound that a right sampler passes for practically every seed."""
    total = counts.total()
    assert set(counts) <= {outcome for outcome, share in law.items() if share > 0}
    statistic = sum((counts[outcome] - total * share) ** 2 / (total * share) for outcome, share in law.items() if share)
    freedom = len(law) - 1
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5 + 6


# Every sampler


@pytest.mark.parametrize("sampler", VARIANTS, ids=str)
@settings(max_examples=25)
@given(case=windows_and_documents(), seed=st.integers(0, 2**32 - 1))
def test_samples_fit_their_window_and_document(sampler: PositionSampler, case: tuple[Window, int], seed: int) -> None:
    lengths, num_tokens = case
    sample = sampler.sample(num_tokens, lengths, np.random.default_rng(seed))
    size = min(lengths.target, num_tokens) if isinstance(sampler, FullLength) else lengths.train
    for values, limit in ((sample.token_index, num_tokens), (sample.position_ids, lengths.target)):
        assert values.dtype == np.int64
        assert values.shape == (size,)
        assert values[0] >= 0
        assert values[-1] < limit
        assert (np.diff(values) > 0).all()
    again = sampler.sample(num_tokens, lengths, np.random.default_rng(seed))
    np.testing.assert_array_equal(again.token_index, sample.token_index)
    np.testing.assert_array_equal(again.position_ids, sample.position_ids)


@pytest.mark.parametrize("sampler", VARIANTS, ids=str)
def test_documents_of_the_training_window_are_used_whole_and_shorter_ones_refused(sampler: PositionSampler) -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(sampler.sample(16, window(16, 64), rng).token_index, np.arange(16))
    with pytest.raises(PositionError, match=r"15 tokens and window\.train is 16"):
        sampler.sample(15, window(16, 64), rng)


@pytest.mark.parametrize("sampler", VARIANTS, ids=str)
@pytest.mark.parametrize("original", [8, 32])
def test_a_training_window_of_the_target_leaves_nothing_to_skip(sampler: PositionSampler, original: int) -> None:
    sample = sampler.sample(100, window(32, 32, original), np.random.default_rng(0))
    np.testing.assert_array_equal(sample.position_ids, np.arange(32))


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("train", [2, 3, 4])
def test_tiny_windows(kind: str, train: int) -> None:
    for target in range(train, 9):
        for seed in range(20):
            # The default of 20 tokens at the end is refused in such windows.
            sampler = EndPrompt(tokens=1) if kind == "endprompt" else SAMPLERS[kind]()
            sample = sampler.sample(9, window(train, target), np.random.default_rng(seed))
            assert sample.position_ids[-1] < target


def test_an_end_that_leaves_nothing_before_it_is_refused() -> None:
    rng = np.random.default_rng(0)
    assert len(EndPrompt(tokens=7).sample(9, window(8, 12), rng).position_ids) == 8
    with pytest.raises(PositionError, match=r"sampler.tokens is 8 .*at most 7"):
        EndPrompt(tokens=8).sample(9, window(8, 12), rng)


@pytest.mark.parametrize(
    "sampler", [RandPos(), CREAM(), SentenceGaps(), EndPrompt(tokens=3), Plain(), FullLength()], ids=str
)
def test_text_starts_anywhere_in_the_document(sampler: PositionSampler) -> None:
    rng = np.random.default_rng(0)
    size = 12 if isinstance(sampler, FullLength) else 8
    starts = Counter()
    for _ in range(3000):
        index = sampler.sample(18, window(8, 12), rng).token_index
        np.testing.assert_array_equal(index - index[0], np.arange(size))
        starts[int(index[0])] += 1
    choices = 18 - size + 1
    assert_follows(starts, dict.fromkeys(range(choices), 1 / choices))


# PoSE


def chunk_lengths(chunks: int, tokens: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Figure 6 by enumeration: all lengths with their probability."""
    if chunks == 1:
        yield (tokens,), 1.0
        return
    longest = tokens - (chunks - 1)
    for first in range(1, longest + 1):
        for rest, share in chunk_lengths(chunks - 1, tokens - first):
            yield (first, *rest), share / longest


def rising(draws: int, low: int, high: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Equations 3 and 5 by enumeration: each draw uniform from the one before to `high`."""
    if draws == 0:
        yield (), 1.0
        return
    for first in range(low, high + 1):
        for rest, share in rising(draws - 1, first, high):
            yield (first, *rest), share / (high - low + 1)


def skip_law(skips: str, chunks: int, lengths: Window) -> Iterator[tuple[tuple[int, ...], float]]:
    budget = lengths.target - lengths.train
    if skips == "sequential":
        yield from rising(chunks - 1, 0, budget)
    elif skips == "simplex":
        for draws in itertools.product(range(budget + 1), repeat=chunks - 1):
            yield tuple(sorted(draws)), 1 / (budget + 1) ** (chunks - 1)
    else:
        values, pairs = range(-(lengths.train - 1), lengths.target), chunks * (chunks - 1) // 2
        largest = Counter(min(max(0, *draws), budget) for draws in itertools.product(values, repeat=pairs))
        for last, count in largest.items():
            for inner in itertools.product(range(last + 1), repeat=chunks - 2):
                yield (*sorted(inner), last), count / len(values) ** pairs / (last + 1) ** (chunks - 2)


@pytest.mark.parametrize(
    ("chunks", "lengths"), [(2, window(4, 9)), (3, window(4, 7)), (4, window(5, 7))], ids=["2", "3", "4"]
)
@pytest.mark.parametrize("skips", SKIPS)
def test_pose_positions_follow_their_law(chunks: int, lengths: Window, skips: str) -> None:
    if (chunks, skips) == (4, "flat"):
        lengths = window(4, 5)  # its law takes six nested draws to enumerate
    law: dict[tuple, float] = defaultdict(float)
    for pieces, share in chunk_lengths(chunks, lengths.train):
        for shifts, skip_share in skip_law(skips, chunks, lengths):
            law[tuple(np.arange(lengths.train) + np.repeat((0, *shifts), pieces))] += share * skip_share
    assert sum(law.values()) == pytest.approx(1)
    rng, sampler = np.random.default_rng(0), PoSE(chunks=chunks, skips=skips)
    counts = Counter(tuple(sampler.sample(9, lengths, rng).position_ids) for _ in range(6000))
    assert_follows(counts, law)


def test_pose_uniform_text_follows_equation_5() -> None:
    law: dict[tuple, float] = defaultdict(float)
    for pieces, share in chunk_lengths(3, 4):
        for offsets, offset_share in rising(2, 0, 7 - 4):
            law[tuple(np.arange(4) + np.repeat((0, *offsets), pieces))] += share * offset_share
    rng, sampler = np.random.default_rng(0), PoSE(chunks=3)
    counts = Counter(tuple(sampler.sample(7, window(4, 20), rng).token_index) for _ in range(6000))
    assert_follows(counts, law)


@pytest.mark.parametrize("seed", range(5))
def test_pose_text_variants(seed: int) -> None:
    def sample(text: str, num_tokens: int) -> PositionSample:
        return PoSE(chunks=3, text=text).sample(num_tokens, LLAMA, np.random.default_rng(seed))

    np.testing.assert_array_equal(sample("contiguous", 40_000).token_index, np.arange(2048))
    aligned = sample("aligned", 32_768)
    np.testing.assert_array_equal(aligned.token_index, aligned.position_ids)
    # In a shorter document text follows the positions as far as it can and stays in order.
    short = sample("aligned", 4000)
    np.testing.assert_array_equal(short.position_ids, aligned.position_ids)
    skips = short.position_ids - np.arange(2048)
    np.testing.assert_array_equal(short.token_index, np.minimum(skips, 4000 - 2048) + np.arange(2048))


@pytest.mark.parametrize("text", TEXTS)
def test_pose_moved_along_the_document(text: str) -> None:
    """Every place that the chunks fit is as likely; positions and the gaps in the text stay as they were."""
    starts = []
    for seed in range(3000):
        first, moved = (
            PoSE(text=text, skips="flat", start=start).sample(60, window(8, 40), np.random.default_rng(seed))
            for start in ("document", "anywhere")
        )
        np.testing.assert_array_equal(moved.position_ids, first.position_ids)
        by = moved.token_index - first.token_index
        assert set(by) == {by[0]}
        # The middle of the place that was drawn among those that fit.
        starts.append((by[0] + 0.5) / (60 - first.token_index[-1]))
    assert 0 < min(starts) < max(starts) < 1
    assert np.mean(starts) == pytest.approx(1 / 2, abs=0.02)
    assert np.var(starts) == pytest.approx(1 / 12, abs=0.01)


def test_pose_has_as_many_chunks_as_asked_and_no_more_than_tokens() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(PoSE(chunks=1).sample(50, window(8, 32), rng).position_ids, np.arange(8))
    assert len(PoSE(chunks=8).sample(50, window(8, 32), rng).position_ids) == 8
    with pytest.raises(PositionError, match=r"chunks is 9 and window\.train 8"):
        PoSE(chunks=9).sample(50, window(8, 32), rng)


# Other samplers


@pytest.mark.parametrize("few_draws", [256, 0])
@pytest.mark.parametrize(("size", "target"), [(2, 7), (3, 6), (4, 6), (5, 6)])
def test_randpos_draws_every_subset_alike(
    size: int, target: int, few_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "FEW_DRAWS", few_draws)  # at 0 by the way of many draws, up to half the target
    subsets = list(itertools.combinations(range(target), size))
    rng = np.random.default_rng(0)
    counts = Counter(tuple(RandPos().sample(10, window(size, target), rng).position_ids) for _ in range(5000))
    assert_follows(counts, dict.fromkeys(subsets, 1 / len(subsets)))


@pytest.mark.parametrize("target", [2049, 3000, 4096, 32_768, 100_000, 1 << 20])
def test_randpos_of_any_density_has_the_mean_and_spread_of_a_uniform_subset(target: int) -> None:
    rng = np.random.default_rng(0)
    samples = [RandPos().sample(5000, window(2048, target), rng).position_ids for _ in range(40)]
    error = target / np.sqrt(12 * 2048 * 40)
    assert abs(np.mean(samples) - (target - 1) / 2) < 5 * error
    # The gaps between neighbours of a uniform subset average (target + 1) / (size + 1).
    assert np.mean([sample[0] + 1 for sample in samples]) < 5 * (target + 1) / 2049


def cream_parts(position_ids: np.ndarray, target: int, ends: set[int]) -> tuple[int, int]:
    """Tokens of head and tail, one of `ends`, and last position of the middle."""
    size = len(position_ids)
    for end_tokens in ends:
        expected = np.arange(size)
        expected[end_tokens:] += position_ids[end_tokens] - end_tokens
        expected[size - end_tokens :] = np.arange(target - end_tokens, target)
        if (position_ids == expected).all():
            return end_tokens, int(position_ids[size - end_tokens - 1])
    raise AssertionError(f"no head, middle and tail in {position_ids}")


@pytest.mark.parametrize("original", [60, 120], ids=["train=original", "train<original"])
@pytest.mark.parametrize("target", [240, 960])
def test_cream_places_head_middle_and_tail_by_its_law(original: int, target: int) -> None:
    lengths, rng = window(60, target, original), np.random.default_rng(0)
    alpha = target / original
    both = {20, min(int(4 * alpha), 29)}
    drawn: dict[int, list[int]] = {end_tokens: [] for end_tokens in both}
    for _ in range(6000):
        end_tokens, middle_end = cream_parts(CREAM().sample(70, lengths, rng).position_ids, target, both)
        drawn[end_tokens].append(middle_end)
    gaussian = NormalDist(1 + alpha, 3)
    for end_tokens in both:
        assert 0.45 < len(drawn[end_tokens]) / 6000 < 0.55
        middle = 60 - 2 * end_tokens
        total = mean = 0.0
        for x in range(2, int(2 * alpha) + 1):
            low, high = max(x - 0.5, 2), min(x + 0.5, 2 * alpha)
            share = gaussian.cdf(high) - gaussian.cdf(low)
            earliest = int(end_tokens + (middle - 1) * x / 2)
            total, mean = total + share, mean + share * (earliest + int(original * x / 2) - end_tokens - 1) / 2
        values = drawn[end_tokens]
        assert abs(np.mean(values) - mean / total) < 5 * np.std(values) / len(values) ** 0.5


def test_cream_piles_nothing_onto_the_ends_at_small_factors() -> None:
    # x = 2 joins the middle to the head, and nothing else does. Unnormalised, 43% of the draws would be rounded there.
    rng, gaussian = np.random.default_rng(0), NormalDist(1 + 2, 3)
    expected = (gaussian.cdf(2.5) - gaussian.cdf(2)) / (gaussian.cdf(4) - gaussian.cdf(2))
    joined = [CREAM().sample(900, window(900, 1800), rng).position_ids[599] == 599 for _ in range(3000)]
    assert abs(np.mean(joined) - expected) < 5 * (expected * (1 - expected) / 3000) ** 0.5


def test_sentence_gaps_fall_on_sentence_ends_only() -> None:
    rng = np.random.default_rng(0)
    ends = rng.random(5000) < 0.05
    for _ in range(50):
        sample = SentenceGaps().sample(5000, LLAMA, rng, sentence_ends=ends)
        inside = ~ends[sample.token_index[:-1]]
        assert (np.diff(sample.position_ids)[inside] == 1).all()
        assert sample.position_ids[0] == 0
    stand_ins = SentenceGaps(sentence_tokens=100).sample(5000, LLAMA, rng)
    assert set(np.flatnonzero(np.diff(stand_ins.position_ids) > 1) + 1) <= set(range(100, 2048, 100))
    whole = SentenceGaps().sample(5000, LLAMA, rng, sentence_ends=np.zeros(5000, dtype=bool))
    np.testing.assert_array_equal(whole.position_ids, np.arange(2048))
    with pytest.raises(PositionError, match=r"bool of shape \(5000,\)"):
        SentenceGaps().sample(5000, LLAMA, rng, sentence_ends=ends[:100])


def test_sentence_gaps_draw_every_arrangement_alike() -> None:
    # Sentences of 2, 1 and 3 tokens and three unused positions: the last two sentences go to 2 of 5 slots.
    ends = np.array([False, True, True, False, False, True])
    law = {}
    for first, second in itertools.combinations(range(5), 2):
        gaps = np.repeat([0, first, second - 1], [2, 1, 3])
        law[tuple(np.arange(6) + gaps)] = 1 / 10
    rng = np.random.default_rng(0)
    counts = Counter(
        tuple(SentenceGaps().sample(6, window(6, 9), rng, sentence_ends=ends).position_ids) for _ in range(5000)
    )
    assert_follows(counts, law)


@pytest.mark.parametrize(("num_tokens", "ahead"), [(40, 12), (18, 10), (8, 0)])
def test_end_prompt_moves_the_last_tokens_to_the_end_of_the_target(num_tokens: int, ahead: int) -> None:
    """By hand: 5 tokens in place, then 3 that end at position 19; their text is up to 12 tokens further on."""
    rng = np.random.default_rng(3)
    for text in END_TEXTS:
        sample = EndPrompt(tokens=3, text=text).sample(num_tokens, window(8, 20), rng)
        np.testing.assert_array_equal(sample.position_ids, [0, 1, 2, 3, 4, 17, 18, 19])
        shift = ahead if text == "aligned" else 0
        expected = [0, 1, 2, 3, 4, 5 + shift, 6 + shift, 7 + shift]
        np.testing.assert_array_equal(sample.token_index - sample.token_index[0], expected)


def test_end_prompt_anywhere_draws_every_skip_and_every_text_alike() -> None:
    rng, drawn = np.random.default_rng(4), Counter()
    for _ in range(6000):
        sample = EndPrompt(tokens=3, text="aligned", end="anywhere").sample(11, window(8, 13), rng)
        drawn[int(sample.position_ids[5]) - 5, int(sample.token_index[0])] += 1
    law = {}
    for skip in range(6):  # U{0..5}; text of min(skip, 3) further on leaves 11 - 8 - min(skip, 3) to begin with.
        starts = 3 - min(skip, 3) + 1
        law |= {(skip, start): 1 / 6 / starts for start in range(starts)}
    assert_follows(drawn, law)


def test_full_length_takes_what_there_is() -> None:
    rng = np.random.default_rng(0)
    assert len(FullLength().sample(5000, LLAMA, rng).position_ids) == 5000
    assert len(FullLength().sample(50_000, LLAMA, rng).position_ids) == 32_768


# Values and settings


@pytest.mark.parametrize(
    ("token_index", "position_ids", "message"),
    [
        ([0, 1], [0, 1, 2], "2 tokens and 3 positions"),
        ([0, 0], [0, 1], "token_index must be 0 or above and strictly increasing"),
        ([0, 1], [1, 0], "position_ids must be 0 or above and strictly increasing"),
        ([-1, 1], [0, 1], "token_index must be 0 or above"),
        ([], [], "n >= 1"),
        ([[0, 1]], [0, 1], r"shape \(1, 2\)"),
        ([0, 10], [0, 1], "ends at token 10 and position 1; the document has 10 tokens"),
        ([0, 1], [0, 20], "position 20"),
    ],
)
def test_broken_samples_are_refused(token_index: list, position_ids: list, message: str) -> None:
    with pytest.raises(PositionError, match=message):
        PositionSample(
            token_index=np.array(token_index, dtype=np.int64), position_ids=np.array(position_ids, dtype=np.int64)
        ).check_ends(num_tokens=10, target=20)


def test_samples_of_other_numbers_are_refused() -> None:
    with pytest.raises(PositionError, match="float64"):
        PositionSample(token_index=np.zeros(1), position_ids=np.zeros(1, dtype=np.int64))


def test_sampler_from_settings() -> None:
    assert sampler_from("randpos") == RandPos()
    pose = {"kind": "pose", "chunks": 3, "skips": "flat"}
    assert sampler_from(pose) == PoSE(chunks=3, skips="flat")
    assert pose["kind"] == "pose"
    for kind, variant in SAMPLERS.items():
        assert sampler_from({"kind": kind}) == variant()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rndpos", "did you mean 'randpos'"),
        ("zzz", "known: pose, randpos, cream, sentences, endprompt, plain, full"),
        ({"chunks": 2}, "sampler.kind is None"),
        ({"kind": "pose", "chunk": 2}, "did you mean 'chunks'"),
        ({"kind": "plain", "chunks": 2}, "it has no settings"),
        ({"kind": "pose", "skips": "simples"}, "did you mean 'simplex'"),
        ({"kind": "pose", "text": "x"}, "known: uniform, contiguous, aligned"),
        ({"kind": "pose", "chunks": 0}, "whole number, 1 or more"),
        ({"kind": "pose", "chunks": 2.0}, "whole number, 1 or more"),
        ({"kind": "pose", "chunks": True}, "whole number, 1 or more"),
        ({"kind": "cream", "sigma": 0}, "number above 0"),
        ({"kind": "endprompt", "tokens": 0}, "whole number, 1 or more"),
        ({"kind": "endprompt", "text": "uniform"}, "known: contiguous, aligned"),
        ({"kind": "endprompt", "end": "middle"}, "known: target, anywhere"),
        ({"kind": "cream", "sigma": "wide"}, "number above 0"),
        ({"kind": "sentences", "sentence_tokens": -1}, "whole number, 1 or more"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(wrong: str | dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        sampler_from(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("text", TEXTS)
def test_a_quarter_of_mixed_text_is_from_the_beginning(chunks: int, text: str) -> None:
    """Of the others those that happen to begin there are few, in a document this long."""
    draws = 4000
    samplers = [PoSE(chunks=chunks, text=text, start=start) for start in ("mixed", "document", "anywhere")]
    at_the_beginning = [
        np.mean(
            [
                sampler.sample(100_000, window(8, 40), np.random.default_rng(seed)).token_index[0] == 0
                for seed in range(draws)
            ]
        )
        for sampler in samplers
    ]
    # Where chunks are drawn from all of the document, little room is left to move all of them.
    assert at_the_beginning[0] == pytest.approx(0.25 + 0.75 * at_the_beginning[2], abs=0.03)
    assert at_the_beginning[1] == 1.0
    assert at_the_beginning[2] < 0.05

"""Training items: pure functions of (seed, epoch, index), with the joints of unrelated text masked."""

import itertools
import json
import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from corpora import write_store
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data.corpus import TokenStore
from skipwise.data.items import EpochOrder, TrainingItem, TrainingItems, generator_of
from skipwise.data.store import View
from skipwise.errors import DataError, PositionError
from skipwise.positions import SAMPLERS, EndPrompt, PoSE, PositionSample, PositionSampler, SentenceGaps
from skipwise.window import Window

WINDOW = Window(train=16, original=32, target=64)
SEPARATOR, STOP = 0, 9
NUM_IDS = 4096
# Every sampler as it is by default, but for an end that is shorter than the window of these tests.
EVERY_SAMPLER: list[PositionSampler] = [
    EndPrompt(tokens=3) if variant is EndPrompt else variant() for variant in SAMPLERS.values()
]
every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=list(SAMPLERS))


def make_store(folder: Path, documents: list[np.ndarray], separator_id: int | None = None) -> TokenStore:
    ends = np.arange(NUM_IDS) == STOP
    write_store(folder, documents, separator_id=separator_id, sentence_ends=ends)
    return TokenStore(folder, View(join=separator_id is not None))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Twenty documents; token t of document d is 100 d + 10 + t, but for a full stop at every seventh."""
    documents = [100 * d + 10 + np.arange(16 + 4 * d) for d in range(20)]
    for document in documents:
        document[6::7] = STOP
    return make_store(tmp_path_factory.mktemp("items") / "store", documents)


@dataclass(frozen=True)
class Fixed:
    """Always the same tokens and positions."""

    token_index: list[int]
    position_ids: list[int]
    uses_sentence_ends: ClassVar[bool] = False

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        return PositionSample(token_index=np.array(self.token_index), position_ids=np.array(self.position_ids))


def _equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@every_sampler
def test_items_are_the_same_in_any_order_and_instance(store: TokenStore, sampler: PositionSampler) -> None:
    places = list(itertools.product(range(3), range(len(store.names))))
    items = TrainingItems(store, sampler, WINDOW, seed=5)
    expected = {place: items.item(*place) for place in places}
    random.Random(0).shuffle(places)
    again = TrainingItems(TokenStore(store.folder), sampler, WINDOW, seed=5)
    np.random.seed(0)  # noqa: NPY002 - global state must not matter
    for place in places:
        assert _equal(again.item(*place), expected[place])


def _item_in_a_process(items: TrainingItems, place: tuple[int, int]) -> TrainingItem:
    return items.item(*place)


def test_items_are_the_same_in_other_processes(store: TokenStore) -> None:
    items = TrainingItems(store, PoSE(), WINDOW, seed=5)
    places = [(epoch, index) for epoch in range(2) for index in range(len(items))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap(_item_in_a_process, [(items, place) for place in places])
    assert all(_equal(items.item(*place), result) for place, result in zip(places, results, strict=True))


@every_sampler
def test_items_are_int64_of_one_length_and_within_the_target(store: TokenStore, sampler: PositionSampler) -> None:
    items = TrainingItems(store, sampler, WINDOW, seed=1)
    for index in range(len(items)):
        item = items.item(0, index)
        assert {(field.dtype, field.shape) for field in item[:3]} == {(np.dtype(np.int64), item.input_ids.shape)}
        assert 0 <= item.position_ids.min() <= item.position_ids.max() < WINDOW.target
        shown = item.labels != -100
        np.testing.assert_array_equal(item.labels[shown], item.input_ids[shown])


def test_every_epoch_visits_every_document_once_in_its_own_order(store: TokenStore) -> None:
    items = TrainingItems(store, Fixed([0], [0]), WINDOW, seed=3)
    epochs = [[int(items.item(epoch, index).input_ids[0]) // 100 for index in range(len(items))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [int(items.at(place).input_ids[0]) // 100 for place in range(60)] == [*itertools.chain(*epochs)]


def test_chunks_and_skips_are_drawn_anew_every_epoch(store: TokenStore) -> None:
    items = TrainingItems(store, PoSE(), WINDOW, seed=3)
    drawn = {}
    for epoch, index in itertools.product(range(4), range(len(items))):
        item = items.item(epoch, index)
        drawn.setdefault(int(item.input_ids[0]) // 100, []).append(item.position_ids.tobytes())
    assert all(len(set(positions)) > 1 for positions in drawn.values())
    positions = [[items.item(epoch, i).position_ids.tobytes() for i in range(len(items))] for epoch in range(2)]
    assert sum(one == other for one, other in zip(*positions, strict=True)) <= 2


def test_seeds_differ(store: TokenStore) -> None:
    one, other = (TrainingItems(store, PoSE(), WINDOW, seed=seed) for seed in (0, 1))
    assert not all(_equal(one.item(0, i), other.item(0, i)) for i in range(len(one)))


def test_joints_of_unrelated_text_are_masked_and_no_others(store: TokenStore) -> None:
    # A step in the text at index 2 and 4; a skip of positions alone, at index 3, is no joint.
    sampler = Fixed([0, 1, 5, 6, 8], [0, 1, 2, 40, 41])
    item = TrainingItems(store, sampler, WINDOW, seed=0).item(0, 0)
    assert (item.labels == -100).tolist() == [False, False, True, False, True]
    unmasked = TrainingItems(store, sampler, WINDOW, seed=0, mask_joints=False).item(0, 0)
    np.testing.assert_array_equal(unmasked.labels, unmasked.input_ids)
    np.testing.assert_array_equal(unmasked.input_ids, item.input_ids)


@pytest.mark.parametrize("text", ["uniform", "contiguous", "aligned"])
def test_masked_labels_of_pose_are_where_the_text_breaks(tmp_path: Path, text: str) -> None:
    store = make_store(tmp_path / "store", [np.arange(60) + 100 * d for d in range(20)])
    items = TrainingItems(store, PoSE(chunks=3, text=text), WINDOW, seed=0)
    for index in range(len(items)):
        item = items.item(0, index)
        np.testing.assert_array_equal(item.labels[1:] == -100, np.diff(item.input_ids) != 1)


def test_the_beginning_of_a_joined_document_is_not_predicted_from_the_one_before(tmp_path: Path) -> None:
    documents = [np.array([5, 6, SEPARATOR, 7, 8, SEPARATOR, 5] + [1] * 13)]
    store = make_store(tmp_path / "joined", documents, separator_id=SEPARATOR)
    item = TrainingItems(store, SAMPLERS["plain"](), Window(train=16, original=16, target=64), seed=0).item(0, 0)
    masked = np.flatnonzero(item.labels == -100)
    np.testing.assert_array_equal(masked, np.flatnonzero(item.input_ids[:-1] == SEPARATOR) + 1)


def test_samplers_that_ask_get_the_sentence_ends(store: TokenStore) -> None:
    class Spy:
        uses_sentence_ends: ClassVar[bool] = True

        def sample(self, num_tokens, window, rng, *, sentence_ends=None):
            assert sentence_ends is not None
            assert sentence_ends.tolist() == [i % 7 == 6 for i in range(num_tokens)]
            return SentenceGaps().sample(num_tokens, window, rng, sentence_ends=sentence_ends)

    items = TrainingItems(store, Spy(), WINDOW, seed=0)
    assert all(len(items.item(0, index).input_ids) == WINDOW.train for index in range(len(items)))


@pytest.mark.parametrize(
    ("tokens", "positions"), [([14, 15, 16, 17], [0, 1, 2, 3]), ([0, 1, 5, 90], [0, 1, 2, 3]), ([0, 1], [0, 64])]
)
def test_what_a_sampler_from_outside_draws_beyond_document_or_target_is_refused(
    tmp_path: Path, tokens: list[int], positions: list[int]
) -> None:
    class Careless:
        uses_sentence_ends: ClassVar[bool] = False

        def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
            return PositionSample(token_index=np.array(tokens), position_ids=np.array(positions))

    store = make_store(tmp_path / "store", [np.arange(17)])
    with pytest.raises(PositionError, match="the document has 17 tokens and the target 64 positions"):
        TrainingItems(store, Careless(), WINDOW, seed=0).item(0, 0)


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1, 2**32, 2**64 + 1])
def test_generators_are_numpys_own(number: int) -> None:
    for key in ((number, 0, 3), (5, number, 3), (5, 2, number)):
        wanted, found = np.random.default_rng(key), generator_of(*key)
        assert found.bit_generator.state == wanted.bit_generator.state


def test_a_store_of_too_short_documents_is_refused(store: TokenStore) -> None:
    with pytest.raises(DataError, match=r"shortest .* has 16 tokens, .* = 17; build the store with min_tokens=17"):
        TrainingItems(store, PoSE(), Window(train=17, original=32, target=64), seed=0)


@given(n=st.integers(1, 700), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = EpochOrder(n, seed, epoch)
    assert sorted(order[i] for i in range(n)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 10, 99, 100, 101])
def test_an_epochs_order_is_a_permutation_around_squares(n: int) -> None:
    assert sorted(EpochOrder(n, 0, 0)[i] for i in range(n)) == list(range(n))


def test_an_order_of_a_hundred_million_costs_nothing_and_looks_random() -> None:
    n = 100_000_000
    order = EpochOrder(n, 7, 0)
    first = np.array([order[i] for i in range(20_000)])
    assert len(set(first.tolist())) == len(first)
    assert first.min() >= 0
    assert first.max() < n
    # Twenty bins of the values, 1000 expected in each (standard deviation 31), and no correlation of neighbours.
    assert np.abs(np.bincount(first * 20 // n, minlength=20) - 1000).max() < 150
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.03


@pytest.mark.parametrize("n", [2**32 + 1, 10**12, 2**53 + 1, 2**63 - 1, 10**21])
def test_an_order_is_a_permutation_whatever_its_length(n: int) -> None:
    """Beyond 32 bits, beyond what a float tells apart, beyond 64 bits: no two entries are the same, and all below n."""
    order, places = EpochOrder(n, 7, 0), np.random.default_rng(0).random(5000)
    asked = {0, 1, n - 2, n - 1, *(int(place * n) for place in places)}
    found = {order[index] for index in asked}
    assert len(found) == len(asked)
    assert min(found) >= 0
    assert n * 0.999 < max(found) < n


def test_small_orders_are_spread_evenly_over_all_permutations() -> None:
    # 24 permutations of four entries over 4800 epochs: 200 expected each (standard deviation 14).
    seen = [tuple(EpochOrder(4, 0, epoch)[i] for i in range(4)) for epoch in range(4800)]
    counts = {order: seen.count(order) for order in itertools.permutations(range(4))}
    assert 120 < min(counts.values()) <= max(counts.values()) < 280, json.dumps([*counts.values()])


def test_an_index_past_the_epoch_is_refused(store: TokenStore) -> None:
    items = TrainingItems(store, PoSE(), WINDOW, seed=0)
    for index in (-1, len(items)):
        with pytest.raises(IndexError, match="of an epoch with 20 items"):
            items.item(0, index)


def test_labels_near_by_are_left_out_in_chunks_before_the_last(store: TokenStore) -> None:
    """Half of those before the last skip, none behind it, and nothing else of the item."""
    sampler, kept = PoSE(skips="flat"), []
    for epoch in range(40):
        for index in range(len(store.names)):
            whole = TrainingItems(store, sampler, WINDOW, seed=0, mask_joints=False).item(epoch, index)
            half = TrainingItems(store, sampler, WINDOW, seed=0, mask_joints=False, near_labels=0.5).item(epoch, index)
            assert np.array_equal(whole.input_ids, half.input_ids)
            assert np.array_equal(whole.position_ids, half.position_ids)
            jumps = np.flatnonzero(np.diff(whole.position_ids) != 1) + 1
            last = jumps[-1] if len(jumps) else 0
            assert np.array_equal(half.labels[last:], whole.labels[last:])
            assert set(half.labels[:last] - whole.labels[:last]) <= {0, *(-100 - whole.labels[:last])}
            kept += (half.labels[:last] != -100).tolist()
    assert np.mean(kept) == pytest.approx(0.5, abs=0.03)

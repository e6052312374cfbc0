"""Shares of sources: exact after any number of windows, by arithmetic alone, and each source in an order of its own."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import write_store
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data.items import TrainingItems
from skipwise.data.mixture import MixedItems, Shares, seed_of
from skipwise.data.store import TokenStore
from skipwise.positions import PoSE
from skipwise.window import Window

WINDOW = Window(train=16, original=16, target=64)
weights = st.lists(
    st.sampled_from(["0.5", "0.3", "0.2", "0.1", "1", "3", "7.25", "1e-3", "1e6"]), min_size=1, max_size=6
)


def dealt_one_by_one(weights: list[Fraction], windows: int) -> list[int]:
    """The source of each window: each source decides in turn by how many windows it was offered."""
    offered, sources = [0] * len(weights), []
    for _ in range(windows):
        for source, weight in enumerate(weights):
            share = weight / sum(weights[source:])
            had = int(offered[source] * share)
            offered[source] += 1
            if int(offered[source] * share) > had:
                sources.append(source)
                break
    return sources


@given(weights)
def test_every_prefix_of_a_run_has_each_source_within_a_window_per_source_of_its_share(given: list[str]) -> None:
    exact = [Fraction(weight) for weight in given]
    shares, counts = Shares(exact), [0] * len(exact)
    for window, source in enumerate(dealt_one_by_one(exact, 120)):
        assert shares.at(window) == (source, counts[source])
        counts[source] += 1
        assert shares.counts(window + 1) == counts
        wanted = [(window + 1) * weight / sum(exact) for weight in exact]
        assert all(abs(own - share) < len(exact) for own, share in zip(counts, wanted, strict=True))


def test_shares_are_as_exact_after_any_number_of_windows() -> None:
    shares = Shares([Fraction(repr(weight)) for weight in (0.1, 0.2, 0.7)])
    assert shares.counts(10**30) == [10**29, 2 * 10**29, 7 * 10**29]
    assert [shares[source] for source in range(3)] == [Fraction(1, 10), Fraction(1, 5), Fraction(7, 10)]


class Places:
    """A run of so many windows, one at each place."""

    def __init__(self, places: int) -> None:
        self.places = places

    def __len__(self) -> int:
        return self.places

    def number(self, place: int) -> int:
        return place

    def number_in_run(self, place: int) -> int:
        return self.places


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStore]:
    """Ten documents of tokens below 100, and three of tokens above."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
    sources = [(10, 0, 100), (3, 100, 200)]
    documents = [[rng.integers(low, high, 40) for _ in range(number)] for number, low, high in sources]
    return [TokenStore(write_store(Path(folder, str(i)), own)) for i, own in enumerate(documents)]


def mixed(stores: list[TokenStore], places: int = 60, seed: int = 0) -> MixedItems:
    items = [TrainingItems(store, PoSE(), WINDOW, seed_of(seed, number)) for number, store in enumerate(stores)]
    shares = Shares([Fraction(3), Fraction(1)])
    return MixedItems(names=("few", "many"), items=items, shares=shares, windows=Places(places))


def is_same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_source_has_its_own_order_and_epochs(stores: list[TokenStore]) -> None:
    run = mixed(stores)
    sources = [int(run.at(place).input_ids[0] >= 100) for place in range(60)]
    assert (sources.count(0), sources.count(1)) == (45, 15)
    for number, name in enumerate(("few", "many")):
        told = [run.describe(place) for place in range(60) if sources[place] == number]
        assert {each["source"] for each in told} == {name}
        size = stores[number].num_documents
        epochs = [[each["document"] for each in told[begin : begin + size]] for begin in range(0, len(told), size)]
        assert [each["epoch"] for each in told] == [index // size for index in range(len(told))]
        # Every document once in an epoch, and not in the same order in each.
        assert all(len({*epoch}) == len(epoch) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert not is_same(run.at(0), mixed(stores, seed=1).at(0))


def test_an_item_that_stands_in_is_of_the_same_source_and_nowhere_else(stores: list[TokenStore]) -> None:
    run = mixed(stores)
    drawn = [run.at(place) for place in range(60)]
    for place in range(60):
        first, second = run.at(place + 60), run.at(place + 120)
        assert (first.input_ids[0] >= 100) == (second.input_ids[0] >= 100) == (drawn[place].input_ids[0] >= 100)
        assert not any(is_same(first, each) or is_same(second, each) for each in drawn)
        drawn += [first, second]


def test_an_exercise_hides_its_key_in_a_text_of_the_source(stores: list[TokenStore]) -> None:
    run, rng = mixed(stores), np.random.default_rng(0)
    for place in range(20):
        text = run.document_for(place, rng)
        assert (text[0] >= 100) == (run.at(place).input_ids[0] >= 100)

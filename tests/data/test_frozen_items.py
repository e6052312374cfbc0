"""What each sampler draws for a seed, an epoch and an index, held to what it drew when results were published.

The hashes were computed once and are never to be made anew for the sake of speed or beauty: published runs stand on
these items. (Numpy keeps the bits of PCG64 and SeedSequence for good, those of a Generator's methods within a version
for certain; should only an upgrade of numpy turn this red, runs begun before it can no longer be repeated.)
"""

import hashlib
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from corpora import write_store
from transformers import AutoTokenizer

from skipwise.data.corpus import TokenStore
from skipwise.data.items import TrainingItems
from skipwise.data.store import View
from skipwise.positions import CREAM, SKIPS, TEXTS, FullLength, Plain, PoSE, PositionSampler, RandPos, SentenceGaps
from skipwise.train.exercises import RetrievalExercises
from skipwise.window import Window

WINDOWS = (Window(train=16, original=16, target=64), Window(train=2048, original=4096, target=32768))
# The last two do not fit into one word of 32 bits, and into two.
SEEDS = (0, 7, (1 << 32) + 5, (1 << 64) + 3)
PLACES = ((0, 0), (0, 5), (1, 0), (3, 11), (1_000_000, 2))
NUM_IDS, SEPARATOR = 509, 0
PUBLISHED_FIRST = ("document", "anywhere")


def pose(chunks: int, *starts: str) -> list[PositionSampler]:
    return [
        PoSE(chunks=chunks, text=text, skips=skips, start=start)
        for text, skips, start in itertools.product(TEXTS, SKIPS, starts)
    ]


FROZEN: dict[str, tuple[list[PositionSampler], str]] = {
    "pose, 1 chunk": (pose(1, *PUBLISHED_FIRST), "2345e1671e178157fa92d0358323b287"),
    "pose, 2 chunks": (pose(2, *PUBLISHED_FIRST), "5f851f038c11e4fdbfd59df11c72c859"),
    "pose, 3 chunks": (pose(3, *PUBLISHED_FIRST), "a4441d9e5954c7b5a480e1d5d9535a76"),
    "pose, 4 chunks": (pose(4, *PUBLISHED_FIRST), "1db16a6e4728c8612077d35620daee91"),
    "pose, 16 chunks": (pose(16, *PUBLISHED_FIRST), "3626c966e6a8995b5bf72fed98f2be73"),
    "pose, 2 chunks, mixed": (pose(2, "mixed"), "39f62e28ade12bf52fa6f6317251a0f3"),
    "randpos": ([RandPos()], "c85574d5bc4cbda9361fbf66e9614b3b"),
    "cream": ([CREAM(), CREAM(sigma=0.5)], "55b730b8c8b263e20d9706d6d9f3ed64"),
    "sentences": ([SentenceGaps(), SentenceGaps(sentence_tokens=1)], "c7d38cc8c9baff72404366ddb3aa4ab5"),
    "plain": ([Plain()], "e7dea4ddc75393444448af8ac521ab3e"),
    "full": ([FullLength()], "e258681cf7d806a1eda53f915c859c72"),
}


def make_store(folder: Path, shortest: int, join: bool = False) -> TokenStore:
    """Twelve documents of one to eighteen times the shortest length, of ids in an order without chance."""
    sizes = [shortest + i * i * shortest // 7 for i in range(12)]
    documents = [(np.arange(size, dtype=np.int64) ** 2 * 31 + 7 * i) % NUM_IDS for i, size in enumerate(sizes)]
    write_store(folder, documents, separator_id=SEPARATOR, sentence_ends=np.arange(NUM_IDS) % 23 == 5)
    return TokenStore(folder, View(join=join))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Window, TokenStore]]:
    """Of each window a store of separate documents and one that masks labels after separators."""
    return [
        (window, make_store(tmp_path_factory.mktemp("tokens"), window.train, join))
        for window, join in itertools.product(WINDOWS, (False, True))
    ]


@pytest.mark.parametrize("name", FROZEN)
def test_items_are_those_of_the_published_runs(name: str, stores: list[tuple[Window, TokenStore]]) -> None:
    samplers, frozen = FROZEN[name]
    digest = hashlib.blake2b(digest_size=16)
    for sampler, (window, store), seed in itertools.product(samplers, stores, SEEDS):
        items = TrainingItems(store, sampler, window, seed)
        for place in PLACES:
            item = items.item(*place)
            for field in (item.input_ids, item.position_ids, item.labels):
                digest.update(field.astype("<i8").tobytes())
    assert digest.hexdigest() == frozen


def test_exercises_stand_where_they_stood(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    exercises = RetrievalExercises(tokenizer, cast(Any, None), PoSE(), WINDOWS[1], seed=3, share=0.25)
    stands = "".join("x" if exercises.stands_at(place) else "-" for place in range(64))
    assert stands == "x--x-xx-x---x-x-x---xx--x--x-----xxx-------x---x----------x---x-"


def test_exercises_are_those_of_the_last_change(tiny_checkpoint: Path, stores: list[tuple[Window, TokenStore]]) -> None:
    """A run that is resumed, or repeated by its seed, trains the same: who changes them says so in the changelog."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    digest = hashlib.blake2b(digest_size=16)
    window, store = next(one for one in stores if one[0] == WINDOWS[1])
    items = TrainingItems(store, PoSE(), window, 3)
    exercises = RetrievalExercises(tokenizer, items, PoSE(skips="flat", text="aligned", start="mixed"), window, 3, 1.0)
    for place in range(20):
        item = exercises.at(place)
        digest.update(tokenizer.decode(item.input_ids).encode() + item.position_ids.astype("<i8").tobytes())
    assert digest.hexdigest() == "26f713c52465fc8a356a7aeccee6fdf9"

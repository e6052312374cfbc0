"""The order of a run: pure in the place, one stage after the other, exercises that ask for nothing but the key."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from corpora import build_store
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from skipwise.config import RunConfig
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.corpus import TokenStore
from skipwise.data.items import IGNORED_LABEL, TrainingItem, TrainingItems
from skipwise.errors import ConfigError
from skipwise.positions import SAMPLERS, FullLength, PoSE, PositionSample, sampler_from
from skipwise.train.curriculum import Curriculum, collate, collate_diluted
from skipwise.train.exercises import RetrievalExercises, _depth_before_skip
from skipwise.train.layout import Layout
from skipwise.train.validation import validation_lengths
from skipwise.window import Window

WINDOW = Window(train=256, original=256, target=1024)
FIELDS = ("input_ids", "position_ids", "labels")


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    """One token a byte, so that text reads back from the ids."""
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def store(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(1)
    for i in range(9):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(["one", "other", "some"], size=150 + 20 * i)))
    return build_store(
        folder, tokenizer, min_tokens=300, cache_dir=tmp_path_factory.mktemp("cache"), num_workers=1, progress=False
    )


class Stage(NamedTuple):
    begin: int
    tokens: int
    items: Any


def curriculum_of(
    stages: Sequence[Stage],
    num_steps: int,
    window_tokens: int,
    items_per_step: int,
    items_at_a_time: int,
    short: Stage | None = None,
    **more: Any,
) -> Curriculum:
    layout = Layout(
        stages=[(stage.begin, stage.tokens) for stage in stages],
        num_steps=num_steps,
        window_tokens=window_tokens,
        items_per_step=items_per_step,
        items_at_a_time=items_at_a_time,
        short_tokens=short and short.tokens,
        **more,
    )
    return Curriculum(layout, [stage.items for stage in stages], short and short.items)


LONG = Window(train=700, original=256, target=4096)


def exercises_of(
    tokenizer: Any, store: TokenStore, share: float = 1.0, seed: int = 0, window: Window = WINDOW, sampler: Any = None
) -> RetrievalExercises:
    items = TrainingItems(store, PoSE(), window, seed)
    return RetrievalExercises(tokenizer, items, sampler or PoSE(), window, seed, share)


def equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def is_exercise(item: TrainingItem) -> bool:
    return int((item.labels != IGNORED_LABEL).sum()) < 20


def test_a_place_gives_one_item_in_any_order_and_process(tokenizer: Any, store: TokenStore) -> None:
    grown = Window(train=300, original=256, target=1024)
    stages = [
        Stage(0, 256, exercises_of(tokenizer, store, 0.5)),
        Stage(5, 300, exercises_of(tokenizer, store, 0.5, window=grown)),
    ]
    curriculum = curriculum_of(stages, 10, 256, items_per_step=3, items_at_a_time=3)
    forwards = [item for place in range(30) if (item := curriculum[place]) is not None]
    elsewhere = pickle.loads(pickle.dumps(curriculum_of(stages, 10, 256, 3, 3)))
    backwards = [item for place in reversed(range(30)) if (item := elsewhere[place]) is not None]
    assert all(equal(*pair) for pair in zip(backwards[::-1], forwards, strict=True))
    # Five steps of three windows and, as is the second one, five of two wider ones; drawn anew every time.
    assert len({item.position_ids.tobytes() for item in forwards}) == len(forwards) == 4 * 3 + 6 * 2


def test_another_seed_gives_another_run(tokenizer: Any, store: TokenStore) -> None:
    one, other = (exercises_of(tokenizer, store, 0.5, seed) for seed in (0, 1))
    assert not any(equal(one.at(place), other.at(place)) for place in range(20))


def widths(curriculum: Curriculum, at_a_time: int) -> list[list[int]]:
    """Of each batch the tokens of its windows."""
    items = [curriculum[place] for place in range(len(curriculum))]
    batches = [items[first : first + at_a_time] for first in range(0, len(items), at_a_time)]
    return [[len(item.input_ids) for item in batch if item is not None] for batch in batches]


def stage_of(store: TokenStore, begin: int, tokens: int) -> Stage:
    window = Window(train=tokens, original=256, target=1024)
    return Stage(begin, tokens, TrainingItems(store, PoSE(), window, seed=0))


def test_stages_begin_at_their_step_and_the_second_step_has_the_widest(store: TokenStore) -> None:
    stages = [stage_of(store, *each) for each in ((0, 256), (4, 512))]
    curriculum = curriculum_of(stages, 6, 256, items_per_step=2, items_at_a_time=2)
    assert len(curriculum) == 12
    assert widths(curriculum, 2) == [[256] * 2, [512], [256] * 2, [256] * 2, [512], [512]]


def test_a_wide_window_takes_the_place_of_several(store: TokenStore) -> None:
    stages = [stage_of(store, *each) for each in ((0, 256), (1, 512))]
    # Two batches of four places make a step.
    curriculum = curriculum_of(stages, 2, 256, items_per_step=8, items_at_a_time=4)
    batches = [[curriculum[place] for place in range(first, first + 4)] for first in range(0, 16, 4)]
    assert [tuple(collate(batch)["input_ids"].shape) for batch in batches] == [(4, 256)] * 2 + [(2, 512)] * 2
    diluted = collate_diluted(batches[-1])
    assert diluted["diluted"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("at_a_time", "tokens", "expected"),
    [
        (1, 128, [[128]] * 4 + [[]] * 4),  # Batches of a single place, which cannot be smaller: half of them.
        (1, 256, [[256]] * 2 + [[]] * 6),
        (2, 256, [[256]] * 2 + [[]] * 2),
        (8, 256, [[256] * 2]),
    ],
)
def test_a_step_keeps_its_tokens_whatever_is_at_a_time(
    at_a_time: int, tokens: int, expected: list[list[int]], store: TokenStore
) -> None:
    stages = [stage_of(store, *each) for each in ((0, 64), (1, tokens))]
    curriculum = curriculum_of(stages, 2, 64, items_per_step=8, items_at_a_time=at_a_time)
    assert widths(curriculum, at_a_time)[8 // at_a_time :] == expected


def test_short_steps_are_spread_evenly(store: TokenStore) -> None:
    stages = [stage_of(store, *each) for each in ((0, 256), (2, 512))]
    short = stage_of(store, 7, 300)
    curriculum = curriculum_of(stages, 9, 256, items_per_step=2, items_at_a_time=2, short=short, short_share=0.34)
    whole = [[256] * 2, [512], [300], [512], [512], [300], [512], [512], [300]]
    assert widths(curriculum, 2) == whole


def settings(**given: Any) -> RunConfig:
    return RunConfig.from_mapping({"model": "m", "target": 1024, **given})


@pytest.mark.parametrize(
    ("steps", "share", "begins"),
    [
        *[(100, 0.1, [0, 90]), (1000, 0.3, [0, 700]), (4, 0.1, [0, 3]), (2, 0.6, [0, 1])],
        # Growth that leaves no step before it is all there is.
        *[(1, 0.5, [0]), (2, 0.9, [0]), (100, 1.0, [0])],
    ],
)
def test_growth_takes_the_last_share_and_at_least_a_step(steps: int, share: float, begins: list[int]) -> None:
    wide = Window(train=512, original=256, target=1024)
    found = run_stages(settings(growth={"window": 512, "share": share}), WINDOW, steps)
    windows = [WINDOW, wide][-len(begins) :]
    assert found == [(begin, window, PoSE()) for begin, window in zip(begins, windows, strict=True)]
    assert run_stages(settings(), WINDOW, steps) == [(0, WINDOW, PoSE())]


def test_growth_of_targets_and_of_the_sampler() -> None:
    growth = [{"target": "2x", "share": 1.0}, {"window": "2x", "sampler": {"chunks": 3}, "share": 0.5}]
    near, far = run_stages(settings(growth=growth, sampler={"skips": "flat"}), WINDOW, 10)
    assert near == (0, Window(train=256, original=256, target=512), PoSE(skips="flat"))
    assert far == (5, Window(train=512, original=256, target=1024), PoSE(skips="flat", chunks=3))
    with pytest.raises(ConfigError, match=r"'growth'.*sampler"):
        run_stages(settings(growth=growth), WINDOW, 10, FullLength())
    with pytest.raises(ConfigError, match="chunkz"):
        settings(growth={"sampler": {"chunkz": 3}})


def test_short_steps_have_the_windows_of_the_base_as_far_as_others_are_as_wide() -> None:
    window = Window(train=256, original=512, target=1024)
    config = settings(short_steps=0.2)
    stages = run_stages(config, window, 10)
    short = short_stage(config, stages)
    assert short is not None
    assert short.window == window
    positions = short.sampler.sample(2000, short.window, np.random.default_rng(0)).position_ids
    assert positions.tolist() == list(range(256))
    grown = settings(short_steps=0.2, growth={"window": "4x"})
    short = short_stage(grown, run_stages(grown, window, 10))
    assert short is not None
    assert short.window.train == 512
    assert short_stage(settings(), stages) is None


@pytest.mark.parametrize(
    ("given", "target", "lengths"),
    [(None, 1024, [256, 512, 1024]), (None, 900, [256, 512, 900]), ([1000, 300, 300], 1024, [300, 1000])],
)
def test_validation_lengths(given: list[int] | None, target: int, lengths: list[int]) -> None:
    config = RunConfig.from_mapping({"model": "m", "target": target, "validation": {"lengths": given}})
    assert validation_lengths(config, Window(train=256, original=256, target=target)) == lengths


@pytest.mark.parametrize("retrieval", [0.0, 0.25, 1.0])
def test_the_share_of_exercises(retrieval: float, tokenizer: Any, store: TokenStore) -> None:
    items = exercises_of(tokenizer, store, retrieval)
    found = sum(is_exercise(items.at(place)) for place in range(200)) / 200
    assert abs(found - retrieval) <= (0.0 if retrieval in (0.0, 1.0) else 0.1)


def test_exercises_do_not_move_the_other_items(tokenizer: Any, store: TokenStore) -> None:
    mixed, plain = exercises_of(tokenizer, store, 0.5), exercises_of(tokenizer, store, 0.0)
    kept = [place for place in range(40) if not is_exercise(mixed.at(place))]
    assert 5 < len(kept) < 35
    assert all(equal(mixed.at(place), plain.at(place)) for place in kept)


def test_an_exercise_asks_for_the_key_it_hides_and_for_nothing_else(tokenizer: Any, store: TokenStore) -> None:
    window = Window(train=600, original=256, target=2048)  # So long that the filler shows, whatever it is.
    exercises, in_filler = exercises_of(tokenizer, store, window=window), 0
    for place in range(40):
        ids, positions, labels, is_sample, *_ = exercises.at(place)
        assert not is_sample, "the key is all there is"
        text = tokenizer.decode(ids)
        key, again = re.findall(r"pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key", text)[0]
        assert key == again
        assert text.endswith(f"What is the pass key? The pass key is {key}")
        assert tokenizer.decode(labels[labels != IGNORED_LABEL]).strip() == key
        assert np.array_equal(labels != IGNORED_LABEL, np.arange(len(ids)) >= len(ids) - int((labels >= 0).sum()))
        assert len(ids) == window.train
        assert positions[0] == 0
        assert (np.diff(positions) >= 1).all()
        assert positions[-1] < window.target
        in_filler += "The hills are low" in text
        assert ("The hills are low" in text) != ("other" in text)
    assert 8 < in_filler < 32


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 40, 41], [0, 9, 10, 11, 40, 41], [0, 1, 2, 3, 4, 5]])
def test_a_key_is_hidden_before_the_last_skip(positions: list[int]) -> None:
    sample = PositionSample(token_index=np.arange(6), position_ids=np.array(positions))
    depths = [_depth_before_skip(sample, 6, np.random.default_rng(seed)) for seed in range(200)]
    last = 1.0 if positions[-1] == 5 else 4 / 6
    assert 0.0 <= min(depths) < 0.05
    assert last - 0.05 < max(depths) <= last


def test_more_keys_than_by_chance_are_asked_for_across_a_skip(tokenizer: Any, store: TokenStore) -> None:
    exercises, across, skipping, few = exercises_of(tokenizer, store, window=LONG), 0, 0, 0
    for place in range(200):
        ids, positions, *_ = exercises.at(place)
        (key,) = re.findall(r"The pass key is (\d{5})$", tokenizer.decode(ids))
        few += len(set(key)) <= 3
        skips = np.flatnonzero(np.diff(positions) > 1)
        skipping += bool(skips.size)
        across += bool(skips.size) and key in tokenizer.decode(ids[: skips[-1] + 1])
    # Of keys at any place, half would stand before the skip. Some skips are in the instruction, before any place.
    assert across > 0.6 * skipping > 100
    # Of five independent digits 19.4% have three different ones or fewer.
    assert abs(few / 200 - (0.5 + 0.5 * 0.194)) < 0.12


def test_exercises_are_in_the_language_that_is_set(tokenizer: Any, store: TokenStore) -> None:
    window = Window(train=700, original=256, target=2048)
    items = TrainingItems(store, PoSE(), window, 0)
    exercises = RetrievalExercises(tokenizer, items, PoSE(), window, 0, 1.0, "ja")
    for place in range(6):
        text = tokenizer.decode(exercises.at(place).input_ids)
        (key,) = re.findall(r"暗証番号は(\d{5})です。覚えて", text)
        assert text.endswith(f"暗証番号を答えてください。暗証番号は{key}")
        assert "pass key" not in text
    again = pickle.loads(pickle.dumps(exercises_of(tokenizer, store)))
    assert equal(again.at(0), exercises_of(tokenizer, store).at(0)), "English exercises are those of English elsewhere"
    with pytest.raises(ConfigError, match=r"language is 'jp'.*ja \(Japanese\)"):
        RetrievalExercises(tokenizer, items, PoSE(), window, 0, 1.0, "jp")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_leaves_an_exercise_whole(name: str, tokenizer: Any, store: TokenStore) -> None:
    exercises = exercises_of(tokenizer, store, sampler=sampler_from({"kind": name}))
    for place in range(5):
        item = exercises.at(place)
        assert "What is the pass key? The pass key is" in tokenizer.decode(item.input_ids)
        assert tokenizer.decode(item.labels[item.labels >= 0]).strip().isdigit()


def test_a_window_without_room_for_an_exercise_is_refused_at_once(tokenizer: Any, store: TokenStore) -> None:
    with pytest.raises(ConfigError, match=r"data\.retrieval.*64"):
        exercises_of(tokenizer, store, window=Window(train=64, original=64, target=256))


def items_of(lengths: Sequence[int]) -> list[TrainingItem]:
    arrays = [[np.arange(n, dtype=np.int64) + base for base in (1, 0, 1)] for n in lengths]
    return [TrainingItem(ids, positions, labels) for ids, positions, labels in arrays]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_shorter_items_are_filled_up_after_their_end(lengths: list[int]) -> None:
    items = items_of(lengths)
    batch = collate(items)
    assert batch.pop("places").tolist() == [-1] * len(items)
    assert batch.keys() == set(FIELDS)
    for name in FIELDS:
        assert batch[name].shape == (len(lengths), max(lengths))
        assert batch[name].dtype == torch.int64
    for row, item in enumerate(items):
        n = len(item.input_ids)
        for name in FIELDS:
            assert np.array_equal(batch[name][row, :n].numpy(), getattr(item, name))
        assert (batch["labels"][row, n:] == IGNORED_LABEL).all()
        assert (batch["position_ids"][row, n:] == n - 1).all()  # Never beyond the item's, so never beyond the target.


def test_filling_up_leaves_loss_and_gradients_alone(tiny_checkpoint: Path) -> None:
    from skipwise.loss import NextTokenLoss
    from skipwise.model import load_model

    model = load_model(tiny_checkpoint, dtype="float32").model
    batches: list[Any] = [collate(items_of([20])), collate(items_of([20, 50]))]
    alone, together = batches
    for batch in (alone, together):
        del batch["places"]
    loss = NextTokenLoss(model)
    loss(**alone).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    together["labels"][1] = IGNORED_LABEL
    filled = loss(**together)
    filled.backward()
    assert filled.item() == pytest.approx(loss(**alone).item(), rel=1e-6)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, wanted, strict=True))


def test_full_length_items_of_any_document_stand_in_one_batch(store: TokenStore) -> None:
    items = TrainingItems(store, FullLength(), WINDOW, seed=0)
    batch = collate([items.item(0, index) for index in range(3)])
    assert batch["input_ids"].shape[1] > WINDOW.train
    assert int(batch["position_ids"].max()) < WINDOW.target

"""Labels with a far context get a fixed extra weight together, shared by inverse frequency."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import assert_equal_weights, losses, run

from skipwise.config import RunConfig
from skipwise.data.items import IGNORED_LABEL, TrainingItem
from skipwise.errors import ConfigError
from skipwise.train.far_labels import FarLabels

SEPARATOR = 7


def bucket_of(context: int, original: int) -> int:
    """By doubling, in whole numbers."""
    bucket = 0
    while context >= original * 2**bucket:
        bucket += 1
    return bucket


@given(
    counts=st.lists(st.integers(0, 10_000), min_size=2, max_size=6).filter(lambda counts: sum(counts) > 0),
    extra=st.floats(0, 4),
)
def test_the_extra_weight_is_fixed_and_goes_to_far_labels_alone(counts: list[int], extra: float) -> None:
    weights = FarLabels(counts, 32, extra).weights.tolist()
    total, far = sum(counts), counts[1:]
    if not any(far):
        assert weights == [1] * len(counts)
        return
    assert sum(number * weight for number, weight in zip(counts, weights, strict=True)) == pytest.approx(
        total, rel=1e-5
    )
    assert weights[0] == pytest.approx(1 / (1 + extra), rel=1e-5)
    extras = [weight * (1 + extra) - 1 for weight in weights[1:]]
    given_away = sum(number * each for number, each in zip(far, extras, strict=True))
    assert given_away == pytest.approx(extra * total, rel=1e-3, abs=1e-3)
    # Buckets with a hundredth of all labels or more get equal parts of it.
    parts = [number * each for number, each in zip(far, extras, strict=True) if number >= total / 100]
    assert parts == pytest.approx([parts[0]] * len(parts), rel=1e-3, abs=1e-3) if parts else True


@given(st.data())
def test_contexts_are_counted_from_the_beginning_of_the_document(data: st.DataObject) -> None:
    number = data.draw(st.integers(2, 40))
    steps = data.draw(st.lists(st.integers(1, 50), min_size=number, max_size=number))
    ids = np.array(data.draw(st.lists(st.sampled_from([1, 2, SEPARATOR]), min_size=number, max_size=number)))
    positions = np.array([*itertools.accumulate(steps)])
    expected, first = [], int(positions[0])
    for place, position in enumerate(positions.tolist()):
        if place and ids[place - 1] == SEPARATOR:
            first = position
        expected.append(bucket_of(position - first, 24))
    found = FarLabels([0] * 12, 24, 0.5, [SEPARATOR]).buckets(TrainingItem(ids, positions, ids))
    assert found.tolist() == expected
    one_document = FarLabels([0] * 12, 24, 0.5).buckets(TrainingItem(ids, positions, ids))
    assert one_document.tolist() == [bucket_of(int(position - positions[0]), 24) for position in positions]


class Made:
    """Windows of 8 tokens with one skip, and some labels."""

    def at(self, place: int) -> TrainingItem:
        rng = np.random.default_rng(place)
        positions = np.arange(8)
        positions[4:] += int(rng.integers(0, 56))
        ids = rng.integers(0, 5, 8)
        return TrainingItem(ids, positions, np.where(rng.random(8) < 0.7, ids, IGNORED_LABEL))


def test_weights_are_of_the_labels_that_are_trained() -> None:
    items: Any = Made()
    found = FarLabels.counted(items, range(200), original=8, target=64, extra=0.5)
    counts, total = Counter[int](), 0.0
    for place in range(200):
        item = found.weighted(items.at(place))
        assert item.label_weights is not None
        for at in range(1, 8):
            if item.labels[at] != IGNORED_LABEL:
                counts[bucket_of(int(item.position_ids[at]), 8)] += 1
                total += float(item.label_weights[at])
    assert total == pytest.approx(counts.total(), rel=1e-4)
    expected = FarLabels([counts[bucket] for bucket in range(4)], 8, 0.5)
    np.testing.assert_array_equal(found.weights, expected.weights)


METHODS = {
    "far": {"loss": {"far_extra": 0.5}},
    "distill": {"loss": {"distill": 1.0}},
    "both, diluted and growing": {
        "loss": {"far_extra": 0.5, "distill": 0.5},
        "dilution": True,
        "sampler": {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"},
        "growth": {"window": "2x", "share": 0.5},
        "keep_tokens": True,
    },
    "end prompt": {"sampler": {"kind": "endprompt", "tokens": 5}, "dilution": True},
}


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_is_the_uninterrupted_run(
    settings: dict[str, Any], method: str, stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    given = {**settings, "recipe": "paper", **METHODS[method]}
    whole = run(given, output=str(tmp_path / "whole"))
    stop_after(2)
    assert not run(given).finished
    resumed = run(given, resume=True)
    assert losses(resumed.folder) == losses(whole.folder)
    assert_equal_weights(resumed.folder, whole.folder)


@pytest.mark.parametrize("method", ["far", "distill", "both, diluted and growing"])
def test_batches_of_any_size_train_the_same(settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    given = {**settings, "recipe": "paper", **METHODS[method]}
    apart = run(given, output=str(tmp_path / "apart"))
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    together = run(given, output=str(tmp_path / "together"), training=sizes)
    assert losses(together.folder) == pytest.approx(losses(apart.folder), rel=1e-4)
    plain = run({**settings, "recipe": "paper"}, output=str(tmp_path / "plain"))
    assert losses(plain.folder) != losses(apart.folder)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss": {"far_extra": 0.5}, "data": {"streaming": True}}, "'loss.far_extra' is 0.5 and 'data.streaming'"),
        ({"loss": {"far_extra": 0.5}, "parallel": {"context": 2}}, "'loss.far_extra' is 0.5 and 'parallel.context' is"),
        ({"loss": {"distill": 1}, "parallel": {"context": 2}}, "'loss.distill' is 1 and 'parallel.context' is 2"),
        ({"loss": {"distill": -1}}, "loss.distill"),
        ({"loss": {"distil": 1}}, "distill"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        RunConfig.from_mapping({"model": "some/model", "target": "4k", **settings})
    assert "\n" not in str(refused.value)

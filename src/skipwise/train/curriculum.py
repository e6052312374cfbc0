"""What a run trains on at each step: the documents' items, exercises among them, wider windows at the end.

Everything is a pure function of (seed, place in the run), so any number of workers or processes sees the same run, and
a resumed run goes on as if it had not been interrupted.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from skipwise.data.items import IGNORED_LABEL, TrainingItem
from skipwise.train.exercises import Items, RetrievalExercises
from skipwise.train.far_labels import FarLabels
from skipwise.train.layout import SHORT, Layout


class Curriculum(Dataset):
    """All items of a run in training order, at the places of its layout.

    Args:
        layout: which windows each step has.
        stages: the items of each stage.
        short: the items of the short steps.
        skipped: places to skip: place p gets the item of place p plus the length of the run.
        far_labels: weights of the labels of each stage; empty for none. Labels of short steps have no weights.
    """

    def __init__(
        self,
        layout: Layout,
        stages: Sequence[Items | RetrievalExercises],
        short: Items | None = None,
        skipped: Sequence[int] = (),
        far_labels: Sequence[FarLabels] = (),
    ) -> None:
        self._layout, self._stages, self._short = layout, list(stages), short
        self._far_labels = list(far_labels)
        self._skipped = frozenset(skipped)

    @property
    def window_tokens(self) -> int:
        """Tokens of the shortest window."""
        return self._layout.window_tokens

    def __len__(self) -> int:
        return len(self._layout)

    def __getitem__(self, place: int) -> TrainingItem | None:
        taken = self._layout.taken(place)
        if taken is None:
            return None
        items, stage = self._items_at(taken), self._stage_at(taken)
        while taken in self._skipped:
            taken += len(self)
        item = items.at(taken)._replace(place=taken)
        return item if stage == SHORT or not self._far_labels else self._far_labels[stage].weighted(item)

    def describe(self, place: int) -> dict[str, Any]:
        """Which document the item at a place was made of; also beyond the end of the run."""
        return self._items_at(place % len(self)).describe(place)

    def is_exercise(self, place: int) -> bool:
        """Whether the item at a place is an exercise; also beyond the end of the run."""
        items = self._items_at(place % len(self))
        return isinstance(items, RetrievalExercises) and items.stands_at(place)

    def grown_tokens(self, step: int, at_a_time: int) -> int | None:
        """Tokens of a window of this step if it has grown and is alone in a batch of so many places; else None."""
        stage = self._layout.stage_of(step)
        tokens = self._layout.tokens_of(stage)
        alone = self._layout.windows_in(stage, at_a_time) == 1
        return tokens if alone and tokens > self.window_tokens else None

    def _stage_at(self, place: int) -> int:
        return self._layout.stage_of(place // self._layout.items_per_step)

    def _items_at(self, place: int) -> Items | RetrievalExercises:
        stage = self._stage_at(place)
        if stage != SHORT:
            return self._stages[stage]
        assert self._short is not None
        return self._short


class BatchPlaces(Sampler[list[int]]):
    """The places of each batch of one process, by arithmetic: a resumed run begins at any of them at once.

    Groups take batches in turn; the processes of a group hold the same windows together. Batch `b` of group `g` begins
    at place `(b * num_groups + g) * batch_size`.

    Args:
        num_places: of the run; what is no batch for each group is left out at its end.
        batch_size: places per batch.
        num_groups: batches that are trained at a time.
        group: of this process, from 0.
        begin: first batch; those before it are done.
    """

    def __init__(
        self, num_places: int, batch_size: int, *, num_groups: int = 1, group: int = 0, begin: int = 0
    ) -> None:
        stride = num_groups * batch_size
        end = num_places - num_places % stride
        self._starts, self._batch_size = range(begin * stride + group * batch_size, end, stride), batch_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield [*range(start, start + self._batch_size)]


_COLUMNS = ("input_ids", "position_ids", "labels")
_NOTHING = TrainingItem(np.zeros(2, np.int64), np.arange(2), np.full(2, IGNORED_LABEL))


def collate_diluted(places: Sequence[TrainingItem | None]) -> dict[str, torch.Tensor]:
    """`collate`, and `diluted` (batch,): whether an item's attention is diluted (see `loss.diluted_mask`)."""
    return collate(places) | {"diluted": torch.tensor([item.is_sample for item in _present(places)])}


def collate(places: Sequence[TrainingItem | None]) -> dict[str, torch.Tensor]:
    """Stacks items into tensors (batch, n), and their `places` in the run into one (batch,).

    Empty places are left out; if all are empty, two tokens without a label stand in. Shorter items, which only the
    sampler `full` makes, are padded at their end, so that nothing before it sees the padding. It has no label, and the
    item's last position, so that rotary tables which depend on the largest position stay as they are.
    """
    items = _present(places)
    length = max(len(item.input_ids) for item in items)
    padded = [_padded(item, length) for item in items]
    batch = {name: torch.from_numpy(np.array([getattr(item, name) for item in padded])) for name in _COLUMNS}
    if any(item.label_weights is not None for item in items):
        batch["label_weights"] = torch.from_numpy(np.array([_weights(item, length) for item in items]))
    return batch | {"places": torch.tensor([item.place for item in items if item is not _NOTHING], dtype=torch.int64)}


def _weights(item: TrainingItem, length: int) -> np.ndarray:
    own = np.ones(len(item.input_ids), np.float32) if item.label_weights is None else item.label_weights
    return np.pad(own, (0, length - len(own)))


def _present(places: Sequence[TrainingItem | None]) -> list[TrainingItem]:
    return [item for item in places if item is not None] or [_NOTHING]


def _padded(item: TrainingItem, length: int) -> TrainingItem:
    if not (missing := length - len(item.input_ids)):
        return item
    fillers = zip(_COLUMNS, (0, item.position_ids[-1], IGNORED_LABEL), strict=True)
    return item._replace(
        **{name: np.pad(getattr(item, name), (0, missing), constant_values=filler) for name, filler in fillers}
    )

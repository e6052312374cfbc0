"""What a run trains on at each step: the documents' items, exercises among them, wider windows at the end.

Everything is a pure function of (seed, place in the run), so any number of workers or processes sees the same run, and
a resumed run goes on as if it had not been interrupted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from skipwise.data.items import IGNORED_LABEL, TrainingItem
from skipwise.train.exercises import Items, RetrievalExercises


class Stage(NamedTuple):
    """Steps of a run that share one training window.

    Attributes:
        begin: the first step.
        tokens: per window.
        items: by their places in the run.
    """

    begin: int
    tokens: int
    items: Items | RetrievalExercises


class Curriculum(torch.utils.data.Dataset):
    """All items of a run in training order: place `p` belongs to step `p // items_per_step`.

    Every step has the same number of tokens. So wider windows leave places empty: the last ones of a batch, so that it
    is no larger than one of short windows, and the last batches of a step, so that all processes have as many.

    The second step has the widest windows of the run, so that a lack of memory shows at once and not after hours. (At
    the first step the optimizer has not allocated its state yet.)

    Args:
        stages: in order; the first begins at step 0.
        num_steps: optimizer steps of the run.
        window_tokens: of the shortest window, one per place.
        items_per_step: places per optimizer step, over all processes.
        items_at_a_time: places per batch on one device, as the run was begun.
        skipped: places to skip: place p gets the item of place p plus the length of the run.
        evenly: spreads empty places evenly over the batch, for a run resumed with batches of another size: a step
            trains on the same items, and none of its batches is fuller than it must be.
        keep_tokens: leaves whole batches empty too, if one window has more tokens than a batch of short ones.
        short: the stage of the short steps, whose `begin` is ignored.
        short_steps: share of the steps that are short, evenly spaced.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_steps: int,
        window_tokens: int,
        items_per_step: int,
        items_at_a_time: int,
        skipped: Sequence[int] = (),
        evenly: bool = False,
        keep_tokens: bool = True,
        short: Stage | None = None,
        short_steps: float = 0.0,
    ) -> None:
        self._stages, self._num_steps, self.window_tokens = list(stages), num_steps, window_tokens
        self._items_per_step, self._items_at_a_time = items_per_step, items_at_a_time
        self._skipped, self._evenly = frozenset(skipped), evenly
        self._short, self._short_steps, self._keep_tokens = short, short_steps, keep_tokens
        self._widest = max(self._stages, key=lambda stage: stage.tokens)

    def __len__(self) -> int:
        return self._num_steps * self._items_per_step

    def __getitem__(self, place: int) -> TrainingItem | None:
        stage = self._stage(place // self._items_per_step)
        batch, within = divmod(place % self._items_per_step, self._items_at_a_time)
        fitting, in_step = (self._windows(stage, places) for places in (self._items_at_a_time, self._items_per_step))
        if self._evenly:
            nth, empty = divmod(within * fitting, self._items_at_a_time)
            within, place = (nth if empty < fitting else fitting), place - within + nth
        if within >= fitting or (self._keep_tokens and batch * fitting + within >= in_step):
            return None
        while place in self._skipped:
            place += len(self)
        return stage.items.at(place)._replace(place=place)

    def describe(self, place: int) -> dict[str, int]:
        """Which document the item at a place was made of; also beyond the end of the run."""
        return self._stage(place % len(self) // self._items_per_step).items.describe(place)

    def grown_tokens(self, step: int, at_a_time: int) -> int | None:
        """Tokens of a window of this step if it has grown and is alone in a batch of so many places; else None."""
        stage = self._stage(step)
        alone = self._windows(stage, at_a_time) == 1
        return stage.tokens if alone and stage.tokens > self.window_tokens else None

    def _windows(self, stage: Stage, places: int) -> int:
        """Windows of a stage with as many tokens as this many places; at least one, at most one per place."""
        return min(places, max(1, places * self.window_tokens // stage.tokens))

    def _stage(self, step: int) -> Stage:
        if step == 1:
            return self._widest
        if self._short and int((step + 1) * self._short_steps) > int(step * self._short_steps):
            return self._short
        return [stage for stage in self._stages if stage.begin <= step][-1]


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
    return batch | {"places": torch.tensor([item.place for item in items if item is not _NOTHING], dtype=torch.int64)}


def _present(places: Sequence[TrainingItem | None]) -> list[TrainingItem]:
    return [item for item in places if item is not None] or [_NOTHING]


def _padded(item: TrainingItem, length: int) -> TrainingItem:
    if not (missing := length - len(item.input_ids)):
        return item
    fillers = zip(_COLUMNS, (0, item.position_ids[-1], IGNORED_LABEL), strict=True)
    return item._replace(
        **{name: np.pad(getattr(item, name), (0, missing), constant_values=filler) for name, filler in fillers}
    )

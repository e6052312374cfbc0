"""What a run trains on, step by step: the documents' items, retrieval exercises among them, a wider window at the end.

Everything is a pure function of (seed, place in the run), so that any number of workers or processes sees the same
run, and a resumed one goes on as if nothing had happened.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from skipwise.data.items import IGNORED_LABEL, TrainingItem, generator_of
from skipwise.train.exercises import EXERCISES, Items, RetrievalExercises


class Stage:
    """The items of a stretch of steps that share one training window.

    Args:
        items: the documents' items.
        exercises: retrieval exercises of the same window, or None.
        retrieval: share of windows that are exercises.
        seed: source of the choice between the two.
    """

    def __init__(self, items: Items, exercises: RetrievalExercises | None, retrieval: float, seed: int) -> None:
        self._items, self._exercises, self._retrieval, self._seed = items, exercises, retrieval, seed

    def item(self, place: int) -> TrainingItem:
        """The item at a place in the run, whatever came before it."""
        if self._exercises is not None and self._is_exercise(place):
            return self._exercises.item(place)
        return self._items.at(place)

    def describe(self, place: int) -> dict[str, int]:
        """Of a document's item its epoch and its document; of an exercise nothing."""
        return {} if self._is_exercise(place) else self._items.describe(place)

    def _is_exercise(self, place: int) -> bool:
        if self._exercises is None:
            return False
        return generator_of(self._seed, EXERCISES + 1, place).random() < self._retrieval


class Stretch(NamedTuple):
    """Steps of a run whose items are drawn alike.

    Attributes:
        begin: the first of them.
        tokens: of a window.
        stage: their items.
    """

    begin: int
    tokens: int
    stage: Stage


class Curriculum(torch.utils.data.Dataset):
    """All items of a run in the order they are trained: place `p` belongs to step `p // items_per_step`.

    A step keeps its tokens. Wider windows leave places empty: of a batch the last ones, so that it is no larger than
    one of short windows, and of a step the last batches, so that all processes have as many.

    The second step has the widest windows of the run, so that memory which is not there is missed at once and not
    after hours. (At the first one the optimizer has not taken its own yet.)

    Args:
        stretches: in their order, the first from step 0.
        num_steps: optimizer steps of the run.
        window_tokens: of a window, one to a place.
        items_per_step: places of one optimizer step, over all processes.
        items_at_a_time: places of one batch on one device, as the run was begun.
        evenly: spreads what is empty evenly within a batch, for a run that goes on with batches of another size: a step
            trains the same, and none of its batches is fuller than it must be.
        skipped: places to do without: each has the item that would come as far behind the end of the run.
        keep_tokens: leaves whole batches empty too, where one window is more than a batch has.
        short: what every so many steps have instead, wherever it says that it begins.
        short_steps: share of those steps, which are spread evenly.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        num_steps: int,
        window_tokens: int,
        items_per_step: int,
        items_at_a_time: int,
        skipped: Sequence[int] = (),
        evenly: bool = False,
        keep_tokens: bool = True,
        short: Stretch | None = None,
        short_steps: float = 0.0,
    ) -> None:
        self._stretches, self._num_steps, self.window_tokens = list(stretches), num_steps, window_tokens
        self._items_per_step, self._items_at_a_time = items_per_step, items_at_a_time
        self._skipped, self._evenly = frozenset(skipped), evenly
        self._short, self._short_steps, self._keep_tokens = short, short_steps, keep_tokens
        self._widest = max(self._stretches, key=lambda stretch: stretch.tokens)

    def __len__(self) -> int:
        return self._num_steps * self._items_per_step

    def __getitem__(self, place: int) -> TrainingItem | None:
        stretch = self._stretch(place // self._items_per_step)
        batch, within = divmod(place % self._items_per_step, self._items_at_a_time)
        fitting, in_step = (self._windows(stretch, places) for places in (self._items_at_a_time, self._items_per_step))
        if self._evenly:
            nth, empty = divmod(within * fitting, self._items_at_a_time)
            within, place = (nth if empty < fitting else fitting), place - within + nth
        if within >= fitting or (self._keep_tokens and batch * fitting + within >= in_step):
            return None
        while place in self._skipped:
            place += len(self)
        return stretch.stage.item(place)._replace(place=place)

    def describe(self, place: int) -> dict[str, int]:
        """What stands at a place, as its stage tells it; of one that stands in for another, too."""
        return self._stretch(place % len(self) // self._items_per_step).stage.describe(place)

    def grown_tokens(self, step: int, at_a_time: int) -> int | None:
        """Tokens of a window of this step where it has grown and a batch of so many places has no second; else None."""
        stretch = self._stretch(step)
        alone = self._windows(stretch, at_a_time) == 1
        return stretch.tokens if alone and stretch.tokens > self.window_tokens else None

    def _windows(self, stretch: Stretch, places: int) -> int:
        """How many windows of a stretch have the tokens of so many places; at least one, at most one a place."""
        return min(places, max(1, places * self.window_tokens // stretch.tokens))

    def _stretch(self, step: int) -> Stretch:
        if step == 1:
            return self._widest
        if self._short and int((step + 1) * self._short_steps) > int(step * self._short_steps):
            return self._short
        return [stretch for stretch in self._stretches if stretch.begin <= step][-1]


def collate_diluted(places: Sequence[TrainingItem | None]) -> dict[str, torch.Tensor]:
    """`collate`, and which of the items (batch,) have their attention diluted (see `skipwise.loss.diluted_mask`)."""
    return collate(places) | {"diluted": torch.tensor([item.is_sample for item in _present(places)])}


def collate(places: Sequence[TrainingItem | None]) -> dict[str, torch.Tensor]:
    """Stacks items into tensors (batch, n); shorter ones, which only `full` makes, are filled up after their end.

    Beside them go the items' `places` (batch,) in the run.

    Places that are empty in a stage of wider windows are passed over; where all are, two tokens without a label stand
    in.

    What is filled up carries no label and comes last, so that nothing before it can see it. It stands at the item's
    last position, so that rotary tables which follow the largest position stay as they are.
    """
    items = _present(places)
    length = max(len(item.input_ids) for item in items)
    filled = [_filled_up(item, length) for item in items]
    batch = {name: torch.from_numpy(np.array([getattr(item, name) for item in filled])) for name in _COLUMNS}
    return batch | {"places": torch.tensor([item.place for item in items if item is not _NOTHING], dtype=torch.int64)}


_COLUMNS = ("input_ids", "position_ids", "labels")
_NOTHING = TrainingItem(np.zeros(2, np.int64), np.arange(2), np.full(2, IGNORED_LABEL))


def _present(places: Sequence[TrainingItem | None]) -> list[TrainingItem]:
    return [item for item in places if item is not None] or [_NOTHING]


def _filled_up(item: TrainingItem, length: int) -> TrainingItem:
    """The item with as many tokens as this, which is no fewer than it has."""
    if not (missing := length - len(item.input_ids)):
        return item
    fillers = zip(_COLUMNS, (0, item.position_ids[-1], IGNORED_LABEL), strict=True)
    return item._replace(
        **{name: np.pad(getattr(item, name), (0, missing), constant_values=filler) for name, filler in fillers}
    )

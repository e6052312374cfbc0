"""Training items of streamed documents: one per lane and step."""

from collections import OrderedDict
from typing import Any

import numpy as np

from skipwise.data.items import TrainingItem, generator_of, item_of
from skipwise.data.stream import DocumentStream, Streamed
from skipwise.positions import PositionSampler
from skipwise.window import Window

# Separates the draws of streamed items from those of stored ones and of exercises.
_ITEMS = 0x17E5
# Steps whose documents are remembered, in case one of them goes wrong.
_TOLD_STEPS = 3


class StreamedItems:
    """The training items of a stream, of windows of one length, in the order that they are asked for.

    Place `p` of a run has the next document of lane `p % lanes`; tokens and positions are drawn from (seed, place).

    Args:
        stream: of documents.
        sampler: chooses the tokens of a document and their positions.
        window: the three lengths, in tokens.
        seed: seed of all draws.
        min_tokens: minimum length of a document.
        lanes: windows per step, over all processes.
        num_places: of the run. A place beyond replaces one as far before the end, whose document is skipped.
        how: `mask_joints` and `near_labels`, as for `item_of`.
    """

    def __init__(
        self,
        stream: DocumentStream,
        sampler: PositionSampler,
        window: Window,
        seed: int,
        *,
        min_tokens: int,
        lanes: int,
        num_places: int,
        **how: Any,
    ) -> None:
        self._stream, self._sampler, self._window, self._seed = stream, sampler, window, seed
        self._min_tokens, self._how = min_tokens, how
        self._lanes, self._num_places = lanes, num_places
        self._told: OrderedDict[int, dict[str, int]] = OrderedDict()

    def at(self, place: int) -> TrainingItem:
        """The item at a place in the run; the places of a lane must be asked for in order."""
        document = self._take(place).tokens
        rng = generator_of(self._seed, _ITEMS, place)
        return item_of(document, self._stream, self._sampler, self._window, rng, **self._how)

    def document_for(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A document to hide the key of an exercise in."""
        return self._take(place).tokens

    def describe(self, place: int) -> dict[str, int]:
        """Epoch, shard and row of the document that one of the last items was made of."""
        return self._told.get(place, {})

    def _take(self, place: int) -> Streamed:
        times, within = divmod(place, self._num_places)
        step, lane = divmod(within, self._lanes)
        found = self._stream.take(lane, step, min_tokens=self._min_tokens, passed_over=times)
        self._told[place] = {"epoch": found.begins.epoch, "shard": found.shard, "row": found.row}
        while len(self._told) > _TOLD_STEPS * self._lanes:
            self._told.popitem(last=False)
        return found

    def __reduce__(self) -> Any:
        raise TypeError("a stream belongs to its process; load its items without workers")

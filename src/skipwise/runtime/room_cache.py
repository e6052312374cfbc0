"""A KV cache whose tensors are made once, for all tokens to come.

The transformers library's `DynamicCache` makes all of its tensors anew for each token; here a token is written to its
place. Rows may be read one at a time, each into its own part, and then go on together.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomCache(Cache):
    """Keys and values of some rows that end together: shorter rows have unused columns before their first.

    For models whose layers all see everything (`chunk_attention.sees_everything`).

    Args:
        model: that will fill it.
        num_rows: batch.
        num_columns: tokens of a row at most, unused columns counted in.
    """

    def __init__(self, model: Any, num_rows: int, num_columns: int) -> None:
        num_layers = len(DynamicCache(config=model.config).layers)
        self._rooms = [_Room(num_rows, num_columns) for _ in range(num_layers)]
        self._all_rows = [_RoomLayer(room, slice(None), 0) for room in self._rooms]
        super().__init__(layers=[*self._all_rows])

    def row(self, place: int, first_column: int) -> Cache:
        """An empty cache for one row alone, whose tokens are this cache's from `first_column` on."""
        return Cache(layers=[_RoomLayer(room, slice(place, place + 1), first_column) for room in self._rooms])

    def fill(self, num_columns: int) -> None:
        """Takes the first `num_columns` of all rows as read, after each row's own cache has read them."""
        for room, layer in zip(self._rooms, self._all_rows, strict=True):
            if room.is_made:
                layer.show(num_columns)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Goes on with these rows alone."""
        for room, layer in zip(self._rooms, self._all_rows, strict=True):
            if room.is_made:
                room.keys, room.values = room.keys[indices], room.values[indices]
                layer.show(layer.get_seq_length())


class _Room:
    """Where one layer's keys and values lie (rows, heads, columns, width); made when their shape is known.

    Zeros, not what memory held before: unused columns are masked, and a NaN times nothing is a NaN.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self._size = num_rows, num_columns

    @property
    def is_made(self) -> bool:
        """Whether it is there; layers that share another's keys have none."""
        return hasattr(self, "keys")

    def make(self, keys: Tensor, values: Tensor) -> None:
        """Makes it, unless it is there, for keys and values like these."""
        if not self.is_made:
            rows, columns = self._size
            self.keys, self.values = (
                like.new_zeros(rows, like.shape[1], columns, like.shape[3]) for like in (keys, values)
            )


class _RoomLayer(DynamicLayer):
    """Some rows of a room, from a column on."""

    def __init__(self, room: _Room, rows: slice, first_column: int) -> None:
        super().__init__()
        self._room, self._rows, self._first = room, rows, first_column

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values (rows, heads, n, width) to their place and returns all that are there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room.make(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        keys, values = self.show(after)
        keys[:, :, before:] = key_states
        values[:, :, before:] = value_states
        return keys, values

    def show(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Has the first `num_tokens` in it, whatever they are, and returns them.

        Raises:
            ValueError: there is no room for so many.
        """
        last = self._first + num_tokens
        if last > self._room.keys.shape[2]:
            raise ValueError(f"a cache of {self._room.keys.shape[2]} columns has no room for {last}")
        self.keys = keys = self._room.keys[self._rows, :, self._first : last]
        self.values = values = self._room.values[self._rows, :, self._first : last]
        self.is_initialized = True
        return keys, values

"""A KV cache whose tensors are allocated once, for all tokens to come.

The transformers library's `DynamicCache` copies all of its tensors for each token; here a token is written to its
place. Rows can be read one at a time, each into its own part, and then go on together.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomCache(Cache):
    """Keys and values of rows that end together: shorter rows have unused columns before their first.

    For models whose layers all see everything (`attention.sees_everything`).
    """

    def __init__(self, model: Any, num_rows: int, num_columns: int) -> None:
        num_layers = len(DynamicCache(config=model.config).layers)
        self._rooms = [_Room(num_rows, num_columns) for _ in range(num_layers)]
        self._all_rows = [_RoomLayer(room, slice(None), 0) for room in self._rooms]
        super().__init__(layers=[*self._all_rows])

    def row(self, place: int, first_column: int) -> Cache:
        """An empty cache for one row alone, whose tokens go to this cache from `first_column` on."""
        return Cache(layers=[_RoomLayer(room, slice(place, place + 1), first_column) for room in self._rooms])

    def fill(self, num_columns: int) -> None:
        """Counts the first `num_columns` of all rows as read, after each row's own cache has read them."""
        for layer in self._all_rows:
            if layer.room.is_allocated:
                layer.show(num_columns)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows alone."""
        for layer in self._all_rows:
            room = layer.room
            if room.is_allocated:
                room.keys, room.values = room.keys[indices], room.values[indices]
                layer.show(layer.get_seq_length())


class _Room:
    """One layer's keys and values (rows, heads, columns, width), allocated when their shape is known."""

    keys: Tensor
    values: Tensor

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self._size = num_rows, num_columns

    @property
    def is_allocated(self) -> bool:
        """Whether there are tensors; layers that share another layer's keys have none."""
        return hasattr(self, "keys")

    def allocate(self, keys: Tensor, values: Tensor) -> None:
        """Allocates tensors for keys and values like these, once."""
        if not self.is_allocated:
            rows, columns = self._size
            # Zeros, not whatever is in memory: unused columns are masked, and zero times NaN is NaN.
            self.keys, self.values = (
                like.new_zeros(rows, like.shape[1], columns, like.shape[3]) for like in (keys, values)
            )


class _RoomLayer(DynamicLayer):
    """Some rows of a room, from a column on."""

    def __init__(self, room: _Room, rows: slice, first_column: int) -> None:
        super().__init__()
        self.room, self._rows, self._first = room, rows, first_column

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values (rows, heads, n, width) to their place and returns all that are there."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room.allocate(key_states, value_states)
        before = self.get_seq_length()
        keys, values = self.show(before + key_states.shape[-2])
        keys[:, :, before:] = key_states
        values[:, :, before:] = value_states
        return keys, values

    def show(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Takes the first `num_tokens` columns as its content, and returns them.

        Raises:
            ValueError: there is no room for so many.
        """
        last = self._first + num_tokens
        if last > self.room.keys.shape[2]:
            raise ValueError(f"a cache of {self.room.keys.shape[2]} columns has no room for {last}")
        self.keys = keys = self.room.keys[self._rows, :, self._first : last]
        self.values = values = self.room.values[self._rows, :, self._first : last]
        self.is_initialized = True
        return keys, values

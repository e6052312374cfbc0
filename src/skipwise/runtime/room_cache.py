"""A KV cache with room for tokens to come.

The transformers library's `DynamicCache` copies all of its tensors for each token; here a token is written to its
place. Rows can be read one at a time, each into its own part, and then go on together.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomCache(Cache):
    """Keys and values of rows that end together: shorter rows have unused columns before their first.

    For models whose layers all see everything (`attention.sees_everything`).

    Args:
        num_columns: columns that are allocated, once; None for a cache that moves to more room, by a quarter of what it
            holds, when it is full.
    """

    def __init__(self, model: Any, num_rows: int, num_columns: int | None) -> None:
        num_layers = len(DynamicCache(config=model.config).layers)
        self._rooms = [_Room(num_rows, num_columns) for _ in range(num_layers)]
        self._all_rows = [RoomLayer(room, slice(None), 0) for room in self._rooms]
        super().__init__(layers=[*self._all_rows])

    def row(self, place: int, first_column: int) -> Cache:
        """An empty cache for one row alone, whose tokens go to this cache from `first_column` on."""
        return Cache(layers=[RoomLayer(room, slice(place, place + 1), first_column) for room in self._rooms])

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
    """One layer's keys and values (rows, heads, columns, width), allocated when their shape is known.

    Without a number of columns it grows.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, num_rows: int, num_columns: int | None) -> None:
        self._rows, self._columns = num_rows, num_columns

    @property
    def is_allocated(self) -> bool:
        """Whether there are tensors; layers that share another layer's keys have none."""
        return hasattr(self, "keys")

    def allocate(self, keys: Tensor, values: Tensor) -> None:
        """Allocates tensors for keys and values like these, once."""
        if not self.is_allocated:
            # Zeros, not whatever is in memory: unused columns are masked, and zero times NaN is NaN.
            self.keys, self.values = (
                like.new_zeros(self._rows, like.shape[1], self._columns or 0, like.shape[3]) for like in (keys, values)
            )

    def reach(self, num_columns: int) -> None:
        """Makes sure that there are so many columns.

        Raises:
            ValueError: there are fewer, and it does not grow.
        """
        held = self.keys.shape[2]
        if num_columns <= held:
            return
        if self._columns is not None:
            raise ValueError(f"a cache of {held} columns has no room for {num_columns}")
        self.keys, self.values = (
            _widened(tensor, num_columns + num_columns // 4) for tensor in (self.keys, self.values)
        )


def _widened(tensor: Tensor, num_columns: int) -> Tensor:
    """A copy with so many columns; nobody reads the new ones, after the last, before they are written."""
    wider = tensor.new_empty(*tensor.shape[:2], num_columns, tensor.shape[3])
    wider[:, :, : tensor.shape[2]] = tensor
    return wider


class RoomLayer(DynamicLayer):
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
            ValueError: there is no room for so many, and it does not grow.
        """
        last = self._first + num_tokens
        self.room.reach(last)
        self.keys = keys = self.room.keys[self._rows, :, self._first : last]
        self.values = values = self.room.values[self._rows, :, self._first : last]
        self.is_initialized = True
        return keys, values

"""A cache with room for all tokens holds what the library's growing one does."""

import itertools

import pytest
import torch
from transformers import DynamicCache

from skipwise.runtime.room_cache import RoomCache

from .tiny import make_family

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false


def some(n: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, n, 4), torch.randn(rows, 2, n, 4)


def test_holds_what_a_growing_cache_does() -> None:
    model = make_family("llama")
    room, grown = RoomCache(model, 3, 20), DynamicCache(config=model.config)
    for n in (7, 1, 1, 5):
        keys, values = some(n)
        for layer in range(len(grown.layers)):
            for got, expected in zip(
                room.update(keys + layer, values, layer), grown.update(keys + layer, values, layer), strict=True
            ):
                torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert room.get_seq_length() == grown.get_seq_length() == 14
    assert room.get_mask_sizes(2, 0) == grown.get_mask_sizes(2, 0)
    chosen = torch.tensor([2, 0])
    for cache in (room, grown):
        cache.batch_select_indices(chosen)
        for layer in cache.layers:
            layer.crop(-4)
        cache.update(keys[:2, :, :2], values[:2, :, :2], 1)
    for got, expected in zip(room.layers, grown.layers, strict=True):
        torch.testing.assert_close(got.keys, expected.keys, rtol=0, atol=0)
        torch.testing.assert_close(got.values, expected.values, rtol=0, atol=0)


def test_no_tensor_is_made_but_the_first_two_of_each_layer() -> None:
    model = make_family("llama")
    room = RoomCache(model, 3, 20)
    room.update(*some(7), 0)
    before = room.layers[0].keys.data_ptr(), room.layers[0].values.data_ptr()
    for _ in range(13):
        room.update(*some(1), 0)
    assert (room.layers[0].keys.data_ptr(), room.layers[0].values.data_ptr()) == before


def test_without_a_number_of_columns_it_moves_seldom_and_holds_the_same() -> None:
    model = make_family("llama")
    room, grown = RoomCache(model, 1, None), DynamicCache(config=model.config)
    places = []
    for n in (64, *[1] * 100, 5):
        keys, values = some(n, rows=1)
        for got, expected in zip(room.update(keys, values, 0), grown.update(keys, values, 0), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        places.append(room.layers[0].room.keys.data_ptr())
    # To 80 columns, 101, 127, 160 and 211.
    assert sum(before != after for before, after in itertools.pairwise(places)) == 4
    room.layers[0].crop(-60)
    keys, values = some(200, rows=1)
    room.update(keys, values, 0)
    grown_keys = grown.layers[0].keys
    assert grown_keys is not None
    expected = torch.cat([grown_keys[:, :, :109], keys], dim=2)
    torch.testing.assert_close(room.layers[0].keys, expected, rtol=0, atol=0)


def test_rows_read_apart_go_on_together() -> None:
    model = make_family("llama")
    cache = RoomCache(model, 2, 9)
    keys, values = some(8, rows=2)
    for place, length in enumerate((8, 3)):
        row = cache.row(place, 8 - length)
        for part in (slice(8 - length, 7), slice(7, 8)):
            for layer in range(len(cache.layers)):
                row.update(keys[place : place + 1, :, part], values[place : place + 1, :, part], layer)
        torch.testing.assert_close(row.layers[0].keys, keys[place : place + 1, :, 8 - length :], rtol=0, atol=0)
    cache.fill(8)
    keys[1, :, :5] = values[1, :, :5] = 0
    assert cache.get_seq_length() == 8
    torch.testing.assert_close(cache.layers[-1].keys, keys, rtol=0, atol=0)
    torch.testing.assert_close(cache.layers[-1].values, values, rtol=0, atol=0)
    cache.update(*some(1, rows=2), 0)
    with pytest.raises(ValueError, match=r" 9 .* 10"):
        cache.update(*some(1, rows=2), 0)

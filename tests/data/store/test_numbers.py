"""Sets of numbers: whatever is asked of the bits, a sorted list gives the same answer."""

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data.store.numbers import NumberSet


@given(
    size=st.integers(0, 3000),
    share=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
    stretch=st.sampled_from([8, 512, 4096]),
)
def test_a_set_answers_as_a_sorted_list_does(size: int, share: float, stretch: int) -> None:
    mask = np.random.default_rng(size).random(size) < share
    found = NumberSet([NumberSet.bits(mask[begin : begin + stretch]) for begin in range(0, size, stretch)])
    expected = np.flatnonzero(mask).tolist()
    assert len(found) == len(expected)
    assert [found[i] for i in range(len(found))] == expected
    assert [i in found for i in range(size)] == mask.tolist()
    for number in {0, 1, 511, 512, 513, size // 2, size} & {*range(size + 1)}:
        assert found.below(number) == bisect.bisect_left(expected, number)
    for begin, end in ((0, len(expected)), (len(expected) // 3, len(expected) // 2), (len(expected), len(expected))):
        assert found.members(begin, end).tolist() == expected[begin:end]
    for begin in range(0, size, 800):
        assert found.mask(begin, min(begin + 1000, size)).tolist() == mask[begin : begin + 1000].tolist()


def test_a_number_takes_a_bit_and_little_more() -> None:
    found = NumberSet([NumberSet.bits(np.ones(1 << 20, bool))])
    assert len(found) == 1 << 20
    assert (found._bits.nbytes + found._before.nbytes) / len(found) < 0.15


def test_there_is_no_more_than_there_is() -> None:
    with pytest.raises(IndexError):
        NumberSet([NumberSet.bits(np.ones(8, bool))])[8]

"""Sets of document numbers, small enough for every process to hold one for a hundred million documents."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 512


class NumberSet:
    """A sorted set of non-negative integers: one bit for each below a bound, and the member count before every 512.

    Args:
        bits: consecutive 1-D uint8 arrays; bit `i % 8` of byte `i // 8` says whether `i` is a member.

    Source: Jacobson, "Space-efficient Static Trees and Graphs" (1989): rank and select, with one level.
    """

    def __init__(self, bits: Sequence[np.ndarray]) -> None:
        size = sum(len(stretch) for stretch in bits)
        self._bits = np.concatenate([*bits, np.zeros(-size % (_BLOCK // 8), np.uint8)], dtype=np.uint8)
        blocks = self._bits.view(np.uint64).reshape(-1, _BLOCK // 64)
        self._before = np.zeros(len(blocks) + 1, np.int64)
        np.cumsum(np.bitwise_count(blocks).sum(axis=1), out=self._before[1:])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def __getitem__(self, index: int) -> int:
        """The member with `index` members below it."""
        return int(self.members(index, index + 1)[0])

    def members(self, begin: int, end: int) -> np.ndarray:
        """Members `begin` to `end - 1` in ascending order, 1-D int64."""
        if begin >= end:
            return np.zeros(0, np.int64)
        first, last = np.searchsorted(self._before, (begin, end - 1), side="right").tolist()
        bits = self._bits[(first - 1) * (_BLOCK // 8) : last * (_BLOCK // 8)]
        found = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        begins = int(self._before[first - 1])
        return found[begin - begins : end - begins] + (first - 1) * _BLOCK

    def below(self, number: int) -> int:
        """The number of members below `number`."""
        block, rest = divmod(number, _BLOCK)
        if not rest:
            return int(self._before[block])
        bits = self._bits[block * (_BLOCK // 8) : (block + 1) * (_BLOCK // 8)]
        return int(self._before[block]) + int(np.unpackbits(bits, count=rest, bitorder="little").sum())

    def mask(self, begin: int, end: int) -> np.ndarray:
        """Whether each number from `begin` to `end - 1` is a member, 1-D bool; `begin` must be a multiple of 8."""
        bits = self._bits[begin // 8 : -(-end // 8)]
        return np.unpackbits(bits, count=end - begin, bitorder="little").view(bool)

    @staticmethod
    def bits(mask: np.ndarray) -> np.ndarray:
        """Packs a 1-D bool mask into 1-D uint8 for the constructor; all but the last need a length divisible by 8."""
        return np.packbits(mask, bitorder="little")

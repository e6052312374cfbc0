"""Caches of finished requests, for later ones that begin with the same tokens."""

from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import NamedTuple

from transformers.cache_utils import Cache

from skipwise.runtime.caches import can_rewind


class Prefix(NamedTuple):
    """Tokens, and the cache with their keys and values."""

    kind: Hashable  # what these depend on beside the tokens: the mode, the kind of cache, the rotary tables
    ids: tuple[int, ...]
    cache: Cache


class PrefixStore:
    """The caches of the last requests. A cache serves one request at a time: it is taken, and given back.

    Args:
        entries: most caches to keep; the oldest is dropped first, and 0 keeps none.
        chunk_tokens: tokens of one pass. Prefixes are cut to whole chunks, so that the rest of a prompt goes through
            the same passes as without its prefix, and the numbers are the same to the bit.
    """

    def __init__(self, entries: int, chunk_tokens: int) -> None:
        self._entries, self._chunk_tokens = entries, chunk_tokens
        self._kept: list[Prefix] = []

    def take(self, kind: Hashable, ids: Sequence[int]) -> tuple[Cache, int] | None:
        """The cache with the longest beginning of a prompt, cut to it, and its number of tokens; None if there is none.

        The last token of a prompt is never taken from a cache: it must be read to be continued.
        """
        best, length = None, 0
        for prefix in self._kept:
            common = _common(prefix.ids, ids) if prefix.kind == kind else 0
            usable = min(common, len(ids) - 1) // self._chunk_tokens * self._chunk_tokens
            if usable > length:
                best, length = prefix, usable
        if best is None:
            return None
        self._kept = [prefix for prefix in self._kept if prefix is not best]
        if length < len(best.ids):
            best.cache.crop(length - len(best.ids))
        return best.cache, length

    def give(self, kind: Hashable, ids: Sequence[int], cache: Cache) -> None:
        """Keeps the cache of a finished request, with all tokens that it holds, if it can be cut back later."""
        if self._entries and len(ids) >= self._chunk_tokens and can_rewind(cache):
            self._kept = [*self._kept, Prefix(kind, tuple(ids), cache)][-self._entries :]

    def clear(self) -> None:
        """Drops all caches."""
        self._kept = []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

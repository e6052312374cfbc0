"""Caches of requests that are done, for later ones that begin with the same tokens."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from transformers.cache_utils import Cache

from skipwise.runtime.caches import can_rewind


class Prefix(NamedTuple):
    """Tokens and what a model made of them.

    Attributes:
        kind: what must be the same for the cache to be of use: the mode, the kind of cache, RoPE that follows lengths.
        ids: tokens that the cache holds.
        cache: keys and values of all of them.
    """

    kind: Hashable
    ids: tuple[int, ...]
    cache: Cache


class PrefixStore:
    """The caches of the last requests. A cache serves one request at a time: whoever takes it brings it back.

    Args:
        entries: caches kept at most, the oldest given up first; 0 keeps none.
        chunk_tokens: tokens of one pass. Prefixes are cut to whole chunks, so that the rest of a prompt goes through
            the same passes as without its prefix, and the numbers are the same to the bit.
    """

    def __init__(self, entries: int, chunk_tokens: int) -> None:
        self._entries, self._chunk_tokens = entries, chunk_tokens
        self._kept: list[Prefix] = []

    def take(self, kind: Hashable, ids: Sequence[int]) -> tuple[Cache, int] | None:
        """A cache that holds the beginning of a prompt, cut to that, and its number of tokens; None where none does.

        Args:
            kind: as of `Prefix`.
            ids: the prompt. Its last token is never taken from a cache, as it must be read to be continued.
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
        """Keeps the cache of a request that is done, if it can be cut back later.

        Args:
            kind: as of `Prefix`.
            ids: all tokens that the cache holds, in order.
            cache: nobody else uses it any more.
        """
        if self._entries and len(ids) >= self._chunk_tokens and can_rewind(cache):
            self._kept = [*self._kept[-self._entries + 1 :], Prefix(kind, tuple(ids), cache)]
            self._kept = self._kept[-self._entries :]

    def clear(self) -> None:
        """Lets go of all caches."""
        self._kept = []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    n = min(len(one), len(other))
    return next((place for place in range(n) if one[place] != other[place]), n)

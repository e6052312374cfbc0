"""A corpus of several sources, each tokenized, held out and joined by its own settings, with weights between them."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skipwise.config import DataConfig
from skipwise.config.recipes import LongDocuments
from skipwise.data.corpus.stored import StoredCorpus
from skipwise.data.documents import PassedOver
from skipwise.data.items import TrainingItems
from skipwise.data.mixture import MixedItems, Shares, Windows, seed_of
from skipwise.data.store import Counts, HeldOutEnd, Part, TokenStore
from skipwise.data.turns import SkipsAt
from skipwise.errors import DataError
from skipwise.positions import PositionSampler
from skipwise.window import Window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, kw_only=True)
class MixedStore:
    """Documents of several sources, each in a store of its own.

    Attributes:
        names: of the sources.
        stores: of each.
        shares: of the windows made of them.
        numbers: of the sources among all of the run; their draws depend on these.
        skips_at: where skips fall in conversations of each.
        beside: stores of replay sources, which other windows are made of.
    """

    names: Sequence[str]
    stores: Sequence[TokenStore]
    shares: Shares
    numbers: Sequence[int]
    skips_at: Sequence[SkipsAt]
    beside: Sequence[TokenStore] = ()

    @property
    def num_documents(self) -> int:
        """Number of documents of all sources."""
        return sum(store.num_documents for store in self.stores)

    @property
    def counts(self) -> Counts:
        """Sums over all sources."""
        every = [store.counts for store in (*self.stores, *self.beside)]
        return Counts(**{entry.name: sum(getattr(one, entry.name) for one in every) for entry in fields(Counts)})

    @property
    def passed_over(self) -> dict[str, Any]:
        """What was unreadable and skipped in any source, as `PassedOver.to_json`."""
        passed_over = PassedOver()
        for store in (*self.stores, *self.beside):
            passed_over.update(store.passed_over)
        return passed_over.to_json()

    @property
    def has_turns(self) -> bool:
        """Whether all documents are conversations."""
        return all(store.has_turns for store in (*self.stores, *self.beside))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the fingerprints of all sources."""
        own = [store.fingerprint for store in (*self.stores, *self.beside)]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document; the sources take turns as long as they last."""
        store, own = self._turns[index]
        return self.stores[store].document(own)

    @cached_property
    def _turns(self) -> list[tuple[int, int]]:
        """Store and index of each document."""
        places = itertools.chain.from_iterable(
            ((own, number) for own in range(store.num_documents)) for number, store in enumerate(self.stores)
        )
        return [(number, own) for own, number in sorted(places)]

    def items(self, sampler: PositionSampler, window: Window, seed: int, windows: Windows, **how: Any) -> MixedItems:
        """The training items of these documents.

        Args:
            sampler: chooses the tokens of a document and their positions.
            window: the three lengths, in tokens.
            seed: of the run.
            windows: numbers the windows of the run.
            how: further arguments of `TrainingItems`.
        """
        items = [
            TrainingItems(store, sampler, window, seed_of(seed, number), skips_at=skips_at, **how)
            for store, number, skips_at in zip(self.stores, self.numbers, self.skips_at, strict=True)
        ]
        return MixedItems(names=self.names, items=items, shares=self.shares, windows=windows)


@dataclass(frozen=True, kw_only=True)
class MixedCorpus:
    """Several sources as one corpus.

    Attributes:
        data: settings of the mixture.
        tokenizer: the model's own.
        parts: the corpus of each entry that has a source, in order.
    """

    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    parts: tuple[StoredCorpus, ...]

    def documents(self, part: Part = "all", *, min_tokens: int = 1, join: bool | None = None) -> MixedStore:
        """The documents of one split that are long enough, of every source that has some; warns of the others.

        Raises:
            DataError: no source has any.
        """
        found = self._opened(lambda corpus: corpus.documents(part, min_tokens=min_tokens, join=join))
        names, stores = [corpus.name for corpus, _ in found], [store for _, store in found]
        equal = Shares([Fraction(1)] * len(found))
        skips_at: list[SkipsAt] = [corpus.data.skips_at for corpus, _ in found]
        return MixedStore(names=names, stores=stores, shares=equal, numbers=range(len(found)), skips_at=skips_at)

    def training(self, tokens: int) -> MixedStore:
        """The training documents for windows of this length, of all entries but replay.

        Raises:
            DataError: an entry has none.
        """
        beside = [entry.corpus.training(1) for entry in self._entries() if entry.replay and entry.corpus]
        return _store([entry for entry in self._entries() if not entry.replay], tokens, beside)

    def replayed(self, tokens: int) -> MixedStore:
        """The training documents for windows of short replay, of this length; there must be replay entries."""
        entries = self._entries()
        others = [entry._replace(name=f"{entry.name} (replay)") for entry in entries if not entry.replay]
        total = sum(other.weight for other in others)
        found = []
        for entry in entries:
            if entry.replay and entry.corpus is not None:
                found.append(entry)
            elif entry.replay:
                # With numbers of their own, and so in other orders than the windows with skips.
                for number, other in enumerate(others, start=len(entries)):
                    found.append(other._replace(number=number, weight=entry.weight * other.weight / total))
        return _store(found, tokens)

    def scarcest(self, tokens: int) -> LongDocuments:
        """The entry whose training documents of at least this many tokens would be repeated most often."""
        total = sum(entry.weight for entry in self._entries())
        found = [
            LongDocuments(entry.corpus.scarcest(tokens).number, entry.weight / total, entry.corpus.name)
            for entry in self._entries()
            if entry.corpus is not None and not entry.replay
        ]
        return max(found, key=lambda one: (not one.number, one.share / max(1, one.number)))

    def with_held_out(self, share: float) -> "MixedCorpus":
        """The same documents with another share of each source held out."""
        data = self.data.model_copy(update={"held_out": share})
        return replace(self, data=data, parts=tuple(part.with_held_out(share) for part in self.parts))

    def with_held_out_ends(self, ends: Sequence[HeldOutEnd]) -> "MixedCorpus":
        """The same documents with the ends held out that are of some of them."""
        return replace(self, parts=tuple(part.with_held_out_ends(ends) for part in self.parts))

    def long_documents(self, part: Part, number: int, *, min_tokens: int, spread: bool = False) -> list[np.ndarray]:
        """Some long documents of one split; the sources take turns. Arguments as for `StoredCorpus.long_documents`."""
        by_source = self.long_by_source(part, number, min_tokens=min_tokens, spread=spread).values()
        turns = itertools.zip_longest(*by_source)
        return [text for turn in turns for text in turn if text is not None]

    def long_by_source(
        self, part: Part, number: int, *, min_tokens: int, spread: bool = False
    ) -> dict[str, list[np.ndarray]]:
        """The same by the name of the source; sources without any are left out, with a warning.

        Raises:
            DataError: no source has any.
        """
        found = self._opened(lambda corpus: corpus.long_store(part, min_tokens))
        there = [len(corpus.texts(store, number, min_tokens=min_tokens)) for corpus, store in found]
        wanted = _fair(number, there)
        return {
            corpus.name: corpus.texts(store, own, min_tokens=min_tokens, spread=spread)
            for (corpus, store), own in zip(found, wanted, strict=True)
            if own
        }

    def _opened(self, view: Callable[[StoredCorpus], TokenStore]) -> list[tuple[StoredCorpus, TokenStore]]:
        """Each source with a view of it, where that is not empty; warns of the others."""
        found, missing = [], list[DataError]()
        for corpus in self.parts:
            try:
                found.append((corpus, view(corpus)))
            except DataError as error:
                missing.append(error)
        if not found:
            raise DataError("; ".join(map(str, missing)), page=missing[0].page)
        for error in missing:
            logger.warning(f"nothing is taken from {error}")
        return found

    def _entries(self) -> "list[_Entry]":
        parts = iter(self.parts)
        return [
            _Entry(number, each.name, each.exact_weight, each.replay, next(parts) if each.source is not None else None)
            for number, each in enumerate(self.data.mixture)
        ]


class _Entry(NamedTuple):
    """An entry of the mixture.

    Attributes:
        number: its place in the list.
        name: of its source.
        weight: of its windows.
        replay: whether these are of short replay.
        corpus: its documents; None for a replay of the others.
    """

    number: int
    name: str
    weight: Fraction
    replay: bool
    corpus: StoredCorpus | None


def _store(entries: Sequence[_Entry], tokens: int, beside: Sequence[TokenStore] = ()) -> MixedStore:
    """The training documents of all these entries; raises for all that have none."""
    stores, skips_at, short = [], list[SkipsAt](), list[DataError]()
    for entry in entries:
        assert entry.corpus is not None
        skips_at.append(entry.corpus.data.skips_at)
        try:
            stores.append(entry.corpus.training(tokens))
        except DataError as error:
            short.append(error)
    if short:
        raise DataError("; ".join(map(str, short)), page=short[0].page)
    return MixedStore(
        names=[entry.name for entry in entries],
        stores=stores,
        shares=Shares([entry.weight for entry in entries]),
        numbers=[entry.number for entry in entries],
        skips_at=skips_at,
        beside=beside,
    )


def _fair(number: int, there: Sequence[int]) -> list[int]:
    """How many each gives of `number`, in turns, as far as it has some."""
    given = [0] * len(there)
    while sum(given) < min(number, sum(there)):
        for place, own in enumerate(there):
            given[place] += given[place] < own and sum(given) < number
    return given

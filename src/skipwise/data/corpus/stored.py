"""A corpus whose documents are tokenized on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skipwise.config import DataConfig
from skipwise.config.recipes import LongDocuments
from skipwise.data.documents import Sources
from skipwise.data.store import HeldOutEnd, Part, TokenFiles, TokenStore, View
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")


@dataclass(frozen=True, kw_only=True)
class StoredCorpus:
    """Documents as token ids on disk. They are hashed and verified once, when opened; everything else is a view.

    Attributes:
        data: settings of the documents and of their splits.
        sources: the inspected sources.
        tokenizer: the model's own.
        folder: folder of the token files.
        held_out_end: end of a document that is held out besides whole documents (see `choose_held_out_end`).
        name: of the source in a mixture, for messages; empty without one.
    """

    data: DataConfig
    sources: Sources
    tokenizer: "PreTrainedTokenizerBase"
    folder: Path
    held_out_end: HeldOutEnd | None = None
    name: str = ""

    @property
    def parts(self) -> "tuple[StoredCorpus, ...]":
        """The corpora of the single sources: this one."""
        return (self,)

    @property
    def files(self) -> TokenFiles:
        """The token files of all documents, of any split and length."""
        return TokenFiles(self.folder)

    @property
    def joins(self) -> bool:
        """Whether short documents are joined where nothing else is asked for."""
        return joins(self.data, self.sources)

    def documents(self, part: Part = "all", *, min_tokens: int = 1, join: bool | None = None) -> TokenStore:
        """The documents of one split that are long enough.

        Args:
            part: the split: all documents, those for training, or those held out. The split is decided by
                `Document.identity`, usually the text.
            min_tokens: documents with fewer tokens are dropped, or joined; `data.min_tokens` if that is more.
            join: joins short documents in reading order, texts with a separator token between them; `joins` by default.

        Raises:
            DataError: no document is long enough.
        """
        join = self.joins if join is None else join
        view = view_of(self.data, part, min_tokens=min_tokens, join=join, held_out_end=self.held_out_end)
        try:
            return TokenStore(self.folder, view, files_passed_over=self.sources.kinds_passed_over.total())
        except DataError as error:
            raise DataError(f"{self._prefix}{error}", page=error.page) from None

    def training(self, tokens: int) -> TokenStore:
        """The training documents for windows of this length, in tokens."""
        return self.documents("train", min_tokens=tokens)

    replayed = training

    def scarcest(self, tokens: int) -> LongDocuments:
        """The number of training documents with at least this many tokens."""
        try:
            return LongDocuments(self.training(tokens).num_documents)
        except DataError:
            return LongDocuments(0)

    def with_held_out(self, share: float) -> "StoredCorpus":
        """The same documents with another share held out."""
        return replace(self, data=self.data.model_copy(update={"held_out": share}))

    def with_held_out_ends(self, ends: Sequence[HeldOutEnd]) -> "StoredCorpus":
        """The same documents with the end held out that is of one of them, if any is."""
        return replace(self, held_out_end=next((end for end in ends if end.store == self.folder.name), None))

    def long_documents(self, part: Part, number: int, *, min_tokens: int, spread: bool = False) -> list[np.ndarray]:
        """Some long documents of one split. If none is long enough, joins short ones, with a warning.

        Args:
            part: as in `documents`.
            number: maximum number of documents.
            min_tokens: minimum length of each.
            spread: takes them from all over the corpus, since neighbours are alike; else the first ones.

        Returns:
            Token ids of each document, 1-D.

        Raises:
            DataError: joined documents are too short as well, or the tokenizer has no separator token.
        """
        return self.texts(self.long_store(part, min_tokens), number, min_tokens=min_tokens, spread=spread)

    def long_store(self, part: Part, min_tokens: int) -> TokenStore:
        """Long documents of one split; if none is long enough, short ones joined, with a warning."""
        try:
            return self.documents(part, min_tokens=min_tokens)
        except DataError as too_short:
            if self.joins or (self.files.separator_id is None and not self.files.has_turns):
                raise
            try:
                store = self.documents(part, min_tokens=min_tokens, join=True)
            except DataError:
                raise too_short from None
            which = {"held_out": "held-out documents", "train": "training documents", "all": "documents"}[part]
            logger.warning(f"{self._prefix}{which} are joined: none has {min_tokens} tokens by itself")
            return store

    def texts(self, store: TokenStore, number: int, *, min_tokens: int, spread: bool = False) -> list[np.ndarray]:
        """Some documents of a `long_store`; a held-out end alone is cut into as many, as far as it is long enough."""
        if self.held_out_end is not None and store.view.part == "held_out" and store.num_documents == 1:
            end = store.document(0)
            return np.array_split(end, min(number, len(end) // min_tokens))
        number = min(number, store.num_documents)
        places = np.linspace(0, store.num_documents - 1, number).astype(int) if spread else range(number)
        return [store.document(int(place)) for place in places]

    @property
    def _prefix(self) -> str:
        return f"{self.name}: " if self.name else ""


def joins(data: DataConfig, sources: Sources) -> bool:
    """Whether short documents are joined where nothing else is asked for: as the settings say, else conversations."""
    return sources.are_conversations if data.join is None else data.join


def view_of(
    data: DataConfig, part: Part, *, min_tokens: int, join: bool, held_out_end: HeldOutEnd | None = None
) -> View:
    """The view of a split under the settings of a run; arguments as for `StoredCorpus.documents`."""
    return View(
        min_tokens=max(min_tokens, data.min_tokens or 0),
        join=join,
        part=part,
        held_out_share=data.held_out,
        held_out_end=held_out_end,
    )

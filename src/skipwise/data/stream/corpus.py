"""A streamed corpus: the stream to train on, and some documents of either split for validation and calibration."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from skipwise.config import DataConfig
from skipwise.data.documents import Sources
from skipwise.data.formats import UnreadableError
from skipwise.data.stream.lanes import DocumentStream, is_of_part, together, tokens_of
from skipwise.data.stream.shards import Shards
from skipwise.data.tokens import Encoder
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")

# How many documents are searched for long ones.
_LOOKED_THROUGH = 50_000


@dataclass(frozen=True, kw_only=True)
class StreamedCorpus:
    """Documents that are read and tokenized during training.

    Attributes:
        data: settings of the documents and of their splits.
        sources: the inspected sources.
        tokenizer: the model's own; a fast one.
    """

    data: DataConfig
    sources: Sources
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def parts(self) -> tuple[()]:
        """Corpora of stored documents: none."""
        return ()

    def with_held_out(self, share: float) -> "StreamedCorpus":
        """The same documents with another share held out."""
        return replace(self, data=self.data.model_copy(update={"held_out": share}))

    def with_held_out_ends(self, ends: Sequence[object]) -> "StreamedCorpus":
        """The same: of streamed documents no end is held out, as their lengths are unknown."""
        return self

    def stream(self, *, lanes: int, seed: int) -> DocumentStream:
        """The training documents, in order.

        Args:
            lanes: windows per step, over all processes.
            seed: seed of all shuffling.

        Raises:
            DataError: the documents are of a kind that cannot be streamed, or cannot be read.
        """
        data = self.data
        return DocumentStream(
            Shards(self.sources, data.field, at_least=lanes, skip_unreadable=data.skip_unreadable),
            self.tokenizer,
            lanes=lanes,
            seed=seed,
            buffer=data.buffer,
            join=bool(data.join),
            held_out_share=data.held_out,
            control_tokens=data.control_tokens,
        )

    def long_documents(
        self, part: Literal["train", "held_out"], number: int, *, min_tokens: int, spread: bool = False
    ) -> list[np.ndarray]:
        """Some long documents of one split, the first in the shards' own order. If none is long, joins short ones.

        Args:
            part: the split: documents for training, or held-out documents.
            number: maximum number of documents.
            min_tokens: minimum length of each.
            spread: ignored, since a stream is read from its beginning.

        Returns:
            Token ids of each document, 1-D.

        Raises:
            DataError: no document among those searched is long enough, even joined; or as `Shards`.
        """
        data, held_out = self.data, part == "held_out"
        encoder = Encoder(self.tokenizer, data.control_tokens)
        long, joined, gathered = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        for text in islice(self._texts(), _LOOKED_THROUGH):
            if not is_of_part(text, data.held_out, held_out=held_out):
                continue
            ids = encoder.encode([text])[0]
            if len(ids) >= min_tokens:
                long.append(ids)
            elif encoder.separator_id is not None and len(joined) < number:
                gathered.append(ids)
                if tokens_of(gathered) >= min_tokens:
                    joined.append(together(gathered, encoder))
                    gathered = []
            if len(long) == number:
                break
        if not long and not joined:
            raise DataError(
                f"of the first {_LOOKED_THROUGH:,} documents at {data.source!r} none that is "
                f"{'held out' if held_out else 'trained on'} has {min_tokens} tokens, nor have several joined; give "
                "more or longer documents",
                page="no-long-documents",
            )
        if not long:
            logger.warning(f"documents are joined: none of those searched has {min_tokens} tokens by itself")
        return long or joined

    def _texts(self) -> Iterator[str]:
        """The texts of all shards; an unreadable text is skipped if `data.skip_unreadable`, and else raises."""
        shards = Shards(self.sources, self.data.field, skip_unreadable=self.data.skip_unreadable)
        for shard in range(len(shards)):
            for text in shards.texts(shard):
                if not isinstance(text, UnreadableError):
                    yield text
                elif not self.data.skip_unreadable:
                    raise text

"""Tokenizing the documents of a corpus in parallel threads."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from skipwise.data.documents import Document, in_threads, split_point
from skipwise.data.formats import UnreadableError
from skipwise.data.tokens.engines import Reading, any_of, engine_of
from skipwise.data.tokens.sentence_ends import sentence_end_code
from skipwise.data.tokens.texts import TextEncoder, is_long

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("skipwise")


class Piece(NamedTuple):
    """A tokenized document, as `StoreWriter.add` takes it.

    Attributes:
        name: name of the document.
        ids: 1-D, its token ids; empty if it has no text.
        split_point: `documents.split_point` of the document, which decides its split.
    """

    name: str
    ids: np.ndarray
    split_point: int


class Encoder:
    """Tokenizes the texts of documents.

    Args:
        tokenizer: a fast one.
        reading: `tokens` if control tokens spelled in documents are meant as tokens.

    Attributes:
        separator_id: token to put between joined documents: the end token, else the begin token, else None.
        prefix: ids that the tokenizer puts before every text.
        num_ids: the largest token id plus one.
        dtype: uint16 if it holds every token id, else uint32.
        fingerprint: hash of everything that decides the result of `encode`, and of the separator.
        num_characters: characters encoded so far, by all threads.
        has_turns: whether the documents are conversations, whose token ids carry flags.
    """

    has_turns: ClassVar[bool] = False

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", reading: Reading = "text") -> None:
        plain = engine_of(tokenizer)
        self._texts = TextEncoder(tokenizer, reading=reading, plain=plain)
        self._own: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        separators: Any = (tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.separator_id: int | None = next((token for token in separators if token is not None), None)
        self.prefix = self._texts.prefix
        self.num_ids: int = max(self._own.get_vocab().values()) + 1
        self.dtype = np.dtype(np.uint16 if self.num_ids <= 1 << 16 else np.uint32)
        hidden = sorted(self._texts.control_tokens.all) if reading == "text" else []
        # Without hidden tokens this is the string of earlier versions, so that their cached stores are found.
        depends_on = f"{self.separator_id} {plain.to_str()}{hidden or ''}"
        self.fingerprint = hashlib.sha256(depends_on.encode()).hexdigest()
        self.num_characters = 0
        self._lock = Lock()
        self._spelled = any_of(hidden) if hidden else None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, 1-D, with the prefix."""
        short = [text for text in texts if not is_long(text)]
        encodings = iter(self._texts.engine.encode_batch_fast(short, add_special_tokens=False))
        self._count(sum(map(len, short)))
        self._warn_of_control_tokens(texts)
        ids = (self._texts.pieces(text, self._count) if is_long(text) else next(encodings).ids for text in texts)
        prefix = np.array(self.prefix, self.dtype)
        return [np.concatenate([prefix, np.array(own, self.dtype)]) for own in ids]

    def pieces(self, batch: list[Document]) -> "list[Piece | UnreadableError]":
        """One piece per document. A document without text has no tokens, not even the begin token."""
        encoded = iter(self.encode([document.text for document in batch if document.text.strip()]))
        return [
            Piece(
                document.name,
                next(encoded) if document.text.strip() else np.zeros(0, self.dtype),
                split_point(document.identity),
            )
            for document in batch
        ]

    def why_not(self, document: Document) -> UnreadableError | None:
        """Why a document cannot be tokenized; None if it can, as every text."""
        return None

    def sentence_ends(self) -> np.ndarray:
        """1-D uint8, one entry per token id: its `sentence_ends.sentence_end_code`."""
        texts = self._own.decode_batch([[token] for token in range(self.num_ids)], skip_special_tokens=False)
        tokens = map(self._own.id_to_token, range(self.num_ids))
        codes = (sentence_end_code(token or "", text) for token, text in zip(tokens, texts, strict=True))
        return np.fromiter(codes, np.uint8, self.num_ids)

    def _count(self, characters: int) -> None:
        with self._lock:
            self.num_characters += characters

    def _warn_of_control_tokens(self, texts: list[str]) -> None:
        """Warns once if documents spell control tokens, since their author may mean the tokens."""
        # Read once: another thread may warn meanwhile and set it to None.
        spelled = self._spelled
        found = next(filter(None, map(spelled.search, texts)), None) if spelled else None
        if not found:
            return
        with self._lock:
            is_said, self._spelled = self._spelled is None, None
        if not is_said:
            logger.warning(
                f"documents contain the text of control tokens, such as {found[0]}. It is read as text, as "
                "data.control_tokens is text. If the documents mean the tokens, set data.control_tokens to tokens"
            )


def tokenized(
    documents: Iterator[Document], encoder: Encoder, workers: int, waiting_for: Callable[[], None] = lambda: None
) -> Iterator[Piece | UnreadableError]:
    """Tokenizes in threads, as the engine releases the GIL; yields in order, and runs at most a few batches ahead.

    Args:
        documents: in reading order.
        encoder: the tokenizer.
        workers: number of threads.
        waiting_for: called repeatedly while waiting for the next batch.
    """
    with _one_thread_a_call():
        yield from in_threads(encoder.pieces, documents, workers, waiting_for)


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """Turns off the threads of the tokenizers library: ours are bounded in number, and its own interfere with forks."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

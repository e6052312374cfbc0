"""Tokenizing: texts to ids in parallel threads, exactly as the model's own tokenizer would."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skipwise.documents import Document, split_point
from skipwise.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A batch is one call of the engine in one thread: enough to hide the call, little enough to spread a small corpus.
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 512
_SENTENCE_ENDS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")  # the last three are full-width

# What the transformers library makes a fast tokenizer of.
_CONVERTIBLE = ("tokenizer.json", "tokenizer.model", "tekken.json")


def require_fast(tokenizer: Any) -> None:
    """Refuses a tokenizer that does not run in the tokenizers library, as threads need.

    Raises:
        DataError: with the command that makes a fast one of its files, where they allow it.
    """
    if getattr(tokenizer, "is_fast", False):  # Mistral's own does not say.
        return
    folder = str(getattr(tokenizer, "name_or_path", ""))
    found = [name for name in _CONVERTIBLE if folder and (Path(folder) / name).is_file()]
    cure = "its files hold nothing to make a fast one of: give a checkpoint that has a tokenizer.json"
    if found:
        cure = (
            f'make a fast one of its {found[0]}: python -c "from transformers import TokenizersBackend as T; '
            f"T.from_pretrained({folder!r}).save_pretrained('NEW')\", compare the ids of some text, and put the files "
            "of NEW in place of the checkpoint's own"
        )
    raise DataError(f"the tokenizer is a slow {type(tokenizer).__name__}, and documents need a fast one; {cure}")


class Piece(NamedTuple):
    """The tokens of a document for the store.

    Attributes:
        name: the document's.
        ids: 1-D, its token ids; none where it has no text.
        split_point: which part it is in, as `documents.split_point` has it.
    """

    name: str
    ids: np.ndarray
    split_point: int


class Encoder:
    """A tokenizer's engine, copied, so that settings which other code left on it (truncation, padding) do not count.

    Args:
        tokenizer: a fast one.

    Attributes:
        separator_id: token to put between joined documents: the end token, else the begin token, else None.
        prefix: ids that the tokenizer puts before every text.
        num_ids: one more than its largest token id.
        dtype: smallest unsigned integer that holds every token id.
        fingerprint: hash of all that decides what `encode` returns, and of the separator.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers import Tokenizer

        backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._engine = Tokenizer.from_str(backend.to_str())
        self._engine.no_truncation()
        self._engine.no_padding()
        separators: Any = (tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.separator_id: int | None = next((token for token in separators if token is not None), None)
        bare = self._engine.encode("a", add_special_tokens=False).ids
        full = self._engine.encode("a").ids
        self.prefix: list[int] = full[: next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)]
        self.num_ids: int = max(self._engine.get_vocab().values()) + 1
        self.dtype = np.dtype(np.uint16 if self.num_ids <= 1 << 16 else np.uint32)
        self.fingerprint = hashlib.sha256(f"{self.separator_id} {self._engine.to_str()}".encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, 1-D: the prefix, then the text's own."""
        encodings = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(self.prefix + encoding.ids, dtype=self.dtype) for encoding in encodings]

    def sentence_ends(self) -> np.ndarray:
        """1-D bool, one entry per token id: whether its text ends with a full stop, its like, or a line's end."""
        texts = self._engine.decode_batch([[token] for token in range(self.num_ids)], skip_special_tokens=False)
        return np.array([text.endswith(_SENTENCE_ENDS) for text in texts])


def tokenized(documents: Iterator[Document], encoder: Encoder, workers: int) -> Iterator[Piece]:
    """Tokenizes in threads (the engine works outside Python's lock); yields in order, a few batches ahead at most."""
    batches = _batches(documents)
    waiting: list[Future[list[Piece]]] = []
    with _one_thread_a_call(), ThreadPoolExecutor(workers) as pool:
        while True:
            waiting += [pool.submit(_pieces, batch, encoder) for batch in islice(batches, 2 * workers - len(waiting))]
            if not waiting:
                return
            yield from waiting.pop(0).result()


def _pieces(batch: list[Document], encoder: Encoder) -> list[Piece]:
    """One piece a document; those without text get no token, not even the tokenizer's opening one."""
    encoded = iter(encoder.encode([document.text for document in batch if document.text.strip()]))
    return [
        Piece(
            document.name,
            next(encoded) if document.text.strip() else np.zeros(0, encoder.dtype),
            split_point(document.identity),
        )
        for document in batch
    ]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """Keeps the tokenizers library from threads of its own: ours are bounded, and its own get in the way of forks."""
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

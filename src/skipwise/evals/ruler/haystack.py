"""Running text of the documents, as words."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from skipwise.errors import DataError

# Text without sentence ends, such as code, is cut every so many words.
_LONGEST_SENTENCE_WORDS = 32
_CLOSING_MARKS = "\"')]\u201d\u2019"


class DocumentWords:
    """The first so many words of the documents, decoded only as far as they are asked for.

    Documents follow each other from a given one on, and start over where they end. White space becomes single spaces.

    Args:
        documents: token ids of each document.
        tokenizer: what decodes them.
        first: index of the document to begin with.
    """

    def __init__(self, documents: Sequence[np.ndarray], tokenizer: Any, first: int) -> None:
        self._texts = _texts_from(documents, tokenizer, first)
        self._num_documents = len(documents)
        self._words: list[str] = []

    def __call__(self, num_words: int) -> list[str]:
        """The first `num_words` words.

        Raises:
            DataError: when no document has a word.
        """
        for read, text in enumerate(self._texts if len(self._words) < num_words else (), 1):
            self._words += text.split()
            if len(self._words) >= num_words:
                break
            if read >= self._num_documents and not self._words:
                raise DataError(
                    f"none of the {self._num_documents} documents has text, which a haystack needs: give documents"
                )
        return self._words[:num_words]


def _texts_from(documents: Sequence[np.ndarray], tokenizer: Any, first: int) -> Iterator[str]:
    bos = tokenizer.bos_token_id
    while True:
        for offset in range(len(documents)):
            ids = documents[(first + offset) % len(documents)].tolist()
            yield tokenizer.decode(ids[1:] if bos is not None and ids[:1] == [bos] else ids)


def sentence_ends(words: Sequence[str]) -> list[int]:
    """How many words there are up to each sentence's end, in order."""
    ends: list[int] = []
    last = 0
    for count, word in enumerate(words, 1):
        if word.rstrip(_CLOSING_MARKS).endswith((".", "!", "?")) or count - last >= _LONGEST_SENTENCE_WORDS:
            ends.append(count)
            last = count
    return ends

"""Library: the user's documents as the suite's questions need them."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from skipwise.data.documents import Document
from skipwise.errors import DataError
from skipwise.evals.suite.sentences import is_quotable, sentences

# Where a text may be cut, the best places first.
_BREAKS = ("\n\n", "\n", ". ", " ")
_REACH_CHARACTERS = 2000
_LONGEST_WORD = 40
_WORD = re.compile(r"\w+")


class Stretch(NamedTuple):
    """Running text from one document, or from several one after the other where one is too short.

    Attributes:
        text: the text.
        starts: where each document's part begins in it.
        names: the documents' names.
    """

    text: str
    starts: list[int]
    names: list[str]

    def names_until(self, end: int) -> list[str]:
        """Documents of which something stands before this index."""
        return [name for name, start in zip(self.names, self.starts, strict=True) if start < end]


class Library:
    """Documents, and what is known about all of them together.

    Args:
        documents: texts with names.

    Attributes:
        num_documents: documents with any text.
        num_characters: characters of all of them.
        sha256: hash of all names and texts in order.

    Raises:
        DataError: when there is no text at all.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents: list[Document] = []
        self._words: set[str] = set()
        times: Counter[int] = Counter()
        digest = hashlib.sha256()
        for document in documents:
            text = document.text.strip()
            digest.update(f"{document.name}\0{document.text}\0".encode("utf-8", "surrogatepass"))
            if not text:
                continue
            self._documents.append(Document(name=document.name, text=text))
            self._words.update(_WORD.findall(text.casefold()))
            times.update(_key(one.text) for one in sentences(text) if is_quotable(one.text))
        if not self._documents:
            raise DataError("none of the documents has any text; give documents with text")
        self._repeated = {key for key, count in times.items() if count > 1}
        self._lengths = np.array([len(document.text) for document in self._documents], np.float64)
        self.num_documents = len(self._documents)
        self.num_characters = int(self._lengths.sum())
        self.sha256 = digest.hexdigest()

    def has_word(self, word: str) -> bool:
        """Whether a word or number stands anywhere in the documents, in capitals or not."""
        return word.casefold() in self._words

    def is_repeated(self, sentence: str) -> bool:
        """Whether a quotable sentence stands in the documents more than once, so that it may be known by heart."""
        return _key(sentence) in self._repeated

    def sample(self, num_characters: int) -> str:
        """Text from the beginnings of documents all over the library, to see how it is tokenized."""
        chosen = self._documents[:: -(-self.num_documents // 32)]
        return "\n\n".join(document.text[: num_characters // len(chosen)] for document in chosen)

    def stretches(self, number: int, num_characters: int, rng: np.random.Generator) -> list[Stretch]:
        """Draws running texts that share no document.

        Each begins at a place drawn evenly from all text, moved back where its document would otherwise be too short
        for the rest; a document that is too short as a whole is continued with others.

        Args:
            number: how many texts.
            num_characters: length of each; shorter only where no document is left.
            rng: source of the draws.
        """
        left = np.ones(self.num_documents, bool)
        drawn = []
        for _ in range(number):
            text, starts, names = "", [], []
            while left.any() and len(text) < num_characters:
                weights = self._lengths * left
                index = int(rng.choice(self.num_documents, p=weights / weights.sum()))
                left[index] = False
                document = self._documents[index]
                begin = 0
                if not names:
                    latest = max(0, len(document.text) - num_characters)
                    begin = place_near(document.text, min(int(rng.integers(len(document.text))), latest))
                text += "\n\n" if text else ""
                starts.append(len(text))
                names.append(document.name)
                text += document.text[begin : begin + num_characters - len(text)]
            drawn.append(Stretch(text, starts, names))
        return drawn


def _key(sentence: str) -> int:
    """The same for sentences that differ in marks, white space and capitals alone."""
    return hash(tuple(_WORD.findall(sentence.casefold())))


def place_near(text: str, point: int, low: int = 0, high: int | None = None) -> int:
    """The best place to cut or to insert something: after a paragraph, else a line, a sentence or a word.

    Args:
        text: the text.
        point: index that the place is to be at, or else before, or else after.
        low: index that it may not be before; nor is it looked for very far away.
        high: index that it may not be after, by default `point`.
    """
    low = max(low, point - _REACH_CHARACTERS)
    high = point if high is None else min(high, point + _REACH_CHARACTERS)
    for mark in _BREAKS:
        found = text.rfind(mark, low, point)
        if found < 0:
            found = text.find(mark, point, high)
        if found >= 0:
            return found + len(mark)
    return point


def cut(text: str, num_characters: int) -> str:
    """The beginning of a text, at most this long, not ending inside a word unless words are not spaced."""
    if num_characters >= len(text) or text[num_characters].isspace():
        return text[:num_characters].rstrip()
    last_word = re.compile(r"\S*$").search(text, max(0, num_characters - _LONGEST_WORD), num_characters)
    assert last_word is not None  # it matches nothing, too
    whole = last_word.start() if text[last_word.start() - 1 : last_word.start()].isspace() else num_characters
    return text[:whole].rstrip()

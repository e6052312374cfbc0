"""The user's documents as the questions need them: running texts, places to cut them, and what can be quoted."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from skipwise.data.documents import Document
from skipwise.errors import DataError

# Where a text may be cut, in order of preference.
_BREAKS = ("\n\n", "\n", ". ", " ")
_REACH_CHARACTERS = 2000
_LONGEST_WORD = 40
_WORD = re.compile(r"\w+")
_SENTENCE_WORDS = range(12, 41)
_UNSPACED_CHARACTERS = range(24, 121)
_ENDS = ".!?。！？"
# A line continues in the next one if that begins in the middle of a sentence; a blank line ends the paragraph.
_LINES = re.compile(r"(?:[^\n]|\n(?=[ \t]*[^\W\dA-Z_]))+")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_NOT_PROSE = re.compile(r"""["“”„«»|<>{}\[\]=_\\/¶*`#~^]""")
# Minimum share of letters and spaces in a sentence: code and tables are not quoted.
_PROSE_SHARE = 0.9
# The line below a heading may be an underline.
_HEADING = re.compile(r"(?m)^(?:#{1,6} +)?(?P<title>\S[^\n]{2,78}\S)[ ¶#]*$(?=\n(?P<below>[\s=~*^-]*[^\n]*))")
_UNDERLINES = "=~*^- \n"
_PARAGRAPH_CHARACTERS = 60
_HEADING_WORDS = range(2, 11)


class Stretch(NamedTuple):
    """Running text of one document, or of several in sequence if one is too short.

    Attributes:
        text: the text.
        starts: index in it at which each document's part begins.
        names: the documents' names.
    """

    text: str
    starts: list[int]
    names: list[str]

    def names_until(self, end: int) -> list[str]:
        """Names of the documents whose parts begin before this index."""
        return [name for name, start in zip(self.names, self.starts, strict=True) if start < end]


class Library:
    """All documents together.

    Args:
        documents: the documents.

    Attributes:
        num_documents: number of documents that have text.
        num_characters: number of characters of all of them.
        sha256: SHA-256 of all names and texts in order.

    Raises:
        DataError: there is no text at all.
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
        """Whether a word or number stands anywhere in the documents, ignoring case."""
        return word.casefold() in self._words

    def is_repeated(self, sentence: str) -> bool:
        """Whether a quotable sentence stands in the documents more than once."""
        return _key(sentence) in self._repeated

    def sample(self, num_characters: int) -> str:
        """The beginnings of documents from all over the library, to estimate characters per token."""
        chosen = self._documents[:: -(-self.num_documents // 32)]
        return "\n\n".join(document.text[: num_characters // len(chosen)] for document in chosen)

    def stretches(self, number: int, num_characters: int, rng: np.random.Generator) -> list[Stretch]:
        """Draws running texts that share no document.

        Each begins at a uniformly drawn position of all text, or earlier if its document has too little text after it;
        a document that is too short as a whole is continued with others.

        Args:
            number: number of texts.
            num_characters: length of each; shorter only if no document is left.
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
    """A hash that ignores punctuation, white space and case."""
    return hash(tuple(_WORD.findall(sentence.casefold())))


def place_near(text: str, point: int, low: int = 0, high: int | None = None) -> int:
    """The best index to cut a text or insert into it: after a paragraph, else after a line, a sentence or a word.

    Args:
        text: the text.
        point: the wanted index; indices before it are tried first, then those after it.
        low: minimum; indices very far from `point` are not considered either.
        high: maximum; the default is `point`.
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
    """The beginning of a text, at most this long; it ends inside a word only if words are not spaced."""
    if num_characters >= len(text) or text[num_characters].isspace():
        return text[:num_characters].rstrip()
    last_word = re.compile(r"\S*$").search(text, max(0, num_characters - _LONGEST_WORD), num_characters)
    assert last_word is not None  # The pattern also matches an empty word.
    whole = last_word.start() if text[last_word.start() - 1 : last_word.start()].isspace() else num_characters
    return text[:whole].rstrip()


class Quote(NamedTuple):
    """A part of a text that can be quoted.

    Attributes:
        text: its words, on one line with single spaces.
        start: index of its first character in the text.
        end: index after its last character.
    """

    text: str
    start: int
    end: int


def squeezed(text: str) -> str:
    """The text in lower case, with single spaces and none at its ends."""
    return " ".join(text.split()).casefold()


def sentences(text: str) -> Iterator[Quote]:
    """All pieces between sentence ends; `is_quotable` tells which are whole plain sentences."""
    for paragraph in _LINES.finditer(text):
        start, stop = paragraph.span()
        for gap in _BETWEEN_SENTENCES.finditer(text, start, stop):
            yield Quote(" ".join(text[start : gap.start()].split()), start, gap.start())
            start = gap.end()
        if start < stop:
            yield Quote(" ".join(text[start:stop].split()), start, stop)


def quotable_sentences(text: str) -> list[Quote]:
    """The whole plain sentences of a text."""
    return [sentence for sentence in sentences(text) if is_quotable(sentence.text)]


def is_quotable(sentence: str) -> bool:
    """Whether this is a whole plain sentence of 12 to 40 words (24 to 120 characters if words are not spaced)."""
    if not sentence or not sentence[0].isalpha() or sentence[0].islower() or sentence[-1] not in _ENDS:
        return False
    # It may be cut off at an abbreviation such as "e.g.".
    if "." in sentence[sentence.rfind(" ") + 1 : -1]:
        return False
    words = sentence.count(" ") + 1
    if words not in _SENTENCE_WORDS and not (words <= 2 and len(sentence) in _UNSPACED_CHARACTERS):
        return False
    prose = sum(character.isalpha() or character == " " for character in sentence)
    return prose >= _PROSE_SHARE * len(sentence) and not _NOT_PROSE.search(sentence)


def halves(sentence: str) -> tuple[str, str]:
    """A sentence's first half, and the rest with its leading space and without the final mark.

    A model may write that mark as one token with a closing quotation mark.
    """
    body = sentence.rstrip(_ENDS)
    words = body.split(" ")
    # Sentences of unspaced scripts are halved by characters.
    first = " ".join(words[: len(words) // 2]) if len(words) > 2 else body[: len(body) // 2]
    return first, body[len(first) :]


def headings(text: str) -> list[Quote]:
    """Short lines that look like the heading of the paragraph below them."""
    found = []
    for match in _HEADING.finditer(text):
        start = match.start("title")
        title, below = match["title"].rstrip(" ¶#"), match["below"].strip()
        letters = sum(character.isalpha() or character == " " for character in title)
        # No piece of a paragraph: the line above ends a sentence or is blank, and the one below begins one.
        above = text[max(0, match.start() - 2) : match.start()]
        if (
            title.count(" ") + 1 in _HEADING_WORDS
            and (title[0].isdigit() or title[0].isupper())
            and title[-1].isalnum()
            and letters >= 0.7 * len(title)
            and not _NOT_PROSE.search(title)
            and not (above[:1].isalnum() or above[:1] == ",")
            and len(below) >= _PARAGRAPH_CHARACTERS
            and not below.lstrip(_UNDERLINES)[:1].islower()
        ):
            found.append(Quote(" ".join(title.split()), start, start + len(title)))
    return found

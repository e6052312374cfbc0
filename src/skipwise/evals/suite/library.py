"""The user's documents as the questions need them: their language, running texts, and what can be quoted once."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from skipwise.data.documents import Document
from skipwise.data.language import language_of
from skipwise.errors import DataError
from skipwise.evals.languages import ENGLISH, LANGUAGES, Language, Told, tell_languages, warn_of_wording
from skipwise.evals.suite.prose import is_unspaced, margin_of, place_near, quotable_sentences, without_rulings

_WORD = re.compile(r"\w+")
_SAMPLE_DOCUMENTS = 32


class Stretch(NamedTuple):
    """Running text of one document, or of several in sequence if one is too short.

    Attributes:
        text: the text.
        starts: index in it at which each document's part begins.
        names: the documents' names.
        margin: `prose.margin_of` the first document.
    """

    text: str
    starts: list[int]
    names: list[str]
    margin: int | None

    def names_until(self, end: int) -> list[str]:
        """Names of the documents whose parts begin before this index."""
        return [name for name, start in zip(self.names, self.starts, strict=True) if start < end]


class Collection:
    """All documents, in a library for each language that much of their text is in.

    Args:
        documents: the documents.
        language: of all questions; None for that of the text that each is about.

    Attributes:
        libraries: that of the main language first, which also has the documents of languages without templates.
        num_documents: number of documents that have text.
        num_characters: number of characters of all of them.
        sha256: SHA-256 of all names and texts in order.
        shares: of the text by code of the language; None if that is simply the one of all questions, or one was chosen.

    Raises:
        DataError: there is no text at all.
    """

    def __init__(self, documents: Iterable[Document], language: Language | None = None) -> None:
        kept: list[Document] = []
        digest = hashlib.sha256()
        for document in documents:
            digest.update(f"{document.name}\0{document.text}\0".encode("utf-8", "surrogatepass"))
            if text := document.text.strip():
                kept.append(Document(name=document.name, text=text))
        if not kept:
            raise DataError("none of the documents has any text; give documents with text")
        told = Told(language) if language else tell_languages(document.text for document in _spread(kept))
        main = told.language
        shelves: dict[str, list[Document]] = {each.code: [] for each in (main, *told.others)}
        for document in kept:
            code = language_of(document.text) if told.others else None
            shelves[code if code in shelves else main.code].append(document)
        self.libraries = [Library(of_one, LANGUAGES[code]) for code, of_one in shelves.items() if of_one]
        self.num_documents = len(kept)
        self.num_characters = sum(library.num_characters for library in self.libraries)
        self.sha256 = digest.hexdigest()
        self.shares = told.shares if told.said else None
        if told.said:
            asked = f"questions are in {main.name}"
            if told.others:
                asked = f"each question is in the language of its text ({main.name} where that has no templates)"
            warn_of_wording(f"{told.said}; {asked}")


def _spread(documents: list[Document]) -> list[Document]:
    """Some documents from all over them."""
    return documents[:: -(-len(documents) // _SAMPLE_DOCUMENTS)]


class Library:
    """Documents that questions in one language are about.

    Args:
        documents: one or more documents with text.
        language: of the questions.

    Attributes:
        language: of the questions.
        num_documents: number of documents.
        num_characters: number of characters of all of them.
    """

    def __init__(self, documents: Sequence[Document], language: Language = ENGLISH) -> None:
        self._documents, self.language = list(documents), language
        if self.language is not ENGLISH:
            # English texts keep theirs, so that suites of earlier versions can be built again byte for byte.
            self._documents = [
                Document(name=document.name, text=without_rulings(document.text)) for document in self._documents
            ]
        # Known of whole documents, since a few lines do not show where lines break off.
        margins = [None if self.language is ENGLISH else margin_of(document.text) for document in self._documents]
        self._margins = {document.name: margin for document, margin in zip(self._documents, margins, strict=True)}
        self._words: set[str] = set()
        times: Counter[int] = Counter()
        for document, margin in zip(self._documents, margins, strict=True):
            self._words.update(_WORD.findall(document.text.casefold()))
            times.update(_key(quote.text) for quote in quotable_sentences(document.text, self.language, margin))
        self._repeated = {key for key, count in times.items() if count > 1}
        self._lengths = np.array([len(document.text) for document in self._documents], np.float64)
        self.num_documents = len(self._documents)
        self.num_characters = int(self._lengths.sum())

    def has_word(self, word: str) -> bool:
        """Whether a word or number stands anywhere in the documents.

        In other languages than English it may be a part of a word: Japanese writes no spaces, Korean writes particles
        at the end of a name.
        """
        if self.language is ENGLISH:
            return word.casefold() in self._words
        return any(word in document.text for document in self._documents)

    def is_own(self, quote: str) -> bool:
        """Whether a quote may be of the suite's language: documents often hold parts that nobody has translated."""
        if self.language is ENGLISH:
            return True
        return language_of(quote) in (None, self.language.code) if self.language.space else is_unspaced(quote)

    def is_repeated(self, sentence: str) -> bool:
        """Whether a quotable sentence stands in the documents more than once."""
        return _key(sentence) in self._repeated

    def sample(self, num_characters: int) -> str:
        """The beginnings of documents from all over the library, to estimate characters per token."""
        chosen = _spread(self._documents)
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
                    drawn_begin = min(int(rng.integers(len(document.text))), latest)
                    begin = place_near(document.text, drawn_begin, language=self.language)
                text += "\n\n" if text else ""
                starts.append(len(text))
                names.append(document.name)
                text += document.text[begin : begin + num_characters - len(text)]
            drawn.append(Stretch(text, starts, names, self._margins[names[0]] if names else None))
        return drawn


def _key(sentence: str) -> int:
    """A hash that ignores punctuation, white space and case."""
    return hash(tuple(_WORD.findall(sentence.casefold())))

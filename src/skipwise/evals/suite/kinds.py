"""The kinds of questions. A kind is a class here and an entry of `KINDS`."""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.library import (
    Library,
    Quote,
    cut,
    halves,
    headings,
    place_near,
    quotable_sentences,
    squeezed,
)

INSTRUCTION = "Read the text below. A question about it follows at its end.\n\n"
NUM_DEPTHS = 5
# A and I are also words, and O looks like a zero.
LABELS = "BCDEFGHJKLMNPQRSTUVWXYZ"

Scoring = Literal["contains", "begins", "likeliest"]
"""When an item counts: the output contains the answer, or begins with it, or it is the likeliest of the choices."""


class Place(NamedTuple):
    """The place of a question in a suite."""

    number: int
    """Number among the questions of its kind and length, over which depths and answers are balanced."""
    size: int
    """Characters of text that surely fit: what is asked about must stand in them."""
    most: int
    """Characters of text to draw."""
    labels: str
    """Letters for documents, which the suite's tokenizer writes in equally many tokens."""


class Kind:
    """Base of the kinds of questions.

    Attributes:
        name: name of the kind.
        asks: what is asked, for people.
        scoring: when an item counts.
        chance: score of a guesser who knows the answers on offer and has not read the text.
        num_texts: number of running texts in the context. Each is one document, or several if one is too short; at
            least as many documents are needed.
    """

    name: ClassVar[str]
    asks: ClassVar[str]
    scoring: ClassVar[Scoring]
    chance: ClassVar[float] = 0.0
    num_texts: ClassVar[int] = 1

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """Questions about text drawn from the library; none if the drawn text is unsuitable: draw again."""
        raise NotImplementedError


def stratum(number: int) -> tuple[float, float]:
    """The part of the text, as depths from and to, that question `number` is about."""
    part = number % NUM_DEPTHS
    return part / NUM_DEPTHS, (part + 1) / NUM_DEPTHS


_SENTENCES = (
    "The access code of the {name} store room is",
    "The last invoice of the {name} company carries the number",
    "The shipment for {name} is tracked under the number",
    "The emergency line of the {name} office has the number",
    "The serial number of the {name} pump is",
    "The land register lists the {name} estate under the number",
    "The archive keeps the {name} file on the shelf with the number",
    "The insurance policy of the {name} mill has the number",
)
_DECOYS = 3
_ONSETS, _VOWELS, _CODAS = (
    sounds.split() for sounds in ("b br d dr f g gr h k kr l m n p pr r s st t tr v z", "a e i o u", "k l m n r sk t x")
)


class Fact(Kind):
    """An invented name with an invented six-digit number, in one sentence somewhere in the text.

    Three more sentences of the same wording give other names other numbers, so finding a foreign sentence is not
    enough: the number must be that of the name. No name or number is a word of any document.
    """

    name = "fact"
    scoring = "contains"
    asks = "the number of an invented name, planted in the text beside three of other names"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; its fact stands in the stratum of its number."""
        (stretch,) = library.stretches(1, place.most, rng)
        begin = _SENTENCES[rng.integers(len(_SENTENCES))]
        names = unheard(library, lambda: _name(rng))
        numbers = unheard(library, lambda: str(rng.integers(100_000, 1_000_000)))
        openings = [begin.format(name=name) for name in names]
        low, high = stratum(place.number)
        # For each sentence: its depth, and the range of depths that it must stay in.
        places = [(rng.uniform(low, high), low, high), *((rng.random(), 0.0, 1.0) for _ in range(_DECOYS))]
        planted = [f"{opening} {number}." for opening, number in zip(openings, numbers, strict=True)]

        def assemble(num_characters: int) -> Passage:
            body = cut(stretch.text, num_characters)
            points = [place_near(body, *(int(depth * len(body)) for depth in depths)) for depths in places]
            depth = points[0] / max(1, len(body))
            # From the last to the first, so that earlier positions stay valid.
            for point, sentence in sorted(zip(points, planted, strict=True), reverse=True):
                gap = "\n" if body[:point].endswith("\n") else " "
                body = f"{body[:point]}{sentence}{gap}{body[point:]}"
            return Passage(f"{INSTRUCTION}{body}\n\n", depth, stretch.names_until(num_characters))

        question = f'One sentence of the text above is repeated here word for word:\n"{openings[0]}'
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {numbers[0]}",
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def _name(rng: np.random.Generator) -> str:
    syllables = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(3)]
    return ("".join(syllables) + str(rng.choice(_CODAS))).capitalize()


def unheard(library: Library, draw: Callable[[], str]) -> list[str]:
    """Distinct invented words that no document contains: the asked one and the decoys."""
    words: list[str] = []
    while len(words) <= _DECOYS:
        word = draw()
        if word not in words and not library.has_word(word):
            words.append(word)
    return words


# Shorter second halves are guessed too easily.
_SECOND_HALF_CHARACTERS = 25


class Continue(Kind):
    """The first half of a sentence of the text; how does it continue there?

    The sentence stands once in all documents, and neither of its halves stands elsewhere in the text. How much is
    guessed or memorized is measured: each question has a control, of kind `continue_control`, whose text lacks the
    sentence.
    """

    name = "continue"
    scoring = "begins"
    asks = "the second half of a sentence of the text, given the first"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """A question and its control; its sentence stands in the stratum of its number."""
        (stretch,) = library.stretches(1, place.most, rng)
        text = stretch.text
        size = min(place.size, len(text))
        low, high = (depth * size for depth in stratum(place.number))
        once = squeezed(text)
        candidates = [sentence for sentence in quotable_sentences(cut(text, size)) if low <= sentence.start < high]
        for index in rng.permutation(len(candidates)):
            sentence = candidates[index]
            first, second = halves(sentence.text)
            if (
                len(second) >= _SECOND_HALF_CHARACTERS
                and not library.is_repeated(sentence.text)
                and once.count(squeezed(first)) == once.count(squeezed(second)) == 1
            ):
                break
        else:
            return []

        without = text[: sentence.start] + text[sentence.end :].lstrip(" ")

        def passage(body: str, num_characters: int) -> Passage:
            body = cut(body, num_characters)
            depth = sentence.start / len(body)
            return Passage(f"{INSTRUCTION}{body}\n\n", depth, stretch.names_until(num_characters))

        question = f'One sentence of the text above is repeated here word for word:\n"{first}'
        return [
            Draft(
                kind=kind,
                question=question,
                answer=second,
                assemble=lambda num_characters, body=body: passage(body, num_characters),
                least=min(size, len(body)),
                most=len(body),
            )
            for kind, body in ((self.name, text), (f"{self.name}_control", without))
        ]


_LABELS = ("A", "B")
_SECTION_CHARACTERS = 800
_MOST_SECTIONS = 8


class Order(Kind):
    """Two headings, or sentences if there are no headings, of different sections; which comes first?

    The running text is split into up to eight sections in random order. Otherwise numbered headings, or knowledge of
    the document, would give the order away.
    """

    name = "order"
    chance = 0.5
    scoring = "likeliest"
    asks = "which of two lines comes first in a text of shuffled sections"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; the right answers of even and odd numbers differ."""
        (stretch,) = library.stretches(1, place.most, rng)
        number = max(2, min(_MOST_SECTIONS, place.size // _SECTION_CHARACTERS))
        edges = [place_near(stretch.text, len(stretch.text) * k // number) for k in range(number)]
        edges.append(len(stretch.text))
        origin = [int(index) for index in rng.permutation(number)]
        sections = [stretch.text[edges[index] : edges[index + 1]] for index in origin]
        asked = _landmarks(sections, place.size // number, rng)
        if asked is None:
            return []
        what, first, second = asked
        right = place.number % 2
        shown = (first, second) if right == 0 else (second, first)

        def assemble(num_characters: int) -> Passage:
            share = num_characters // number
            body = "\n\n".join(cut(section, share).strip() for section in sections)
            ends = [min(edges[index] + share, edges[index + 1]) for index in range(number)]
            names = [
                name
                for name, (start, end) in zip(
                    stretch.names, pairwise([*stretch.starts, len(stretch.text)]), strict=True
                )
                if any(edges[index] < end and start < ends[index] for index in range(number))
            ]
            return Passage(f"{INSTRUCTION}{body}\n\n", None, names)

        lines = "".join(f"{label}: {quote}\n" for label, quote in zip(_LABELS, shown, strict=True))
        question = (
            f"Two {what} of the text above, in no particular order:\n{lines}"
            "Of these two, the one that comes first in the text is"
        )
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {_LABELS[right]}",
                choices=[f" {label}" for label in _LABELS],
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def _landmarks(sections: list[str], size: int, rng: np.random.Generator) -> tuple[str, str, str] | None:
    """Two quotes of different sections, each once in the text and in its order, preceded by what they are."""
    once = squeezed("\n\n".join(sections))
    for what, find in (("lines", headings), ("sentences", quotable_sentences)):
        found = [_standing_once(find(cut(section, size)), once) for section in sections]
        usable = [index for index, quotes in enumerate(found) if quotes]
        if len(usable) >= 2:
            earlier, later = sorted(int(index) for index in rng.choice(usable, 2, replace=False))
            first, second = (found[index][rng.integers(len(found[index]))] for index in (earlier, later))
            return what, first, second
    return None


def _standing_once(quotes: list[Quote], once: str) -> list[str]:
    return [quote.text for quote in quotes if once.count(squeezed(quote.text)) == 1]


_NUM_DOCUMENTS = 4


class WhichDocument(Kind):
    """A sentence of one of four documents, each labelled with a random letter; which document is it from?

    The sentence stands once in all documents. Letters are drawn for each question, and the right document is the
    first, second, third and fourth equally often.
    """

    name = "which_document"
    chance = 1 / _NUM_DOCUMENTS
    num_texts = _NUM_DOCUMENTS
    scoring = "likeliest"
    asks = f"which of {_NUM_DOCUMENTS} documents, each under a letter, a sentence is from"

    def drafts(self, library: Library, place: Place, rng: np.random.Generator) -> list[Draft]:
        """One question; the position of the right document rotates with its number."""
        stretches = library.stretches(_NUM_DOCUMENTS, place.most // _NUM_DOCUMENTS, rng)
        once = squeezed("\n\n".join(stretch.text for stretch in stretches))
        free = [label for label in place.labels if f"document {label.casefold()}" not in once]
        if len(free) < _NUM_DOCUMENTS:
            return []
        labels = [str(label) for label in rng.choice(free, _NUM_DOCUMENTS, replace=False)]
        right = place.number % _NUM_DOCUMENTS
        candidates = [
            sentence.text
            for sentence in quotable_sentences(cut(stretches[right].text, place.size // _NUM_DOCUMENTS))
            if not library.is_repeated(sentence.text) and once.count(squeezed(sentence.text)) == 1
        ]
        if not candidates:
            return []
        sentence = candidates[rng.integers(len(candidates))]

        def assemble(num_characters: int) -> Passage:
            share = num_characters // _NUM_DOCUMENTS
            parts = [
                f"Document {label}\n\n{cut(stretch.text, share)}\n\n"
                for label, stretch in zip(labels, stretches, strict=True)
            ]
            names = [name for stretch in stretches for name in stretch.names_until(share)]
            return Passage(INSTRUCTION + "".join(parts), None, names)

        *some, last = sorted(labels)
        question = (
            f'This sentence stands in one of the documents {", ".join(some)} and {last} above:\n"{sentence}"\n'
            "It stands in Document"
        )
        shortest = _NUM_DOCUMENTS * min(len(stretch.text) for stretch in stretches)
        return [
            Draft(
                kind=self.name,
                question=question,
                answer=f" {labels[right]}",
                choices=[f" {label}" for label in sorted(labels)],
                assemble=assemble,
                least=min(place.size, shortest),
                most=shortest,
            )
        ]


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Fact(), Continue(), Order(), WhichDocument())}

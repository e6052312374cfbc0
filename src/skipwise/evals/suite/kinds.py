"""The kinds of questions. A kind is a class here and an entry of `KINDS`."""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from skipwise.evals.suite.item import Draft, Passage
from skipwise.evals.suite.library import Library
from skipwise.evals.suite.prose import (
    Quote,
    cut,
    halves,
    headings,
    is_unspaced,
    place_near,
    quotable_sentences,
    squeezed,
)

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


_DECOYS = 3


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
        language, words = library.language, library.language.suite
        (stretch,) = library.stretches(1, place.most, rng)
        template = words.facts[rng.integers(len(words.facts))]
        names = unheard(library, lambda: "".join(str(rng.choice(part.split())) for part in words.name).capitalize())
        numbers = unheard(library, lambda: str(rng.integers(100_000, 1_000_000)))
        facts = [
            language.planted(template, name=name, number=number) for name, number in zip(names, numbers, strict=True)
        ]
        low, high = stratum(place.number)
        # For each sentence: its depth, and the range of depths that it must stay in.
        places = [(rng.uniform(low, high), low, high), *((rng.random(), 0.0, 1.0) for _ in range(_DECOYS))]

        def assemble(num_characters: int) -> Passage:
            body = cut(stretch.text, num_characters, language)
            points = [
                place_near(body, *(int(depth * len(body)) for depth in depths), language=language) for depths in places
            ]
            depth = points[0] / max(1, len(body))
            # From the last to the first, so that earlier positions stay valid.
            for point, sentence in sorted(zip(points, (fact.sentence for fact in facts), strict=True), reverse=True):
                gap = "\n" if body[:point].endswith("\n") else language.space
                body = f"{body[:point]}{sentence}{gap}{body[point:]}"
            return Passage(f"{words.instruction}{body}\n\n", depth, stretch.names_until(num_characters))

        return [
            Draft(
                kind=self.name,
                question=words.repeated.format(beginning=facts[0].opening),
                answer=facts[0].answer,
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def unheard(library: Library, draw: Callable[[], str]) -> list[str]:
    """Distinct invented words that no document contains: the asked one and the decoys."""
    words: list[str] = []
    while len(words) <= _DECOYS:
        word = draw()
        if word not in words and not library.has_word(word):
            words.append(word)
    return words


# Shorter second halves are guessed too easily.
_SECOND_HALF_CHARACTERS, _UNSPACED_HALF_CHARACTERS = 25, 10


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
        quotable = quotable_sentences(cut(text, size, library.language), library.language, stretch.margin)
        candidates = [sentence for sentence in quotable if low <= sentence.start < high]
        for index in rng.permutation(len(candidates)):
            sentence = candidates[index]
            first, second = halves(sentence.text)
            if (
                len(second) >= (_UNSPACED_HALF_CHARACTERS if is_unspaced(second) else _SECOND_HALF_CHARACTERS)
                and not library.is_repeated(sentence.text)
                and library.is_own(sentence.text)
                and once.count(squeezed(first)) == once.count(squeezed(second)) == 1
            ):
                break
        else:
            return []

        without = text[: sentence.start] + text[sentence.end :].lstrip(" ")

        def passage(body: str, num_characters: int) -> Passage:
            body = cut(body, num_characters, library.language)
            depth = sentence.start / len(body)
            instruction = library.language.suite.instruction
            return Passage(f"{instruction}{body}\n\n", depth, stretch.names_until(num_characters))

        return [
            Draft(
                kind=kind,
                question=library.language.suite.repeated.format(beginning=first),
                answer=second,
                assemble=lambda num_characters, body=body: passage(body, num_characters),
                least=min(size, len(body)),
                most=len(body),
            )
            for kind, body in ((self.name, text), (f"{self.name}_control", without))
        ]


_LABELS = ("A", "B")
_SECTION_CHARACTERS, _UNSPACED_SECTION_CHARACTERS = 800, 300
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
        language, words = library.language, library.language.suite
        (stretch,) = library.stretches(1, place.most, rng)
        section_characters = _SECTION_CHARACTERS if language.space else _UNSPACED_SECTION_CHARACTERS
        number = max(2, min(_MOST_SECTIONS, place.size // section_characters))
        edges = [place_near(stretch.text, len(stretch.text) * k // number, language=language) for k in range(number)]
        edges.append(len(stretch.text))
        origin = [int(index) for index in rng.permutation(number)]
        sections = [stretch.text[edges[index] : edges[index + 1]] for index in origin]
        asked = _landmarks(sections, place.size // number, stretch.margin, library, rng)
        if asked is None:
            return []
        template, first, second = asked
        right = place.number % 2
        shown = (first, second) if right == 0 else (second, first)

        def assemble(num_characters: int) -> Passage:
            share = num_characters // number
            body = "\n\n".join(cut(section, share, language).strip() for section in sections)
            ends = [min(edges[index] + share, edges[index + 1]) for index in range(number)]
            names = [
                name
                for name, (start, end) in zip(
                    stretch.names, pairwise([*stretch.starts, len(stretch.text)]), strict=True
                )
                if any(edges[index] < end and start < ends[index] for index in range(number))
            ]
            return Passage(f"{words.instruction}{body}\n\n", None, names)

        lines = "".join(f"{label}: {quote}\n" for label, quote in zip(_LABELS, shown, strict=True))
        return [
            Draft(
                kind=self.name,
                question=template.format(lines=lines),
                answer=language.answer(_LABELS[right]),
                choices=[language.answer(label) for label in _LABELS],
                assemble=assemble,
                least=min(place.size, len(stretch.text)),
                most=len(stretch.text),
            )
        ]


def _landmarks(
    sections: list[str], size: int, margin: int | None, library: Library, rng: np.random.Generator
) -> tuple[str, str, str] | None:
    """Two quotes of different sections, each once in the text and in its order, preceded by the question's template."""
    once = squeezed("\n\n".join(sections))
    words = library.language.suite
    for template, find in ((words.order_lines, headings), (words.order_sentences, quotable_sentences)):
        found = [
            _standing_once(find(cut(section, size, library.language), library.language, margin), once)
            for section in sections
        ]
        usable = [index for index, quotes in enumerate(found) if quotes]
        if len(usable) >= 2:
            earlier, later = sorted(int(index) for index in rng.choice(usable, 2, replace=False))
            first, second = (_own(found[index], library, rng) for index in (earlier, later))
            if first and second:
                return template, first, second
    return None


def _standing_once(quotes: list[Quote], once: str) -> list[str]:
    return [quote.text for quote in quotes if once.count(squeezed(quote.text)) == 1]


def _own(quotes: list[str], library: Library, rng: np.random.Generator) -> str | None:
    """One of the quotes in the suite's language, drawn; None if there is none."""
    left = list(quotes)
    while left:
        if library.is_own(quote := left.pop(int(rng.integers(len(left))))):
            return quote
    return None


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
        language, words = library.language, library.language.suite
        free = [label for label in place.labels if words.document.format(label=label).casefold() not in once]
        if len(free) < _NUM_DOCUMENTS:
            return []
        labels = [str(label) for label in rng.choice(free, _NUM_DOCUMENTS, replace=False)]
        right = place.number % _NUM_DOCUMENTS
        read = cut(stretches[right].text, place.size // _NUM_DOCUMENTS, language)
        candidates = [
            sentence.text
            for sentence in quotable_sentences(read, language, stretches[right].margin)
            if not library.is_repeated(sentence.text) and once.count(squeezed(sentence.text)) == 1
        ]
        if (sentence := _own(candidates, library, rng)) is None:
            return []

        def assemble(num_characters: int) -> Passage:
            share = num_characters // _NUM_DOCUMENTS
            parts = [
                f"{words.document.format(label=label)}\n\n{cut(stretch.text, share, language)}\n\n"
                for label, stretch in zip(labels, stretches, strict=True)
            ]
            names = [name for stretch in stretches for name in stretch.names_until(share)]
            return Passage(words.instruction + "".join(parts), None, names)

        shortest = _NUM_DOCUMENTS * min(len(stretch.text) for stretch in stretches)
        return [
            Draft(
                kind=self.name,
                question=words.which.format(labels=language.listed(sorted(labels)), sentence=sentence),
                answer=language.answer(labels[right]),
                choices=[language.answer(label) for label in sorted(labels)],
                assemble=assemble,
                least=min(place.size, shortest),
                most=shortest,
            )
        ]


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Fact(), Continue(), Order(), WhichDocument())}

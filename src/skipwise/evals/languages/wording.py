"""What a language is to evaluations: the templates that each has to give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyWords:
    """Templates of passkey prompts.

    Attributes:
        instruction: what comes first.
        filler: sentences that say nothing, with which other tasks top up their prompts, too.
        needle: states the `{key}` twice.
        question: what the key follows. Its end stands nowhere else in it, since a model copies what followed there.
    """

    instruction: str
    filler: str
    needle: str
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleWords:
    """Templates of needles: lines that give the `{value}` of a `{key}`.

    Attributes:
        instruction: what comes first.
        needle: gives the only value of a key.
        needle_of_several: gives one of several values.
        question: what the value of one key follows.
        question_values: what all `{count}` values of one key follow.
        question_keys: what the values of several `{keys}` follow, in their order.
        key: makes a key of an `{adjective}` and a `{noun}`.
        adjectives: separated by spaces, in the form that `key` needs.
        nouns: likewise.
    """

    instruction: str
    needle: str
    needle_of_several: str
    question: str
    question_values: str
    question_keys: str
    key: str
    adjectives: str
    nouns: str

    @property
    def num_keys(self) -> int:
        """Number of distinct keys."""
        return len(self.adjectives.split()) * len(self.nouns.split())

    def key_of(self, number: int) -> str:
        """The key of a number below `num_keys`."""
        adjectives, nouns = self.adjectives.split(), self.nouns.split()
        return self.key.format(adjective=adjectives[number // len(nouns)], noun=nouns[number % len(nouns)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteWords:
    """Templates of the questions of a suite.

    Attributes:
        instruction: what comes first.
        repeated: says that a sentence of the text is repeated; the `{beginning}` of the sentence is its end.
        facts: sentences that give a `{number}` to a `{name}`.
        name: sounds of invented names, one list for each place.
        document: the heading of a document with a `{label}`.
        which: says that a `{sentence}` is of one of the documents with some `{labels}`; the label of that follows.
        order_lines: asks which of two lines of the text, written in `{lines}`, comes first.
        order_sentences: the same of sentences.
    """

    instruction: str
    repeated: str
    facts: tuple[str, ...]
    name: tuple[str, ...]
    document: str
    which: str
    order_lines: str
    order_sentences: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedWords:
    """Templates that every reasoning task has.

    Attributes:
        instruction: what comes first.
        question: what is asked after the text.
        prefix: the words that the answer continues. Their end stands nowhere else in the question.
    """

    instruction: str
    question: str
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationWords(AskedWords):
    """Templates of facts that share no content word with the question: who has been to the `{place}`?

    Attributes:
        fact: says that a person with a `{name}` lives beside a `{landmark}`.
        landmarks: a landmark and the place where it is, each in the form that its template needs.
    """

    fact: str
    landmarks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikeWords(AskedWords):
    """Templates of asks that are alike: which value was given for a `{key}` the `{ordinal}` time?

    Attributes:
        exchange: an ask for a `{key}` of `NeedleWords`, and the `{value}` that is given.
        ordinals: from the first on, in the form that `question` needs.
    """

    exchange: str
    ordinals: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainWords(AskedWords):
    """Templates of a thing that goes from hand to hand: where is the `{thing}`?

    Attributes:
        takes: says that a person with a `{name}` takes a `{thing}`.
        gives: says that a person gives it to an `{other}`.
        stays: says that a person is in a `{place}`.
        things: in the form that all templates need.
        places: likewise; the last word of each says which place it is.
    """

    takes: str
    gives: str
    stays: str
    things: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotWords(AskedWords):
    """Templates of many-shot classification: to which number do these `{words}` belong?

    Attributes:
        classes: words of each class, separated by spaces.
    """

    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningWords:
    """Templates of the reasoning tasks.

    Attributes:
        names: of people, separated by spaces; none begins with another.
        associations: facts that share no word with the question.
        alike: the i-th of several alike asks.
        walks: a walk from a number to another, from `{start}` on for so many `{steps}`.
        chains: a thing that goes from hand to hand.
        shots: many-shot classification.
    """

    names: str
    associations: AssociationWords
    alike: AlikeWords
    walks: AskedWords
    chains: ChainWords
    shots: ShotWords


class Planted(NamedTuple):
    """A sentence with an answer in it.

    Attributes:
        sentence: all of it.
        opening: what comes before the answer, without a space at its end.
        answer: with the space before it, if the language writes one.
    """

    sentence: str
    opening: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Everything that evaluations say in one language.

    Attributes:
        code: of ISO 639-1.
        name: in English.
        passkey: templates of passkey prompts.
        needles: templates of needles.
        suite: templates of suites.
        reasoning: templates of the reasoning tasks.
        conjunction: what stands before the last entry of a list.
        comma: what stands between the others.
        space: what stands between words and between sentences; empty in scripts without spaces.
        abbreviations: before a full stop that ends no sentence, separated by spaces.
        sentence_words: numbers of words of sentences that are quoted; not used in scripts without spaces.
    """

    code: str
    name: str
    passkey: PasskeyWords
    needles: NeedleWords
    suite: SuiteWords
    reasoning: ReasoningWords
    conjunction: str
    comma: str = ", "
    space: str = " "
    abbreviations: str = ""
    sentence_words: range = range(12, 41)

    def listed(self, entries: Sequence[str]) -> str:
        """Two or more entries as a list within a sentence."""
        *some, last = entries
        return self.comma.join(some) + self.conjunction + last

    def planted(self, template: str, **words: str) -> Planted:
        """A sentence of `SuiteWords.facts`; its `{number}` is the answer."""
        before, after = template.split("{number}")
        opening, answer = before.format(**words).rstrip(" "), self.answer(words["number"])
        return Planted(f"{opening}{answer}{after}", opening, answer)

    def answer(self, text: str) -> str:
        """An answer as it follows a question."""
        return f"{self.space}{text}"


_LATIN_SYLLABLE = ("b br d dr f g gr h k kr l m n p pr r s st t tr v z", "a e i o u")
LATIN_NAME = (*_LATIN_SYLLABLE * 3, "k l m n r sk t x")
"""Sounds of invented names in Latin letters, as in `SuiteWords.name`."""

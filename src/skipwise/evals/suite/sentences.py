"""Sentences and headings of plain text: what can be quoted so that a reader finds it again."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_SENTENCE_WORDS = range(12, 41)
_UNSPACED_CHARACTERS = range(24, 121)
_ENDS = ".!?。！？"  # noqa: RUF001 - full-width marks end sentences, too
# A line goes on in the next where that begins in the middle of a sentence; a blank line ends everything.
_LINES = re.compile(r"(?:[^\n]|\n(?=[ \t]*[^\W\dA-Z_]))+")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")  # noqa: RUF001
_NOT_PROSE = re.compile(r"""["“”„«»|<>{}\[\]=_\\/¶*`#~^]""")
# Code and tables are not quoted: nearly all of a sentence is letters and spaces.
_PROSE_SHARE = 0.9
# The line below may be an underline.
_HEADING = re.compile(r"(?m)^(?:#{1,6} +)?(?P<title>\S[^\n]{2,78}\S)[ ¶#]*$(?=\n(?P<below>[\s=~*^-]*[^\n]*))")
_UNDERLINES = "=~*^- \n"
_PARAGRAPH_CHARACTERS = 60
_HEADING_WORDS = range(2, 11)


class Quote(NamedTuple):
    """A stretch of a text that can be quoted.

    Attributes:
        text: what it says, on one line with single spaces.
        start: index of its first character in the text it is from.
        end: index after its last.
    """

    text: str
    start: int
    end: int


def squeezed(text: str) -> str:
    """The text with every run of white space as one space and without any at its ends, in lower case."""
    return " ".join(text.split()).casefold()


def sentences(text: str) -> Iterator[Quote]:
    """All pieces between sentence ends, whatever they are; `is_quotable` says which are whole plain sentences."""
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
    """Whether this is a whole plain sentence of 12 to 40 words (24 to 120 characters where words are not spaced)."""
    if not sentence or not sentence[0].isalpha() or sentence[0].islower() or sentence[-1] not in _ENDS:
        return False
    # A list breaks off sentences at "e.g." and the like.
    if "." in sentence[sentence.rfind(" ") + 1 : -1]:
        return False
    words = sentence.count(" ") + 1
    if words not in _SENTENCE_WORDS and not (words <= 2 and len(sentence) in _UNSPACED_CHARACTERS):
        return False
    prose = sum(character.isalpha() or character == " " for character in sentence)
    return prose >= _PROSE_SHARE * len(sentence) and not _NOT_PROSE.search(sentence)


def halves(sentence: str) -> tuple[str, str]:
    """A sentence's first half and what follows it, with the space between but without the mark at the end.

    The mark is left off because a model may write it as one token with a closing quotation mark.
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
        # The line above ends a sentence or is blank, and the one below begins one: this is no piece of a paragraph.
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

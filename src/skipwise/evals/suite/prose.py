"""Prose: the sentences and headings of a text that can be quoted, and where to cut a text.

Words are counted where a script has spaces, characters where it has none (Chinese, Japanese, Thai and others). A line
that a text breaks off at its margin continues in the next one. In English, a line counts as continued if the next one
begins in lower case, as suites of earlier versions did, so that they can be built again byte for byte; in other
languages if it reaches the margin that many lines break off at, since German nouns have capitals and Japanese has none.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from skipwise.evals.languages import ENGLISH, Language
from skipwise.evals.prompts import in_half_width

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
# As browsers do (CSS Text Level 3, 4.1.3): a line break between two such characters is no space.
_NO_SPACE = re.compile(rf"(?<=[{_UNSPACED}])\s*\n\s*(?=[{_UNSPACED}])")
_SPACE_BESIDE = re.compile(rf"(?<=[{_UNSPACED}])\s+|\s+(?=[{_UNSPACED}])")
_WIDE_ENDS = "。！？"
_ENDS = f".!?{_WIDE_ENDS}"
_BETWEEN_SENTENCES = re.compile(rf"(?<=[.!?])\s+|(?<=[{_WIDE_ENDS}])\s*")
_SENTENCE_CHARACTERS = range(24, 121)
_BRACKETS = ("（）", "()")
_NOT_PROSE = re.compile(r"""["“”„«»「」『』|<>{}\[\]=_\\/¶*`#~^]""")
# Minimum share of letters and spaces in a sentence: code and tables are not quoted.
_PROSE_SHARE = 0.9

# The line below a heading may be an underline.
_HEADING = re.compile(r"(?m)^(?:#{1,6} +)?(?P<title>\S[^\n]{2,78}\S)[ ¶#]*$(?=\n(?P<below>[\s=~*^-]*[^\n]*))")
_UNDERLINES = "=~*^- \n"
_HEADING_WORDS, _HEADING_CHARACTERS = range(2, 11), range(4, 26)
_PARAGRAPH_CHARACTERS, _UNSPACED_PARAGRAPH_CHARACTERS = 60, 24

_ENGLISH_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?=[ \t]*[^\W\dA-Z_]))+")
_BLOCK = re.compile(r"(?:[^\n]*\S[^\n]*\n?)+")
_LINE = re.compile(r"[^\n]+\n?")
_ITEM = re.compile(r"\s*(?:[-–—*+•・·●○◆■□|#>]|\d+[.)] )")
# Characters that take two columns.
_WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60\uffe0-\uffe6\U00020000-\U0003fffd]"
)
_FIRST_WORD = re.compile(rf"^\s*({_WIDE.pattern}|(?:(?!{_WIDE.pattern})\S)+)")
# Text is wrapped if of all lines with at least so many columns, this share and number breaks off near the same margin.
_WRAPPED_COLUMNS, _WRAPPED_SHARE, _WRAPPED_LINES, _RAGGED_COLUMNS = 40, 0.4, 4, 8
# A line in Chinese or Japanese may end before the next character does not fit, as some marks begin no line.
_WIDE_SLACK_COLUMNS = 6

# A line of a table that is nothing but ruling.
_RULING = re.compile(r"(?m)^[^\S\n]*(?:[-=_+|:~#.\u2010-\u2015\u2500-\u257f\u30fc\uff0d\uff1d\uff5c][^\S\n]*){3,}$\n?")

# Where a text may be cut, in order of preference.
_ENGLISH_BREAKS = ("\n\n", "\n", ". ", " ")
_BREAKS = ("\n\n", ".\n", "\n", ". ", " ")
_UNSPACED_BREAKS = ("\n\n", "。\n", "。", ".\n", "\n", " ")
_REACH_CHARACTERS, _UNSPACED_REACH_CHARACTERS = 2000, 500
_LONGEST_WORD = 40
_LAST_WORD, _LAST_SPACED_WORD = re.compile(r"\S*$"), re.compile(rf"[^\s{_UNSPACED}]*$")


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


def on_one_line(text: str) -> str:
    """The text with single spaces instead of other white space, and none at its ends or inside words."""
    return " ".join(_NO_SPACE.sub("", text).split())


def squeezed(text: str) -> str:
    """The text on one line in lower case, to compare what is said."""
    return on_one_line(text).casefold()


def spelled_alike(text: str) -> str:
    """The text `squeezed`, with one spelling of what unspaced scripts write in several.

    These are full-width characters, and a space or none beside a word in Latin letters.
    """
    return squeezed(in_half_width(_SPACE_BESIDE.sub("", text)))


def is_unspaced(text: str) -> bool:
    """Whether most letters of a text are of scripts that write no spaces between words."""
    return 2 * len(_UNSPACED_CHARACTER.findall(text)) > sum(map(str.isalpha, text))


def without_rulings(text: str) -> str:
    """The text without the rulings of tables, which take many tokens and say nothing."""
    return _RULING.sub("", text)


def paragraphs(text: str, language: Language, margin: int | None = None) -> Iterator[tuple[int, int]]:
    """Where each paragraph begins and ends: a line, with those that it continues in.

    Args:
        text: the text.
        language: its language.
        margin: `margin_of` the whole document; not used in English.
    """
    if language is ENGLISH:
        yield from (match.span() for match in _ENGLISH_PARAGRAPH.finditer(text))
        return
    for block in _BLOCK.finditer(text):
        lines = _LINE.findall(block[0])
        start = end = block.start()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            end += len(line)
            if not _is_broken_off(line, following, margin):
                yield start, start + len(text[start:end].rstrip())
                start = end


def _is_broken_off(line: str, following: str, margin: int | None) -> bool:
    """Whether the first word of the following line would not have fitted before the margin."""
    if margin is None or not following or _ITEM.match(following) or (used := _columns(line)) > margin:
        return False
    (word,) = _FIRST_WORD.findall(following)
    return used + len(word) + 1 > margin if not _WIDE.match(word) else used + _WIDE_SLACK_COLUMNS > margin


def _columns(line: str) -> int:
    """Columns that a line takes with its indentation; characters of East Asia take two."""
    return len(line.rstrip()) + len(_WIDE.findall(line))


def margin_of(text: str) -> int | None:
    """The column that lines of a text break off at; None if they are not broken off, but each is a paragraph."""
    long = [(_columns(line), line.rstrip()) for line in _LINE.findall(text) if _columns(line) >= _WRAPPED_COLUMNS]
    broken = np.sort([width for width, line in long if line[-1] not in _ENDS])
    # For each width, the number of lines that break off at most so many columns before it.
    near = np.arange(1, len(broken) + 1) - np.searchsorted(broken, broken - _RAGGED_COLUMNS, side="right")
    if not len(near) or near.max() < max(_WRAPPED_LINES, _WRAPPED_SHARE * len(long)):
        return None
    return int(broken[near.argmax()])


def sentences(text: str, language: Language = ENGLISH, margin: int | None = None) -> Iterator[Quote]:
    """All pieces between sentence ends; `is_quotable` tells which are whole plain sentences."""
    for start, stop in paragraphs(text, language, margin):
        for gap in _BETWEEN_SENTENCES.finditer(text, start, stop):
            if language is not ENGLISH and _is_abbreviated(
                text[start : gap.start()], text[gap.end() : gap.end() + 1], language
            ):
                continue
            yield Quote(on_one_line(text[start : gap.start()]), start, gap.start())
            start = gap.end()
        if start < stop:
            yield Quote(on_one_line(text[start:stop]), start, stop)


def _is_abbreviated(before: str, following: str, language: Language) -> bool:
    """Whether the mark at the end is the full stop of an abbreviation, as in "bzw. andere"."""
    if before[-1:] in _WIDE_ENDS:
        return False
    return following.islower() or before[before.rfind(" ") + 1 : -1] in language.abbreviations.split()


def quotable_sentences(text: str, language: Language = ENGLISH, margin: int | None = None) -> list[Quote]:
    """The whole plain sentences of a text."""
    return [sentence for sentence in sentences(text, language, margin) if is_quotable(sentence.text, language)]


def is_quotable(sentence: str, language: Language = ENGLISH) -> bool:
    """Whether this is a whole plain sentence of `sentence_words` (24 to 120 characters if words are not spaced)."""
    if not sentence or not sentence[0].isalpha() or sentence[0].islower() or sentence[-1] not in _ENDS:
        return False
    # It may be cut off at an abbreviation such as "e.g."; in other languages also "z. B.".
    last_word = sentence[sentence.rfind(" ") + 1 : -1]
    if "." in last_word or (language is not ENGLISH and len(last_word) == 1 and last_word.isalpha()):
        return False
    words, unspaced = sentence.count(" ") + 1, is_unspaced(sentence)
    # In English texts, suites of earlier versions took every sentence of one or two words for an unspaced one.
    by_characters = unspaced or (language is ENGLISH and words <= 2)
    if not (len(sentence) in _SENTENCE_CHARACTERS if by_characters else words in language.sentence_words):
        return False
    # Without spaces, a sentence also ends at a mark inside brackets.
    if unspaced and any(sentence.count(opening) != sentence.count(closing) for opening, closing in _BRACKETS):
        return False
    prose = sum(character.isalpha() or character == " " for character in sentence)
    return prose >= _PROSE_SHARE * len(sentence) and not _NOT_PROSE.search(sentence)


# Where a word surely begins without a space: after a comma, after hiragana, and at either end of Latin letters.
_WORD_BEGINS = re.compile(
    r"(?<=[、，；])|(?<=[\u3041-\u309f])(?=[^\u3041-\u309f\s、。])"
    r"|(?<=[A-Za-z0-9]) ?(?=[^\x00-\x7f、。，])|(?<=[^\x00-\x7f、。，]) ?(?=[A-Za-z0-9])"
)


def halves(sentence: str) -> tuple[str, str]:
    """A sentence's first half, and the rest with its leading space and without the final mark.

    A model may write that mark as one token with a closing quotation mark.
    """
    body = sentence.rstrip(_ENDS)
    words, unspaced = body.split(" "), is_unspaced(body)
    if len(words) > 2 and not unspaced:
        first = " ".join(words[: len(words) // 2])
    else:
        middle = len(body) // 2
        begins = [found.start() for found in _WORD_BEGINS.finditer(body)] if unspaced else []
        near = [begin for begin in begins if abs(begin - middle) <= 0.3 * len(body)]
        first = body[: min(near, key=lambda begin: abs(begin - middle), default=middle)].rstrip()
    return first, body[len(first) :]


def headings(text: str, language: Language = ENGLISH, margin: int | None = None) -> list[Quote]:
    """Short lines that look like the heading of the paragraph below them."""
    found = []
    whole = None if language is ENGLISH else set(paragraphs(text, language, margin))
    for match in _HEADING.finditer(text):
        start = match.start("title")
        title, below = match["title"].rstrip(" ¶#"), match["below"].strip()
        # No piece of a paragraph: the line above ends a sentence or is blank, and the one below begins one.
        above = text[max(0, match.start() - 2) : match.start()]
        if (
            _is_heading(title)
            and not (above[:1].isalnum() or above[:1] == ",")
            and len(below) >= (_UNSPACED_PARAGRAPH_CHARACTERS if is_unspaced(below) else _PARAGRAPH_CHARACTERS)
            and not below.lstrip(_UNDERLINES)[:1].islower()
            and (whole is None or (match.start(), match.start() + len(match[0].rstrip())) in whole)
        ):
            found.append(Quote(on_one_line(title), start, start + len(title)))
    return found


def _is_heading(title: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in title)
    if is_unspaced(title):
        fits = len(title) in _HEADING_CHARACTERS and title[0].isalnum()
    else:
        fits = title.count(" ") + 1 in _HEADING_WORDS and (title[0].isdigit() or title[0].isupper())
    return fits and title[-1].isalnum() and letters >= 0.7 * len(title) and not _NOT_PROSE.search(title)


def place_near(text: str, point: int, low: int = 0, high: int | None = None, language: Language = ENGLISH) -> int:
    """The best index to cut a text or insert into it: after a paragraph, else after a line, a sentence or a word.

    Args:
        text: the text.
        point: the wanted index; indices before it are tried first, then those after it.
        low: minimum; indices very far from `point` are not considered either.
        high: maximum; the default is `point`.
        language: of the text.
    """
    if language.space:
        marks, reach = _ENGLISH_BREAKS if language is ENGLISH else _BREAKS, _REACH_CHARACTERS
    else:
        marks, reach = _UNSPACED_BREAKS, _UNSPACED_REACH_CHARACTERS
    low = max(low, point - reach)
    high = point if high is None else min(high, point + reach)
    for mark in marks:
        found = text.rfind(mark, low, point)
        if found < 0:
            found = text.find(mark, point, high)
        if found >= 0:
            return found + len(mark)
    return point


def cut(text: str, num_characters: int, language: Language = ENGLISH) -> str:
    """The beginning of a text, at most this long; it ends inside a word only if words are not spaced."""
    if num_characters >= len(text) or text[num_characters].isspace():
        return text[:num_characters].rstrip()
    pattern = _LAST_WORD if language.space else _LAST_SPACED_WORD
    last_word = pattern.search(text, max(0, num_characters - _LONGEST_WORD), num_characters)
    assert last_word is not None  # The pattern also matches an empty word.
    if not language.space:
        return text[: last_word.start()].rstrip()
    whole = last_word.start() if text[last_word.start() - 1 : last_word.start()].isspace() else num_characters
    return text[:whole].rstrip()

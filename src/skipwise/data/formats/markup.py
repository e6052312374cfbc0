"""The text of Office documents in XML: paragraphs, list items, tables and notes, in their order.

Libraries for these formats lose text: the base of ruby, tracked insertions, text boxes, content controls, footnotes
(docs/results/documents.md). Here every character that is shown is kept, whatever it stands in, and what is not shown is
left out: the reading of ruby, deletions, comments, the second form of a drawing. Blank lines separate paragraphs; list
items and rows of a table follow each other without one. A note is `[1]` in the text, and a paragraph at its end.
"""

from collections.abc import Iterable
from xml.parsers import expat

from skipwise.data.formats.tables import row_text

_PARAGRAPHS = {"p", "h"}
_CELLS = {"tc", "table-cell", "covered-table-cell"}
_ROWS = {"tr", "table-row"}
_TABLES = {"tbl", "table"}
_ITEMS = {"numPr", "list-item"}
_NOTE_SIGNS = {"footnoteReference": "footnote", "endnoteReference": "endnote", "note-citation": ""}
_NOTES = {"footnote", "endnote", "note-body"}
_SPACES = {"tab": "\t", "br": "\n", "cr": "\n", "line-break": "\n", "noBreakHyphen": "\u2011"}
_HIDDEN = {
    # Word and PowerPoint
    *("rt", "del", "moveFrom", "Fallback", "fld"),
    # OpenDocument
    *("ruby-text", "tracked-changes", "annotation", "forms", "page-number", "note-citation", "svg title", "svg desc"),
}


class Outline:
    """What is in one part of a document.

    Args:
        is_mixed: whether text stands in paragraphs themselves, as in OpenDocument, or in elements `t`.
    """

    def __init__(self, *, is_mixed: bool) -> None:
        self._is_mixed = is_mixed
        self._blocks: list[tuple[str, bool]] = []
        self._after: list[str] = []
        self._paragraphs: list[list[str]] = []
        self._tables: list[list[list[list[str]]]] = []
        self._pages: list[str] = []
        self._notes: list[str] = []
        self._note: str | None = None
        self._hidden = self._in_text = self._items = 0
        self._is_item = False

    def read(self, xml: bytes) -> "Outline":
        """Reads a part; raises `ValueError` if it is no XML."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._data
        try:
            parser.Parse(xml, True)
        except expat.ExpatError as error:
            raise ValueError(f"its XML is damaged: {error}") from None
        return self

    def text(self, paragraph_end: str = "\n\n") -> str:
        """The text so far; of a presentation, its slides, separated by blank lines."""
        if self._pages:
            return "\n\n".join(self._pages)
        return _joined([*self._blocks, *((note, False) for note in self._after)], paragraph_end)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = _tag(name)
        if tag in _NOTE_SIGNS and not self._hidden:
            self._sign(f"{_NOTE_SIGNS[tag]} {_own_id(attributes)}")
        if self._hidden or tag in _HIDDEN:
            self._hidden += 1
        elif tag in _PARAGRAPHS:
            self._paragraphs.append([])
            self._is_item = self._items > 0
        elif tag == "t":
            self._in_text += 1
        elif tag in _ITEMS:
            self._items += self._is_mixed
            self._is_item = True
        elif tag in _TABLES:
            self._tables.append([])
        elif tag in _ROWS and self._tables:
            self._tables[-1].append([])
        elif tag in _CELLS and self._tables and self._tables[-1]:
            self._tables[-1][-1].append([])
        elif tag in _NOTES:
            self._begin_note(tag, attributes)
        elif self._paragraphs:
            if tag == "s" and self._is_mixed:
                count = next((int(value) for key, value in attributes.items() if key.endswith(" c")), 1)
                self._paragraphs[-1].append(" " * min(count, 1000))
            self._paragraphs[-1].append(_SPACES.get(tag, ""))

    def _end(self, name: str) -> None:
        tag = _tag(name)
        if self._hidden:
            self._hidden -= 1
        elif tag in _PARAGRAPHS and self._paragraphs:
            self._add("".join(self._paragraphs.pop()).strip(" \t\n"), self._is_item)
            self._is_item = self._items > 0
        elif tag == "t":
            self._in_text -= 1
        elif tag in _ITEMS:
            self._items -= self._is_mixed
        elif tag in _TABLES and self._tables:
            rows = [row_text(" ".join(cell) for cell in row) for row in self._tables.pop()]
            self._add("\n".join(filter(None, rows)), False)
        elif tag in _NOTES:
            self._note = None
        elif tag == "page" and self._blocks:
            self._pages.append(_joined(self._blocks, "\n"))
            self._blocks = []

    def _sign(self, note: str) -> None:
        self._notes.append(note)
        if self._paragraphs:
            self._paragraphs[-1].append(f"[{len(self._notes)}]")

    def _begin_note(self, tag: str, attributes: dict[str, str]) -> None:
        """A note inside the text is the last one referred to; Word keeps them apart, with lines that separate them."""
        note = f"{tag} {_own_id(attributes)}"
        if tag == "note-body":
            self._note = str(len(self._notes))
        elif note in self._notes:
            self._note = str(self._notes.index(note) + 1)
        else:
            self._hidden += 1

    def _add(self, text: str, is_item: bool) -> None:
        if not text:
            return
        if self._note:
            self._after.append(f"[{self._note}] {text}")
        elif self._tables and self._tables[-1] and self._tables[-1][-1]:
            self._tables[-1][-1][-1].append(text)
        else:
            self._blocks.append((text, is_item))

    def _data(self, text: str) -> None:
        if self._paragraphs and not self._hidden and (self._in_text or self._is_mixed):
            # In OpenDocument, as in web pages, the ends of lines in XML are spaces.
            self._paragraphs[-1].append(" ".join(text.split("\n")) if self._is_mixed else text)


def _joined(blocks: Iterable[tuple[str, bool]], paragraph_end: str) -> str:
    parts: list[str] = []
    was_item = False
    for text, is_item in blocks:
        parts += ["\n" if was_item and is_item else paragraph_end] if parts else []
        parts.append(text)
        was_item = is_item
    return "".join(parts)


def _tag(name: str) -> str:
    """The name of an element without its namespace, except where another element has it too."""
    space, _, tag = name.rpartition(" ")
    return f"svg {tag}" if "svg" in space else tag


def _own_id(attributes: dict[str, str]) -> str:
    return next((value for key, value in attributes.items() if key.rpartition(" ")[2] == "id"), "")


def attributes_of(xml: bytes, tag: str) -> Iterable[dict[str, str]]:
    """The attributes of all elements of a name, by their names without namespaces, in order."""
    found: list[dict[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(" ")[2] == tag:
            found.append(
                {key.rpartition(" ")[2] if key != "id" else "own-id": value for key, value in attributes.items()}
            )

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise ValueError(f"its XML is damaged: {error}") from None
    return found

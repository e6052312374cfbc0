"""Files that are one text, and web pages."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import BinaryIO

from skipwise.data.formats.faults import Found, UnreadableError
from skipwise.data.formats.lines import decoded, raw_lines


def read_text(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """A file that is a single text."""
    try:
        lines = (decoded(line, f"{name}:{number}") for number, line in enumerate(raw_lines(file, name, cut), start=1))
        text: str | UnreadableError = "".join(lines).replace("\r\n", "\n")
    except UnreadableError as error:
        text = error
    yield 0, text


def check_text(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """Yields the error of a text file, if any, without holding the whole file in memory."""
    try:
        for number, line in enumerate(raw_lines(file, name, cut), start=1):
            decoded(line, f"{name}:{number}")
    except UnreadableError as error:
        yield 0, error


def read_html(file: BinaryIO, name: str, field: str, cut: bool = False) -> Iterator[Found]:
    """The readable text of a web page."""
    for line, page in read_text(file, name, field, cut):
        if isinstance(page, UnreadableError):
            yield line, page
            continue
        parser = _PageText()
        parser.feed(page)
        parser.close()
        yield line, parser.text()


class _PageText(HTMLParser):
    """Collects the readable text of a page, one line per block, without scripts, styles and navigation."""

    _HIDDEN = frozenset({"head", "script", "style", "nav", "template", "noscript", "svg"})
    _INLINE = frozenset(
        {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins", "kbd"}
        | {"mark", "q", "ruby", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden: list[str] = []
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # </head> is optional in HTML
            self._hidden.clear()
        elif tag in self._HIDDEN:
            self._hidden.append(tag)
        self._break(tag)
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        self._preformatted -= tag == "pre" and self._preformatted > 0
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._preformatted:
            # White space inside a block collapses to one space, and to none at its beginning.
            data = (" " if data[:1].isspace() else "") + " ".join(data.split()) + (" " if data[-1:].isspace() else "")
            data = data.lstrip() if not self._parts or self._parts[-1][-1:].isspace() else data
        if data:
            self._parts.append(data)

    def _break(self, tag: str) -> None:
        if tag not in self._INLINE and self._parts and not self._parts[-1].endswith("\n"):
            self._parts.append("\n")

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in "".join(self._parts).strip().split("\n"))

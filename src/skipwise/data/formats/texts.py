"""Files that are one text, and web pages."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import BinaryIO

from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import Found, UnreadableError
from skipwise.data.formats.lines import text_lines


def read_text(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """A file that is a single text."""
    lines: list[str] = []
    try:
        for _, line in text_lines(file, name, cut, encoding):
            if isinstance(line, UnreadableError):
                raise line
            lines.append(line)
    except UnreadableError as error:
        yield 0, error
        return
    yield 0, "".join(lines).replace("\r\n", "\n")


def check_text(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """Yields the error of a text file, if any, without holding the whole file in memory."""
    try:
        for _, line in text_lines(file, name, cut, encoding):
            if isinstance(line, UnreadableError):
                raise line
    except UnreadableError as error:
        yield 0, error


def check_page(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """As `check_text`, for web pages."""
    yield from check_text(file, name, field, cut, _of_page(encoding))


def read_html(
    file: BinaryIO, name: str, field: str, cut: bool = False, encoding: Encoding | None = None
) -> Iterator[Found]:
    """The readable text of a web page."""
    for line, page in read_text(file, name, field, cut, _of_page(encoding)):
        yield line, page if isinstance(page, UnreadableError) else page_text(page)


def page_text(page: str, parser: "PageText | None" = None) -> str:
    """The readable text of a web page that is read already."""
    parser = parser or PageText()
    parser.feed(page)
    parser.close()
    return parser.text()


def _of_page(encoding: Encoding | None) -> Encoding:
    encoding = encoding or Encoding()
    encoding.is_page = True
    return encoding


class PageText(HTMLParser):
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
        """Hides what is not shown, and begins blocks."""
        if tag == "body":  # </head> is optional in HTML
            self._hidden.clear()
        elif tag in self._HIDDEN:
            self._hidden.append(tag)
        self._break(tag)
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        """Ends blocks, and what is not shown."""
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        self._preformatted -= tag == "pre" and self._preformatted > 0
        self._break(tag)

    def handle_data(self, data: str) -> None:
        """Keeps what is shown, with its white space collapsed."""
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
        """What has been read so far."""
        return "\n".join(line.rstrip() for line in "".join(self._parts).strip().split("\n"))

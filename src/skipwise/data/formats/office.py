"""Word, PowerPoint and EPUB: zip archives of XML and web pages."""

import posixpath
import re
from urllib.parse import unquote

from skipwise.data.formats.archives import Archive, opened_archive
from skipwise.data.formats.encodings import Encoding
from skipwise.data.formats.faults import UnreadableError
from skipwise.data.formats.markup import Outline, attributes_of
from skipwise.data.formats.texts import PageText, page_text

# Parts with texts of their own; `diagramData` are drawings of boxes with texts.
_BESIDE = ("footnotes", "endnotes", "diagramData")


def text_of_docx(content: bytes, name: str) -> str:
    """The text of a Word document, its notes last; without headers and footers, which repeat on every page.

    Raises:
        UnreadableError: it is protected, damaged, or too large unpacked.
    """
    with opened_archive(content, name) as archive:
        main = _main_part(archive, "word/document.xml")
        outline = Outline(is_mixed=False).read(archive.read(main))
        for kind, path in _related(archive, main).values():
            if kind in _BESIDE:
                outline.read(archive.read(path))
    return outline.text()


def text_of_pptx(content: bytes, name: str) -> str:
    """The slides of a PowerPoint file in their order, each followed by its notes, separated by blank lines.

    Raises:
        UnreadableError: it is protected, damaged, or too large unpacked.
    """
    slides: list[str] = []
    with opened_archive(content, name) as archive:
        main = _main_part(archive, "ppt/presentation.xml")
        targets = _related(archive, main)
        for slide in attributes_of(archive.read(main), "sldId"):
            part = targets[slide["id"]][1]
            beside = sorted(one for one in _related(archive, part).values() if one[0] in ("diagramData", "notesSlide"))
            paths = [part, *(path for _, path in beside)]
            texts = (Outline(is_mixed=False).read(archive.read(path)).text("\n") for path in paths)
            slides.append("\n".join(filter(None, texts)))
    return "\n\n".join(filter(None, slides))


def text_of_epub(content: bytes, name: str) -> str:
    """The chapters of a book in their order, separated by blank lines; without the readings of ruby.

    Raises:
        UnreadableError: it is protected against copying, damaged, or too large unpacked.
    """
    chapters: list[str] = []
    with opened_archive(content, name) as archive:
        protected = "META-INF/encryption.xml"
        locked = (
            {one["URI"] for one in attributes_of(archive.read(protected), "CipherReference")}
            if protected in archive.names
            else set()
        )
        (book,) = [one["full-path"] for one in attributes_of(archive.read("META-INF/container.xml"), "rootfile")][:1]
        package = archive.read(book)
        items = {one["own-id"]: one for one in attributes_of(package, "item")}
        for one in attributes_of(package, "itemref"):
            item = items.get(one["idref"], {})
            if "html" not in item.get("media-type", ""):
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(book), unquote(item["href"])))
            if path in locked:
                raise UnreadableError("password", name, "is protected against copying", "leave it out")
            chapters.append(_chapter(archive.read(path)))
    return "\n\n".join(filter(None, chapters))


class _ChapterText(PageText):
    """Chapters of a book: ruby inside words, tables with their rows on lines, wide spaces kept."""

    _HIDDEN = PageText._HIDDEN | {"rt", "rp"}
    _INLINE = PageText._INLINE | {"rt", "rp", "rb", "rtc"}

    def __init__(self) -> None:
        super().__init__()
        self._cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begins a cell beside the one before it."""
        super().handle_starttag(tag, attrs)
        if tag in ("td", "th"):
            self._cells += 1
            if self._parts and not self._parts[-1].endswith("\n"):
                self._parts.append("| " if self._parts[-1].endswith(" ") else " | ")

    def handle_endtag(self, tag: str) -> None:
        """Ends a cell."""
        super().handle_endtag(tag)
        self._cells -= tag in ("td", "th") and self._cells > 0

    def handle_data(self, data: str) -> None:
        """Collapses white space, but not the wide space of Japanese."""
        if not self._hidden and not self._preformatted:
            data = re.sub(r"[ \t\r\n\f]+", " ", data)
            is_first = not self._parts or self._parts[-1][-1:] in " \n"
            self._parts += [text] if (text := data.lstrip(" ") if is_first else data) else []
        else:
            super().handle_data(data)

    def _break(self, tag: str) -> None:
        if tag in ("td", "th"):
            return
        if not self._cells or tag in ("tr", "table"):
            super()._break(tag)
        elif tag not in self._INLINE and self._parts and self._parts[-1][-1:] not in " \n":
            self._parts.append(" ")


def _chapter(page: bytes) -> str:
    lines = [line for _, line in Encoding(is_page=True).lines(iter(page.splitlines(keepends=True)), "", False)]
    return page_text("".join(line if isinstance(line, str) else "" for line in lines), _ChapterText())


def _main_part(archive: Archive, usual: str) -> str:
    if usual in archive.names:
        return usual
    return next(path for kind, path in _related(archive, "").values() if kind == "officeDocument")


def _related(archive: Archive, part: str) -> dict[str, tuple[str, str]]:
    """By id, the kind and path of what a part of an Office document relates to inside it."""
    folder, own = posixpath.split(part)
    rels = posixpath.join(folder, "_rels", f"{own}.rels")
    if rels not in archive.names:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for one in attributes_of(archive.read(rels), "Relationship"):
        if one.get("TargetMode") != "External":
            path = posixpath.normpath(posixpath.join("/", folder, one["Target"])).lstrip("/")
            found[one["own-id" if "own-id" in one else "Id"]] = (one["Type"].rpartition("/")[2], path)
    return found

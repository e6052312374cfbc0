"""PDF files: the text of each page, a blank line between pages."""

import re
from contextlib import closing
from typing import TYPE_CHECKING

from skipwise.data.formats.archives import password
from skipwise.data.formats.faults import UnreadableError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

# PDFium's number for images.
_IMAGE = 3
# A cover is no scan.
_FEW_IMAGES = 2
# PDFium writes a hyphen at the end of a line so, and the next line directly behind it. Before a capital or a digit it
# is part of the word, as in `Software-Projekt`; else the word was broken.
_KEPT_HYPHEN = re.compile("\ufffe(?=[^\\W_a-zß-öø-ÿ])")


def text_of_pdf(content: bytes, name: str) -> tuple[str, str]:
    """The text of all pages, in the order of reading that PDFium finds; a row of a table is on one line.

    Returns:
        The text, and a remark if a tenth of the pages are images without text.

    Raises:
        UnreadableError: it is protected, or damaged.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise password(name) from None
        reason = "is not a PDF file, or damaged"
        raise UnreadableError("broken", name, reason, "save it again, or leave it out") from None
    with closing(document):
        pages = [_page(document, index) for index in range(len(document))]
    scanned = sum(is_scan for _, is_scan in pages)
    remark = f"{scanned} of {len(pages)} pages are images without text; OCR reads them, as by ocrmypdf"
    is_told = scanned >= max(_FEW_IMAGES, len(pages) / 10)
    return "\n\n".join(text for text, _ in pages if text), remark if is_told else ""


def _page(document: "PdfDocument", index: int) -> tuple[str, bool]:
    """The text of a page, and whether it has an image instead."""
    with closing(document[index]) as page, closing(page.get_textpage()) as read:
        text = _KEPT_HYPHEN.sub("-", read.get_text_range().replace("\r\n", "\n")).replace("\ufffe", "")
        return text.strip(), not text.strip() and any(page.get_objects([_IMAGE], max_depth=2))

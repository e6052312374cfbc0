"""PDF files: the text of each page, a blank line between pages."""

from skipwise.data.formats.archives import password
from skipwise.data.formats.faults import UnreadableError

# PDFium marks a hyphen at the end of a line so, as the word goes on.
_BROKEN_WORD = "\ufffe"


def text_of_pdf(content: bytes, name: str) -> str:
    """The text of all pages, in the order of reading that PDFium finds; a row of a table is on one line.

    Raises:
        UnreadableError: it is protected, or damaged.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise password(name) from None
        raise UnreadableError(
            "broken", name, "is not a PDF file, or damaged", "save it again, or leave it out"
        ) from None
    try:
        return "\n\n".join(filter(None, (_text_of_page(document, index) for index in range(len(document)))))
    finally:
        document.close()


def _text_of_page(document: object, index: int) -> str:
    page = document[index]  # pyright: ignore[reportIndexIssue]
    read = page.get_textpage()
    text = read.get_text_range().replace("\r\n", "\n").replace(f"{_BROKEN_WORD}\n", "").replace(_BROKEN_WORD, "-")
    read.close()
    page.close()
    return text.strip()

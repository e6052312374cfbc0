"""What a file is by its content, whatever its name."""

_BEGINNINGS = {b"%pdf-": ".pdf", b"{\\rtf": ".rtf", b"<!doctype html": ".html", b"<html": ".html"}
# Names of parts and media types, which stand in a zip archive as they are.
_ZIPPED = {
    "word/document.xml": ".docx",
    "xl/workbook.xml": ".xlsx",
    "ppt/presentation.xml": ".pptx",
    "application/epub+zip": ".epub",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.presentation": ".odp",
}
# Streams of Office before 2007; of the kinds that are read.
_STREAMS = {"Workbook": ".xls", "__properties_version1.0": ".msg"}


def suffix_of(content: bytes) -> str | None:
    """The suffix that a document should have, of those that are read; None if it cannot be told."""
    begin = content[:1024].lstrip(b" \t\r\n\xef\xbb\xbf").lower()
    for beginning, suffix in _BEGINNINGS.items():
        if begin.startswith(beginning):
            return suffix
    names, codec = (_ZIPPED, "ascii") if begin.startswith(b"pk") else (_STREAMS, "utf-16-le")
    return next((suffix for name, suffix in names.items() if name.encode(codec) in content), None)

"""OpenDocument texts and presentations."""

from skipwise.data.formats.archives import opened_archive, password
from skipwise.data.formats.markup import Outline, attributes_of


def text_of_odf(content: bytes, name: str) -> str:
    """The text of a document; of a presentation, a slide's lines together and its notes last.

    Raises:
        UnreadableError: it is protected, damaged, or too large unpacked.
    """
    with opened_archive(content, name) as archive:
        manifest = "META-INF/manifest.xml"
        if manifest in archive.names and list(attributes_of(archive.read(manifest), "encryption-data")):
            raise password(name)
        return Outline(is_mixed=True).read(archive.read("content.xml")).text()

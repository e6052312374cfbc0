"""RTF files."""


def text_of_rtf(content: bytes, name: str) -> str:
    """The text of an RTF file; cells of a table are separated by `|`. Notes are left out."""
    from striprtf.striprtf import rtf_to_text

    if not content.lstrip().startswith(b"{\\rtf"):
        raise ValueError("it is not RTF")
    # Characters beyond ASCII are escaped in RTF.
    return rtf_to_text(content.decode("latin-1"))

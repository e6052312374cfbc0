"""RTF files."""

import re

_NOTE = re.compile(r"\{\s*(?:\\\*\s*)?\\footnote(?![a-z])")
# A brace that is not escaped.
_BRACE = re.compile(r"(?<!\\)(?:\\\\)*([{}])")


def text_of_rtf(content: bytes, name: str) -> str:
    """The text of an RTF file, its notes last as `[1] ...`; cells of a table are separated by `|`.

    Text boxes, and words with ruby, are left out by the library.
    """
    from striprtf.striprtf import rtf_to_text

    if not content.lstrip().startswith(b"{\\rtf"):
        raise ValueError("it is not RTF")
    # Characters beyond ASCII are escaped in RTF.
    rtf = content.decode("latin-1")
    begin = rtf.find("{\\fonttbl")
    # What the characters of a note depend on: the code page and the fonts.
    page = re.search(r"\\ansicpg\d+", rtf)
    head = "{\\rtf1" + (page[0] if page else "") + (rtf[begin : _end(rtf, begin)] if begin >= 0 else "")
    kept, notes, at = list[str](), list[str](), 0
    while found := _NOTE.search(rtf, at):
        notes.append(rtf_to_text(f"{head}{rtf[found.end() : _end(rtf, found.start())]}").strip())
        kept += [rtf[at : found.start()], f"[{len(notes)}]"]
        at = _end(rtf, found.start())
    text = rtf_to_text("".join(kept) + rtf[at:]).strip()
    return "\n".join([text, *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))])


def _end(rtf: str, begin: int) -> int:
    """The end of the group that begins at a place."""
    depth = 0
    for brace in _BRACE.finditer(rtf, begin):
        depth += 1 if brace[1] == "{" else -1
        if not depth:
            return brace.end()
    return len(rtf)

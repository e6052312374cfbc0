"""Small documents of every kind, made by hand: a zip of XML, the bytes of a PDF, the sectors of an Outlook mail."""

import io
import struct
import zipfile
from collections.abc import Sequence

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_ODF = "urn:oasis:names:tc:opendocument:xmlns"


def zipped(parts: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return file.getvalue()


def relations(*targets: tuple[str, str, str]) -> str:
    """Of one part: (id, kind, target) each."""
    rows = (f'<Relationship Id="{own}" Type="{_RELATIONS}/{kind}" Target="{target}"/>' for own, kind, target in targets)
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{"".join(rows)}</Relationships>'


def docx(body: str, notes: str = "") -> bytes:
    """A Word document; notes are elements `w:footnote`."""
    parts = {
        "word/document.xml": f'<w:document xmlns:w="{_WORD}" xmlns:m="m" xmlns:mc="mc" xmlns:wps="wps"><w:body>{body}'
        "</w:body></w:document>"
    }
    if notes:
        parts["word/footnotes.xml"] = f'<w:footnotes xmlns:w="{_WORD}">{notes}</w:footnotes>'
        parts["word/_rels/document.xml.rels"] = relations(("r1", "footnotes", "footnotes.xml"))
    return zipped(parts)


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def pptx(slides: Sequence[str], notes: str) -> bytes:
    """A presentation whose first slide is stored as the last file, with notes on the first."""
    wanted = "".join(f'<p:sldId id="{256 + i}" r:id="s{i}"/>' for i in range(len(slides)))
    last = len(slides) - 1
    parts = {
        "ppt/presentation.xml": f'<p:presentation xmlns:p="p" xmlns:r="{_RELATIONS}"><p:sldIdLst>{wanted}</p:sldIdLst>'
        "</p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"s{i}", "slide", f"slides/slide{last - i}.xml") for i in range(len(slides)))
        ),
        f"ppt/slides/_rels/slide{last}.xml.rels": relations(("n", "notesSlide", "../notesSlides/notes.xml")),
        "ppt/notesSlides/notes.xml": f'<p:notes xmlns:p="p" xmlns:a="{_DRAWING}">{notes}</p:notes>',
    }
    for i, slide in enumerate(slides):
        parts[f"ppt/slides/slide{last - i}.xml"] = f'<p:sld xmlns:p="p" xmlns:a="{_DRAWING}">{slide}</p:sld>'
    return zipped(parts)


def xlsx(sheets: dict[str, list[list[str | float]]], more: str = "") -> bytes:
    """A workbook; `more` are further rows of each sheet in XML."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    names = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, start=1))
    overrides = "".join(
        f'<Override PartName="/xl/sheet{i}.xml" ContentType="{kinds}.worksheet+xml"/>'
        for i in range(1, len(sheets) + 1)
    )
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kinds}.sheet.main+xml"/>{overrides}</Types>',
        "_rels/.rels": relations(("r", "officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{_RELATIONS}"><sheets>{names}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(
            *((f"r{i}", "worksheet", f"sheet{i}.xml") for i in range(1, len(sheets) + 1))
        ),
    }
    for i, rows in enumerate(sheets.values(), start=1):
        cells = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows)
        parts[f"xl/sheet{i}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{cells}{more}</sheetData></worksheet>'
    return zipped(parts)


def _cell(value: str | float) -> str:
    return f'<c t="inlineStr"><is><t>{value}</t></is></c>' if isinstance(value, str) else f"<c><v>{value}</v></c>"


def odf(body: str, manifest: str = "") -> bytes:
    spaces = " ".join(f'xmlns:{name}="{_ODF}:{space}:1.0"' for name, space in _ODF_SPACES.items())
    parts = {
        "content.xml": f"<office:document-content {spaces}><office:body>{body}</office:body></office:document-content>"
    }
    return zipped(parts | ({"META-INF/manifest.xml": manifest} if manifest else {}))


_ODF_SPACES = {"office": "office", "text": "text", "table": "table", "draw": "drawing", "svg": "svg-compatible"}


def epub(chapters: Sequence[str], protected: str = "") -> bytes:
    """A book whose chapters are listed in another order than they are read."""
    items = "".join(
        f'<item id="c{i}" href="c%20{i}.xhtml" media-type="application/xhtml+xml"/>'
        for i in reversed(range(len(chapters)))
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    parts = {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>',
        "in/book.opf": f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>",
        **{
            f"in/c {i}.xhtml": f"<html><head><title>x</title></head><body>{text}</body></html>"
            for i, text in enumerate(chapters)
        },
    }
    if protected:
        parts["META-INF/encryption.xml"] = f'<encryption><CipherReference URI="{protected}"/></encryption>'
    return zipped(parts)


def pdf(pages: Sequence[str], *, locked: bool = False) -> bytes:
    """Pages with a line of Helvetica for each line of text; a page without lines is an image, like a scan."""
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{4 + 2 * i} 0 R' for i in range(len(pages)))}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, page in enumerate(pages):
        shown = "".join(f"({line}) Tj 0 -20 Td " for line in page.split("\n")) if page else ""
        content = (
            f"BT /F 12 Tf 50 700 Td {shown}ET" if page else "q 9 0 0 9 9 9 cm BI /W 1 /H 1 /BPC 8 /CS /G ID x EI Q"
        )
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F 3 0 R>>>>/Contents {5 + 2 * i} 0 R>>"
        )
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    trailer = "/Root 1 0 R"
    if locked:
        key = "00" * 32
        objects.append(f"<</Filter/Standard/V 1/R 2/O<{key}>/U<{key}>/P -4>>")
        trailer += f"/Encrypt {len(objects)} 0 R/ID[<{key}><{key}>]"
    file, places = "%PDF-1.4\n", list[int]()
    for number, one in enumerate(objects, start=1):
        places.append(len(file))
        file += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return f"{file}{head}trailer<</Size {len(objects) + 1}{trailer}>>\nstartxref\n{len(file)}\n%%EOF".encode()


def msg(streams: dict[str, bytes]) -> bytes:
    """An Outlook mail: a compound file, all streams in its root folder, each as long as 4096 bytes at least."""
    sector = 512
    contents = [content.ljust(4096, b"\0") for content in streams.values()]
    directory_sectors = -(-(len(streams) + 1) // 4)
    starts, at = list[int](), 1 + directory_sectors
    chains = [*range(2, 1 + directory_sectors), -2]
    for content in contents:
        starts.append(at)
        count = -(-len(content) // sector)
        chains += [*range(at + 1, at + count), -2]
        at += count
    entries = [_entry("Root Entry", 5, child=1 if streams else -1)]
    # A list: each entry has the next one to its right.
    for i, (name, start, content) in enumerate(zip(streams, starts, contents, strict=True), start=1):
        entries.append(_entry(name, 2, right=i + 1 if i < len(streams) else -1, start=start, size=len(content)))
    entries += [_entry("", 0)] * (4 * directory_sectors - len(entries))
    table = struct.pack(f"<{sector // 4}i", *[-3, *chains, *[-1] * (sector // 4 - 1 - len(chains))])
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    head += struct.pack("<iiiIIiiiii", 0, 1, 1, 0, 4096, -2, 0, -2, 0, 0) + struct.pack("<108i", *[-1] * 108)
    return (
        head
        + table
        + b"".join(entries)
        + b"".join(one.ljust(-(-len(one) // sector) * sector, b"\0") for one in contents)
    )


def _entry(name: str, kind: int, *, right: int = -1, child: int = -1, start: int = -2, size: int = 0) -> bytes:
    wide = name.encode("utf-16-le")
    begin = wide.ljust(64, b"\0") + struct.pack("<HBBiii", len(wide) + 2 if name else 0, kind, 1, -1, right, child)
    return begin + bytes(36) + struct.pack("<iQ", start, size)

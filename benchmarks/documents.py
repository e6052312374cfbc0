"""Reads documents that LibreOffice writes and manuals of Debian, and compares them with what is known to be in them.

apt-get install --no-install-recommends libreoffice-writer libreoffice-calc libreoffice-impress fonts-ipafont-gothic
apt-get download debian-reference-{ja,zh-cn,fr,de,en}; for deb in *.deb; do dpkg -x $deb manuals; done
python benchmarks/documents.py made/                                  # writes the files here and reads them
python benchmarks/documents.py --manuals manuals/usr/share/debian-reference   # PDF against HTML
python benchmarks/documents.py --encodings manuals/usr/share/debian-reference # detection against charset-normalizer
"""

import argparse
import random
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

from skipwise.data.documents import look_through, read_documents
from skipwise.data.formats.encodings import encoding_of

SPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{space}:1.0"'
    for name, space in {
        "office": "office",
        "text": "text",
        "table": "table",
        "style": "style",
        "fo": "xsl-fo-compatible",
        "draw": "drawing",
        "svg": "svg-compatible",
        "presentation": "presentation",
    }.items()
)
ROWS = [
    ["品目", "数量", "単価（円）"],
    ["りんご", "12", "98"],
    ["みかん・早生", "340", "1,250"],
    ["Résumé “café”", "7", "3.5"],
]
LINES = [
    "年次報告書",
    "これは日本語の段落です。　全角の空白と、長い文を含みます。東京都千代田区で開催された会議では、"
    "来年度の予算について議論が行われ、最終的に承認されました。",
    "A paragraph with naïve café – “quotes”.",
    "Ende des Dokuments: Grüße aus München.",
]
RUBY = (
    "<text:ruby><text:ruby-base>漢字</text:ruby-base><text:ruby-text>かんじ</text:ruby-text></text:ruby>にルビを振る。"
)
NOTE = (
    '<text:note text:note-class="footnote"><text:note-citation>1</text:note-citation>'
    "<text:note-body><text:p>脚注の本文。</text:p></text:note-body></text:note>"
)
BOX = (
    '<draw:frame svg:width="6cm" svg:height="1.5cm" text:anchor-type="paragraph">'
    "<draw:text-box><text:p>テキスト枠の中身</text:p></draw:text-box></draw:frame>"
)
EXPECTED = {
    "report": [
        *LINES,
        "漢字にルビを振る。",
        "脚注のある文",
        "脚注の本文。",
        "テキスト枠の中身",
        *(" | ".join(row) for row in ROWS),
    ],
    "book": ["売上表", *(" | ".join(row) for row in ROWS), "People", "山田　太郎 | 2024"],
    "slides": ["会社概要", "設立：一九八五年", "Second slide", *(" | ".join(row) for row in ROWS)],
}
WRITTEN = {
    "report": ["docx", "odt", "rtf", "epub", "pdf"],
    "book": ["xlsx", "xls", "ods", "pdf"],
    "slides": ["pptx", "odp", "pdf"],
}


def table(rows: list[list[str]], name: str = "T") -> str:
    def cell(value: str) -> str:
        return f'<table:table-cell office:value-type="string"><text:p>{value}</text:p></table:table-cell>'

    shown = "".join(f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in rows)
    return (
        f'<table:table table:name="{name}"><table:table-column table:number-columns-repeated="3"/>{shown}</table:table>'
    )


def flat(kind: str, body: str) -> str:
    font = '<style:font-face style:name="IPAGothic" svg:font-family="IPAGothic"/>'
    default = '<style:text-properties style:font-name="IPAGothic" style:font-name-asian="IPAGothic"/>'
    styles = (
        f'<office:styles><style:default-style style:family="paragraph">{default}</style:default-style></office:styles>'
    )
    layout = '<office:automatic-styles><style:page-layout style:name="L"/></office:automatic-styles>'
    page = '<style:master-page style:name="M" style:page-layout-name="L"/>'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><office:document {SPACES} office:version="1.3" '
        f'office:mimetype="application/vnd.oasis.opendocument.{kind}"><office:font-face-decls>{font}</office:font-face-decls>'
        f"{styles}{layout}<office:master-styles>{page}</office:master-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document>"
    )


def make(folder: Path) -> None:
    """Writes the three documents in flat OpenDocument, and lets LibreOffice write them in all formats."""
    folder.mkdir(parents=True, exist_ok=True)
    text = [f"<text:p>{line}</text:p>" for line in [*LINES, RUBY, f"脚注のある文{NOTE}。", f"表の前{BOX}"]]
    frame = '<draw:frame svg:x="1cm" svg:y="{}cm" svg:width="20cm" svg:height="4cm">{}</draw:frame>'
    slides = [["会社概要", "設立：一九八五年"], ["Second slide"]]
    boxes = ["".join(f"<text:p>{line}</text:p>" for line in slide) for slide in slides]
    shown = [frame.format(1, f"<draw:text-box>{box}</draw:text-box>") for box in boxes]
    shown[1] += frame.format(8, table(ROWS))
    bodies = {
        "report": ("fodt", flat("text", "".join(text) + table(ROWS))),
        "book": ("fods", flat("spreadsheet", table(ROWS, "売上表") + table([["山田　太郎", "2024"]], "People"))),
        "slides": (
            "fodp",
            flat("presentation", "".join(f'<draw:page draw:master-page-name="M">{one}</draw:page>' for one in shown)),
        ),
    }
    for name, (suffix, content) in bodies.items():
        (folder / f"{name}.{suffix}").write_text(content, encoding="utf-8")
        for kind in WRITTEN[name]:
            command = [
                "soffice",
                "--headless",
                "--convert-to",
                kind,
                "--outdir",
                folder / kind,
                folder / f"{name}.{suffix}",
            ]
            subprocess.run(command, check=True, capture_output=True)


def compare(folder: Path) -> None:
    """Tells for each file how many of the known lines are in it, and which are not."""
    for name, kinds in WRITTEN.items():
        for kind in kinds:
            (document,) = read_documents(folder / kind / f"{name}.{kind}")
            found = squeezed(document.text)
            missing = [line for line in EXPECTED[name] if squeezed(line) not in found]
            print(
                f"{name}.{kind:5} {len(EXPECTED[name]) - len(missing):2} of {len(EXPECTED[name]):2} lines",
                *missing,
                sep="; ",
            )


def squeezed(text: str) -> str:
    """Letters and digits: a PDF file has no white space of its own, and other quotation marks."""
    return re.sub(r"[\W_]+", "", text)


def compare_manuals(folder: Path) -> None:
    """For each manual, the share of 12-character pieces of its HTML pages that its PDF file has, and the time."""
    for path in sorted(folder.glob("*.pdf")):
        begun = time.perf_counter()
        (document,) = look_through(path).documents()
        seconds = time.perf_counter() - begun
        found = squeezed(document.text)
        pages = read_documents(str(folder / f"ch*.{path.name.split('.')[1]}.html"))
        lines = [squeezed(line) for page in pages for line in page.text.split("\n")]
        pieces = [line[i : i + 12] for line in lines for i in range(0, len(line) - 11, 12)]
        there = sum(piece in found for piece in pieces)
        share = f"{there / len(pieces):.1%} of {len(pieces):,} pieces"
        print(f"{path.name}: {len(found):,} characters, {share}, {seconds:.1f} s")


def compare_encodings(folder: Path, tries: int = 200) -> None:
    """Random parts of manuals in their usual encodings: read right, refused, or read wrong, here and by a library."""
    from charset_normalizer import from_bytes

    rng = random.Random(0)
    cases = [
        ("ja", "cp932"),
        ("ja", "euc_jp"),
        ("zh-cn", "gb18030"),
        ("zh-cn", "big5"),
        ("fr", "cp1252"),
        ("de", "cp1252"),
    ]
    cases += [("fr", "mac_roman"), ("de", "cp850")]
    texts = {language: Path(folder / f"{language}.txt") for language, _ in cases}
    for language, path in texts.items():
        pages = read_documents(str(folder / f"ch*.{language}.html"))
        path.write_text("\n".join(page.text for page in pages), encoding="utf-8")
    for size in (300, 2000, 20000):
        for language, codec in cases:
            text, told = texts[language].read_text(encoding="utf-8"), Counter[str]()
            while told.total() < 2 * tries:
                begin = rng.randrange(len(text) - size)
                sample = text[begin : begin + size].encode(codec, "ignore")
                if sample.isascii():
                    continue
                best = from_bytes(sample).best()
                for who, found in (("", encoding_of(sample)), ("library: ", best and best.encoding)):
                    is_right = found and sample.decode(found) == sample.decode(codec)
                    told[f"{who}{'right' if is_right else 'WRONG' if found else 'refused'}"] += 1
            print(f"{size:6} {language:6} {codec:9}", dict(sorted(told.items())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, nargs="?")
    parser.add_argument("--manuals", type=Path)
    parser.add_argument("--encodings", type=Path)
    given = parser.parse_args()
    if given.made:
        make(given.made)
        compare(given.made)
    if given.manuals:
        compare_manuals(given.manuals)
    if given.encodings:
        compare_encodings(given.encodings)

"""Documents people have: what is read of each kind, and what is said of those that cannot be read."""

import hashlib
import logging
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from corpora import build_store
from made_documents import docx, epub, msg, odf, paragraph, pdf, pptx, xlsx, zipped
from tiny_models import byte_tokenizer

from skipwise.data.documents import find_sources, look_through, read_documents
from skipwise.data.formats import archives, converted, sheets
from skipwise.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SKIPWISE_CACHE", str(cache))
    return cache


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, bytes], str]:
    def text_of(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        (document,) = read_documents(tmp_path / name)
        return document.text

    return text_of


def _table(*rows: list[str]) -> str:
    shown = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{cells}</w:tr>' for cells in shown)}</w:tbl>"


def test_word_keeps_what_is_shown_and_nothing_else(read: Callable[[str, bytes], str]) -> None:
    ruby = (
        "<w:ruby><w:rt><w:r><w:t>かんじ</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢字</w:t></w:r></w:rubyBase></w:ruby>"
    )
    box = f"<w:txbxContent>{paragraph('in a box')}</w:txbxContent>"
    item = "<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>"
    body = (
        paragraph("年次報告書")
        + f"<w:p><w:r>{ruby}<w:t>　とルビ</w:t></w:r></w:p>"
        + "<w:p><w:ins><w:r><w:t>kept</w:t></w:r></w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:r><w:tab/><w:t>after</w:t><w:br/><w:t>line</w:t></w:r></w:p>"
        + f"<w:sdt><w:sdtContent>{paragraph('of a form')}</w:sdtContent></w:sdt>"
        + f"<w:p><w:r><mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
        "</mc:AlternateContent><w:t>outside</w:t></w:r></w:p>"
        + item.format("one")
        + item.format("two")
        + '<w:p><w:r><w:t>with a note</w:t><w:footnoteReference w:id="7"/></w:r></w:p>'
        + _table(["品目", "単価（円）"], ["みかん\n早生", "1,250"], ["", ""])
        + _table(["a", _table(["x", "y"])])
    )
    notes = f'<w:footnote w:id="-1">{paragraph("")}</w:footnote><w:footnote w:id="7">{paragraph("脚注")}</w:footnote>'
    assert read("a.docx", docx(body, notes)).split("\n\n") == [
        "年次報告書",
        "漢字　とルビ",
        "kept\tafter\nline",
        "of a form",
        "in a box",
        "outside",
        "one\ntwo",
        "with a note[1]",
        "品目 | 単価（円）\nみかん 早生 | 1,250",
        "a | x | y",
        "[1] 脚注",
    ]


def test_slides_are_in_the_order_of_the_presentation(read: Callable[[str, bytes], str]) -> None:
    line = "<a:p><a:r><a:t>{}</a:t></a:r></a:p>"
    number = '<a:p><a:fld type="slidenum"><a:t>2</a:t></a:fld></a:p>'
    cells = "".join(f"<a:tc>{line.format(cell)}</a:tc>" for cell in ("甲", "乙"))
    slides = [
        line.format("会社概要") + line.format("設立"),
        f"{number}{line.format('Second')}<a:tbl><a:tr>{cells}</a:tr></a:tbl>",
    ]
    assert read("a.pptx", pptx(slides, line.format("メモ"))) == "会社概要\n設立\nメモ\n\nSecond\n甲 | 乙"


def test_a_sheet_is_its_name_and_its_rows(read: Callable[[str, bytes], str]) -> None:
    sheets: dict[str, list[list[str | float]]] = {
        "売上表": [["月", "売上"], ["一月", 1200000], ["二月", 0.125], ["", ""]],
        "leer": [],
        "People": [["山田　太郎", 3.0]],
    }
    assert read("a.xlsx", xlsx(sheets)) == "売上表\n月 | 売上\n一月 | 1200000\n二月 | 0.125\n\nPeople\n山田　太郎 | 3"


def test_an_open_document(read: Callable[[str, bytes], str]) -> None:
    ruby = "<text:ruby><text:ruby-base>漢字</text:ruby-base><text:ruby-text>かんじ</text:ruby-text></text:ruby>"
    noted = "<text:note-body><text:p>脚注</text:p></text:note-body>"
    note = f"<text:note><text:note-citation>1</text:note-citation>{noted}</text:note>"
    cells = "".join(f"<table:table-cell><text:p>{cell}</text:p></table:table-cell>" for cell in ("a", "b"))
    body = (
        "<office:text><text:tracked-changes><text:p>gone</text:p></text:tracked-changes><text:h>Titel</text:h>"
        f'<text:p>{ruby}と{note}<text:s text:c="2"/>x<text:tab/>y<text:line-break/>z</text:p><text:list>'
        "<text:list-item><text:p>one</text:p></text:list-item><text:list-item><text:p>two</text:p></text:list-item>"
        "</text:list><text:p>after <draw:frame><svg:title>gone</svg:title></draw:frame></text:p>"
        f"<table:table><table:table-row>{cells}</table:table-row></table:table></office:text>"
    )
    expected = ["Titel", "漢字と[1]  x\ty\nz", "one\ntwo", "after", "a | b", "[1] 脚注"]
    assert read("a.odt", odf(body)).split("\n\n") == expected
    slides = "".join(f"<draw:page><text:p>{i}</text:p><text:p>line</text:p></draw:page>" for i in "12")
    assert read("a.odp", odf(slides)) == "1\nline\n\n2\nline"


def test_a_book_is_read_in_its_order(read: Callable[[str, bytes], str]) -> None:
    table = "<table><tr><td><p>a</p></td><td>b</td></tr><tr><td>c</td><td></td></tr></table>"
    chapters = ["<h1>一</h1><p>　<ruby>漢字<rp>(</rp><rt>かんじ</rt></ruby>です。\n</p>", table]
    assert read("a.epub", epub(chapters)) == "一\n　漢字です。\n\na | b\nc |"


def test_rich_text_of_a_code_page(read: Callable[[str, bytes], str]) -> None:
    escaped = "".join(f"\\'{byte:02x}" for byte in "日本語".encode("cp932"))
    content = f"{{\\rtf1\\ansi\\ansicpg932{{\\fonttbl{{\\f0\\fcharset128 MS Mincho;}}}}\\f0 {escaped} caf\\u233?\\par}}"
    assert read("a.rtf", content.encode("ascii")) == "日本語 café"
    # As LibreOffice and as Word write them.
    notes = [
        f"{{\\super {{\\*\\footnote \\pard {escaped} \\{{a\\}}}}}}",
        f"{{\\footnote \\pard\\plain {{b}} {escaped}}}",
    ]
    noted = content.replace("\\par}", f"{notes[0]}, and{notes[1]} on\\par}}")
    assert read("b.rtf", noted.encode("ascii")) == "日本語 café[1], and[2] on\n[1] 日本語 {a}\n[2] b 日本語"


def _mail(**options: Any) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "山田 <a@example.com>", "b@example.com", "会議"
    mail.set_content("本文です。\n", **options)
    return mail


def test_a_mail_has_its_headers_and_text(read: Callable[[str, bytes], str]) -> None:
    mail = _mail(charset="iso-2022-jp")
    mail.add_alternative("<p>other</p>", subtype="html")
    mail.add_attachment(b"x", maintype="application", subtype="pdf", filename="資料.pdf")
    head = "From: 山田 <a@example.com>\nTo: b@example.com\nSubject: 会議\n"
    assert read("a.eml", mail.as_bytes()) == f"{head}Attachments: 資料.pdf\n\n本文です。"
    page = EmailMessage()
    page["From"] = "c@example.com"
    page.set_content("<p>one<p>two", subtype="html")
    assert read("b.eml", page.as_bytes()) == "From: c@example.com\n\none\ntwo"
    # Without a word of its encoding.
    text = "これはとても長い本文です。どのような文字なのかは、書かれていません。"
    assert read("c.eml", b"From: d\nContent-Transfer-Encoding: 8bit\n\n" + text.encode("cp932")).endswith(text)


def test_an_outlook_mail(read: Callable[[str, bytes], str]) -> None:
    codec = bytes(32) + b"\x03\x00\xfd\x3f" + bytes(4) + (932).to_bytes(8, "little")
    sent = b"\x40\x00\x39\x00" + bytes(4) + (133_500_000_000_000_000).to_bytes(8, "little")
    mail = msg(
        {
            "__properties_version1.0": codec + sent,
            "__substg1.0_0037001F": "会議".encode("utf-16-le"),
            "__substg1.0_0C1A001E": "山田".encode("cp932"),
            "__substg1.0_0C1F001E": b"a@example.com",
            "__substg1.0_1000001F": "本文\r\nです。".encode("utf-16-le"),
        }
    )
    # 133.5e15 steps of 100 ns after 1601, by the calendar of `date -u -d @1705526400`.
    assert (
        read("a.msg", mail) == "From: 山田 <a@example.com>\nDate: 2024-01-17 21:20 UTC\nSubject: 会議\n\n本文\nです。"
    )


def test_pages_of_a_pdf_are_separated_by_a_blank_line(read: Callable[[str, bytes], str]) -> None:
    assert read("a.pdf", pdf(["one\ntwo words", "", "three"])) == "one\ntwo words\n\nthree"


def test_a_word_broken_at_the_end_of_a_line_is_one_word(read: Callable[[str, bytes], str]) -> None:
    text = read("a.pdf", pdf(["an exam-\nple of well-known Software-\nProjekte of 1990-\n1991"]))
    assert text == "an example of well-known Software-Projekte of 1990-\n1991"


def test_files_that_office_keeps_beside_an_open_document_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "~$a.docx").write_bytes(b"the name of a user")
    (tmp_path / "a.docx").write_bytes(docx(paragraph("text")))
    for source in (tmp_path, f"{tmp_path}/*.docx"):
        assert [document.name for document in look_through(source).documents()] == ["a.docx"]


def test_pages_that_are_images_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["one", "", "two", ""]))
    with caplog.at_level(logging.WARNING):
        assert [document.text for document in look_through(tmp_path).documents()] == ["one\n\ntwo"]
    told = f"{tmp_path / 'a.pdf'}: 2 of 4 pages are images without text; OCR reads them, as by ocrmypdf"
    assert [record.message for record in caplog.records] == [told]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_one_document_unless_a_column_is_the_text(suffix: str, tmp_path: Path) -> None:
    separator = {"csv": ";", "tsv": "\t"}[suffix]
    rows = [["名前", "body"], ["山田", '"two\nlines, and ""quotes"""'], [], ["", ""], ["佐藤", "x"], ["short"]]
    (tmp_path / f"a.{suffix}").write_text("\n".join(separator.join(row) for row in rows))
    source = tmp_path / f"a.{suffix}"
    whole = [(document.name, document.text) for document in read_documents(source)]
    assert whole == [(f"a.{suffix}", '名前 | body\n山田 | two lines, and "quotes"\n佐藤 | x\nshort')]
    by_row = [(document.name, document.text) for document in read_documents(source, field="body")]
    lines = [(2, 'two\nlines, and "quotes"'), (5, ""), (6, "x"), (7, "")]
    assert by_row == [(f"a.{suffix}:{line}", text) for line, text in lines]
    with pytest.raises(DataError, match=rf"a\.{suffix} has no field 'other'; its fields are body, 名前"):
        list(read_documents(source, field="other"))


TABLES = {
    "below a title": ("Umsatz\n\nMonat;Summe\nJan;1,5\nFeb;2,5\n", "Umsatz\nMonat | Summe\nJan | 1,5\nFeb | 2,5"),
    "said by Excel": ("sep=|\na,x|b\n1,0|2\n", "a,x | b\n1,0 | 2"),
    "by the header": ('id,note\n1,"a;\nb;\nc;\nd;\ne"\n', "id | note\n1 | a; b; c; d; e"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_delimiter_of_a_table(kind: str, read: Callable[[str, bytes], str]) -> None:
    content, text = TABLES[kind]
    assert read("a.csv", content.encode("utf-8-sig")) == text


def test_cells_far_apart_do_not_fill_the_memory(read: Callable[[str, bytes], str]) -> None:
    """As all cells between them are held by the library, which ends the process for want of memory."""
    far = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    wide = '<row r="2"><c r="XFD2"/></row><row r="1048576"><c><v>1</v></c></row>'
    for more in (far, wide):
        with pytest.raises(DataError, match=r"a\.xlsx has a sheet of 17,179,869,184 cells .*; clear the cells"):
            read("a.xlsx", xlsx({"a": [["x"]]}, more))
    assert read("b.xlsx", xlsx({"a": [["x"]]}, '<row r="1048576" ht="9"/><row r="1048577" ht="9"></row>')) == "a\nx"


def test_hours_of_a_sheet(read: Callable[[str, bytes], str]) -> None:
    assert [sheets._cell(value) for value in (timedelta(hours=30, minutes=5), "PT30H05M00S")] == ["30:05:00"] * 2


# By what the content is.
MISNAMED = {
    "a.pdf": (docx(paragraph("x")), ".docx"),
    "b.pdf": (b"\n<!DOCTYPE html><p>404", ".html"),
    "c.docx": (b"%PDF-1.4", ".pdf"),
    "d.docx": (xlsx({"a": [["x"]]}), ".xlsx"),
    "e.xls": (b"<html><table>", ".html"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_wrong_suffix_is_told(name: str, read: Callable[[str, bytes], str]) -> None:
    content, suffix = MISNAMED[name]
    with pytest.raises(DataError, match=rf"{name} is a \{suffix} file by its content; rename it, or leave it out"):
        read(name, content)


def test_a_spreadsheet_of_either_format_is_read_by_either_suffix(read: Callable[[str, bytes], str]) -> None:
    assert read("a.xls", xlsx({"a": [["x"]]})) == "a\nx"
    with pytest.raises(DataError, match="is protected by a password"):
        read("b.xls", msg({"EncryptedPackage": b"x"}))


def _declares_gigabytes() -> bytes:
    content = bytearray(docx(paragraph("x")))
    # The size of the first part, in the directory at the end of the archive.
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (3_000_000_000).to_bytes(4, "little")
    return bytes(content)


LOCKED_ODF = odf("<office:text/>", "<manifest><file-entry><encryption-data/></file-entry></manifest>")
BAD: dict[str, tuple[bytes, str]] = {
    "scan.pdf": (pdf(["", ""]), r"scan\.pdf has no text; run OCR on it, as by ocrmypdf"),
    "locked.pdf": (pdf(["x"], locked=True), r"locked\.pdf is protected by a password; save it without one"),
    "cut.pdf": (b"%PDF-1.4 cut", r"cut\.pdf is not a PDF file, or damaged; save it again"),
    "locked.docx": (
        msg({"EncryptedPackage": b"x"}),
        r"locked\.docx is protected by a password; save it without one",
    ),
    "old.docx": (
        msg({"WordDocument": b"x"}),
        r"old\.docx is in the format of Office before 2007.*; save it in the newer",
    ),
    "bomb.docx": (_declares_gigabytes(), r"bomb\.docx unpacks to 3,000 MB, and of one file 537 MB are read; split it"),
    "cut.docx": (docx(paragraph("x"))[:-30], r"cut\.docx is damaged or incomplete .*; save it again"),
    "empty.docx": (docx(""), r"empty\.docx has no text; leave it out"),
    "other.docx": (zipped({"a.txt": "x"}), r"other\.docx has no part|other\.docx cannot be read"),
    "xml.odt": (zipped({"content.xml": "<a>"}), r"xml\.odt cannot be read \(its XML is damaged"),
    "locked.odt": (LOCKED_ODF, r"locked\.odt is protected by a password"),
    "locked.epub": (epub(["x"], protected="in/c 0.xhtml"), r"locked\.epub is protected against copying; leave it out"),
    "cut.xlsx": (xlsx({"a": [["x"]]})[:-30], r"cut\.xlsx is damaged or incomplete"),
    "no.xlsx": (zipped({"a.txt": "x"}), r"no\.xlsx cannot be read"),
    "no.rtf": (b"text", r"no\.rtf cannot be read \(it is not RTF\)"),
    "no.msg": (b"text", r"no\.msg cannot be read"),
    "no.eml": (b"\0\1", r"no\.eml cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_document_that_cannot_be_read_is_named_with_the_cure_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(DataError, match=message) as caught:
        look_through(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    looked = look_through(tmp_path, skip_unreadable=True)
    assert [document.text for document in looked.documents()] == ["good"]


def test_scans_are_counted_also_in_the_store(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(pdf([""]))
    (tmp_path / "c.pdf").write_bytes(pdf(["some text"]))
    with pytest.raises(
        DataError, match=r"2 without text, as scans are before OCR: .*a\.pdf has no text, also .*b\.pdf;"
    ):
        look_through(tmp_path)
    store = build_store(
        tmp_path, byte_tokenizer(), skip_unreadable=True, min_tokens=1, cache_dir=tmp_path / "cache", progress=False
    )
    assert store.counts.kept == 1
    assert store.passed_over["textless"]["number"] == 2


def test_an_archive_is_not_unpacked_beyond_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_UNPACKED_BYTES", 2000)
    (tmp_path / "a.docx").write_bytes(docx(paragraph("x" * 3000)))
    (tmp_path / "b.xlsx").write_bytes(xlsx({"a": [["x" * 3000]]}))
    with pytest.raises(DataError, match=r"2 too large unpacked: .*a\.docx unpacks to .*, also .*b\.xlsx"):
        look_through(tmp_path)


def test_a_missing_package_is_told_with_the_command_and_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("skipwise.data.formats.is_installed", lambda module: not module)
    for name in ("a.pdf", "b.PDF", "c.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    command = r"pip install 'skipwise\[documents\]'"
    with pytest.raises(DataError, match=rf"it holds 2 \.pdf, 1 \.xlsx; to read the 2 \.pdf, 1 \.xlsx, run: {command}"):
        look_through(tmp_path)
    with pytest.raises(DataError, match=rf"a\.pdf needs the package pypdfium2, which is missing; run: {command}"):
        look_through(tmp_path / "a.pdf")
    (tmp_path / "d.docx").write_bytes(docx(paragraph("needs none")))
    with caplog.at_level(logging.WARNING):
        looked = look_through(tmp_path)
    assert [document.text for document in looked.documents()] == ["needs none"]
    assert looked.kinds_passed_over == {".pdf": 2, ".xlsx": 1}
    told = "3 files are skipped that the extra documents reads (2 .pdf, 1 .xlsx): pip install 'skipwise[documents]'"
    assert [record.message for record in caplog.records] == [told]


def test_what_takes_long_is_converted_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    def slow(content: bytes, name: str) -> str:
        calls.append(name)
        return "text of\r a document"

    monkeypatch.setattr(converted, "_CACHED_SECONDS", 0)
    monkeypatch.setitem(converted.KINDS, ".pdf", converted.Kind(slow))
    (tmp_path / "a.pdf").write_bytes(b"x")
    for _ in range(2):
        assert [document.text for document in look_through(tmp_path).documents()] == ["text of\r a document"]
    assert len(calls) == 1
    (cached,) = (own_cache / "texts").rglob("*.txt")
    cached.write_bytes(cached.read_bytes()[:-1])
    monkeypatch.setitem(converted.KINDS, ".pdf", converted.Kind(slow))
    assert [document.text for document in look_through(tmp_path).documents()] == ["text of\r a document"]
    # Another version of the converter, and other bytes, are converted anew.
    monkeypatch.setitem(converted.KINDS, ".pdf", converted.Kind(slow, version=2))
    look_through(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"y")
    look_through(tmp_path)
    assert len(calls) == 4


def test_the_version_of_a_converter_is_part_of_the_identity_and_old_kinds_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.docx").write_bytes(docx(paragraph("text")))
    (source,) = find_sources(tmp_path)
    text, document = source.identity()[1:]
    assert text == ["a.txt", 4, hashlib.blake2b(b"text", digest_size=16).hexdigest()]
    assert document[3:] == [".docx 1"]
    kind = converted.KINDS[".docx"]
    monkeypatch.setitem(converted.KINDS, ".docx", converted.Kind(kind.convert, version=2))
    assert source.identity()[2][3:] == [".docx 2"]


def test_documents_of_a_large_source_are_looked_at_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipwise.data.documents.sources._HASHED_BYTES", 10)
    (tmp_path / "a.docx").write_bytes(docx(paragraph("a text")))
    (tmp_path / "b.pdf").write_bytes(pdf(["", ""]))
    with pytest.raises(DataError, match=r"b\.pdf has no text"):
        look_through(tmp_path)
    looked = look_through(tmp_path, skip_unreadable=True)
    assert [document.text for document in looked.documents()] == ["a text"]

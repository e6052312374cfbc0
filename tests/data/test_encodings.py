"""Encodings other than UTF-8: read right and said once, or refused; and UTF-8 as ever."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from corpora import build_store
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_tokenizer

from skipwise.data.documents import find_sources, look_through, read_documents
from skipwise.data.formats import encodings
from skipwise.data.formats.encodings import encoding_of
from skipwise.errors import DataError

TOKENIZER = byte_tokenizer()

JAPANESE = (
    "これは日本語の段落です。東京都千代田区で開催された会議では、来年度の予算について議論が行われ、最終的に承認されました。\n"
    "資料はカタカナとﾊﾝｶｸも含みます。\n"
)
CHINESE = "这是一个中文的段落。我们在北京的会议上讨论了明年的预算，大家都同意了这个方案。他是中国人，不是外国人。\n"
TAIWANESE = "這是一個中文的段落。我們在台北的會議上討論了明年的預算，大家都同意了這個方案。他是台灣人，不是外國人。\n"
KOREAN = "이 문서는 한국어로 된 문서입니다. 우리는 서울에서 회의를 하고 내년의 예산에 대해 논의하였다.\n"
GERMAN = "Die Größe der Straße wurde in München geändert, für alle Bürger übrigens – „natürlich“ gegen Gebühr.\n"
FRENCH = "L’été dernier, la société a présenté ses résultats à l’assemblée générale : près de 3 € par élève.\n"
QUOTES = "“We didn’t know,” she said, “that it wasn’t there.” It’s “done”, isn’t it?\n"

TEXTS = [
    (JAPANESE, "cp932", "Shift-JIS"),
    (JAPANESE.replace("ﾊﾝｶｸ", "漢字"), "euc_jp", "EUC-JP"),
    (CHINESE, "gb18030", "GB18030"),
    (TAIWANESE, "big5", "Big5"),
    (KOREAN, "cp949", "EUC-KR"),
    (GERMAN, "cp1252", "Windows-1252"),
    (FRENCH, "cp1252", "Windows-1252"),
    (QUOTES, "cp1252", "Windows-1252"),
    (JAPANESE, "utf-16", "UTF-16"),
    ("\ufeff" + GERMAN, "utf-16-be", "UTF-16"),
    (JAPANESE, "utf-32", "UTF-32"),
    ("\ufeff" + GERMAN, "utf-32-be", "UTF-32"),
    (JAPANESE.replace("ﾊﾝｶｸ", "漢字"), "iso2022_jp", "ISO-2022-JP"),
]
IDS = [f"{codec}-{i}" for i, (_, codec, _) in enumerate(TEXTS)]


@pytest.mark.parametrize("suffix", ["txt", "html", "csv", "jsonl", "txt.gz"])
@pytest.mark.parametrize(("text", "codec", "name"), TEXTS, ids=IDS)
def test_an_encoding_is_read_as_utf_8_would_be_and_is_said_once(
    text: str, codec: str, name: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = text.removeprefix("\ufeff")
    marked = text[: len(text) - len(bare)]
    content = {
        "html": f"<html><body><p>plain</p><p>{bare}</p></body></html>",
        "csv": f"name,text\r\nplain,ascii\r\na,{json.dumps(bare, ensure_ascii=False)}\r\n".replace("\\n", "\n").replace(
            '\\"', '""'
        ),
        "jsonl": "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in ("plain", bare)),
    }.get(suffix, f"plain\r\n{bare}")
    compress = gzip.compress if suffix.endswith("gz") else bytes
    file = f"a.{suffix}"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / file).write_bytes(compress((marked + content).encode(codec)))
    (tmp_path / "utf-8").mkdir()
    (tmp_path / "utf-8" / file).write_bytes(compress(content.encode()))
    with caplog.at_level(logging.WARNING):
        found = [document.text for document in look_through(tmp_path / "own").documents()]
    assert found == [document.text for document in look_through(tmp_path / "utf-8").documents()]
    assert " ".join(found[-1].split()).endswith(" ".join(bare.split()))
    told = f"1 file read as {name}: {file}; if this is wrong, convert them to UTF-8"
    assert [record.message for record in caplog.records] == [told]


def test_what_is_assumed_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_bytes(JAPANESE.encode("cp932"))
    (tmp_path / "g.md").write_bytes(GERMAN.encode("cp1252"))
    (tmp_path / "u.md").write_text(JAPANESE)
    told = "4 files read as Shift-JIS, 1 as Windows-1252: 0.txt, 1.txt, 2.txt and 2 more"
    told += "; if this is wrong, convert them to UTF-8"
    with caplog.at_level(logging.WARNING):
        looked = look_through(tmp_path)
        assert len(list(looked.documents())) == 6
    assert [record.message for record in caplog.records] == [told]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [document.text for document in read_documents(tmp_path)] == [
            document.text for document in looked.documents()
        ]
    assert [record.message for record in caplog.records] == [told]


# Bytes, and why there is no clear evidence of their encoding.
UNCLEAR = {
    "one letter": b"caf\xe9 and no more",
    "Polish": "Zażółć gęślą jaźń, proszę państwa, będzie świetnie i pięknie w całej Łodzi.".encode("cp1250"),
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy, řekl ještě někdo další včera.".encode("cp1250"),
    "Russian": "Это обычный русский текст, который записан в кодировке Windows.".encode("cp1251"),
    "Greek": "Αυτό είναι ένα απλό ελληνικό κείμενο, όπως πολλά άλλα.".encode("cp1253"),
    "Turkish": "Şişli'de yaşayan çocuğun ağabeyi bugün işe gitmiş, dağa çıkmış.".encode("cp1254"),
    "DOS": GERMAN.replace("–", "-").replace("„", '"').replace("“", '"').encode("cp850"),
    "Mac": FRENCH.replace("€", "$").encode("mac_roman"),
    "noise": np.random.default_rng(0).integers(1, 256, 3000, np.uint8).tobytes().replace(b"\n", b" "),
    "UTF-8 but for a byte": f"{FRENCH * 5}".encode() + b"caf\xe9 \xe9t\xe9 \xe9l\xe8ve",
    "UTF-8 with quotes but for a line": "It isn’t what we didn’t know.\n".encode() * 3 + b"caf\xe9 \xe9t\xe9\n",
    "a line that begins like UTF-16": b"plain\n\xff\xfea\n",
    "UTF-16 that ends in half a letter": JAPANESE.encode("utf-16") + b"\x30",
}


@pytest.mark.parametrize("kind", UNCLEAR)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_without_clear_evidence_a_file_is_refused_with_the_cure(kind: str, suffix: str, tmp_path: Path) -> None:
    content = UNCLEAR[kind]
    if suffix == "jsonl" and "UTF" not in kind:
        content = b'{"text": "' + content.replace(b'"', b" ").replace(b"\\", b" ") + b'"}\n'
    (tmp_path / f"a.{suffix}").write_bytes(content)
    cure = r"convert it to UTF-8, as by iconv -f ITS-ENCODING -t UTF-8"
    with pytest.raises(DataError, match=rf"a\.{suffix}:\d+ is not UTF-|{cure}|not UTF-8: ") as caught:
        look_through(tmp_path)
    assert "is not UTF-" in str(caught.value)


def test_evidence_of_two_encodings_is_evidence_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoding_of(GERMAN.encode("cp1252")) == "cp1252"
    monkeypatch.setattr(encodings, "_EVIDENCE", dict.fromkeys(("cp1252", "cp1250"), lambda text, codec: True))
    assert encoding_of(GERMAN.encode("cp1252")) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_what_is_utf_8_is_taken_for_nothing_else(text: str) -> None:
    assert encoding_of(text.encode(), "cp932") == "utf-8"


@given(st.sampled_from(TEXTS[:8]), st.integers(0, 40), st.integers(1, 200))
def test_a_part_of_a_text_is_read_right_or_not_at_all(kind: tuple[str, str, str], begin: int, length: int) -> None:
    text, codec, _ = kind
    part = text[begin : begin + length]
    if part.isascii():
        return
    found = encoding_of(part.encode(codec))
    assert found is None or part.encode(codec).decode(found) == part


def test_a_web_page_says_its_encoding(tmp_path: Path) -> None:
    polish = UNCLEAR["Polish"].decode("cp1250")
    for i, declared in enumerate(
        ['<meta charset="windows-1250">', "<meta http-equiv=x content='text/html; charset=cp1250'>"]
    ):
        (tmp_path / f"{i}.html").write_bytes(f"<html><head>{declared}</head>\n<body>{polish}".encode("cp1250"))
    (tmp_path / "2.html").write_bytes(b'<meta charset="utf-8">\n' + JAPANESE.encode("cp932"))
    # What can be UTF-8 is UTF-8, whatever it says; and what it says is not taken against its bytes.
    (tmp_path / "3.html").write_text(f'<meta charset="iso-8859-1">{polish}', encoding="utf-8")
    (tmp_path / "4.html").write_bytes(b'<meta charset="shift_jis">\n' + GERMAN.encode("cp1252"))
    expected = [polish, polish, " ".join(JAPANESE.split("\n")).strip(), polish, GERMAN.strip()]
    assert [document.text for document in look_through(tmp_path).documents()] == expected


def test_the_encoding_is_part_of_the_key_and_utf_8_has_the_key_it_always_had(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(JAPANESE)
    (tmp_path / "b.txt").write_bytes(JAPANESE.encode("cp932"))
    looked = look_through(tmp_path)
    plain, other = looked.identities[0][1:]
    assert (len(plain), other[3:]) == (3, ["as cp932"])
    # Known as long as the source is; and in parts of it.
    (source,) = looked.sources
    assert source.identity() == looked.identities[0]
    assert source.part(1, 2).identity()[1] == other  # pyright: ignore[reportAttributeAccessIssue]
    assert find_sources(tmp_path)[0].identity()[1] == plain


def test_a_store_of_another_encoding_has_the_tokens_of_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipwise.data.corpus.building._PART_BYTES", 1)
    for folder, codec in (("a", "utf-8"), ("b", "cp932")):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.txt").write_bytes(f"{i} {JAPANESE}".encode(codec))
    stores = [
        build_store(tmp_path / folder, TOKENIZER, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)
        for folder in "ab"
    ]
    for i in range(3):
        np.testing.assert_array_equal(stores[0].document(i), stores[1].document(i))


def test_of_a_large_source_the_beginning_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipwise.data.documents.sources._HASHED_BYTES", 4000)
    monkeypatch.setattr("skipwise.data.documents.sources._SAMPLED_BYTES", 1000)
    lines = "".join(json.dumps({"text": f"{i} {JAPANESE}"}, ensure_ascii=False) + "\n" for i in range(50))
    (tmp_path / "a.jsonl").write_bytes(lines.encode("cp932"))
    (tmp_path / "b.txt").write_bytes((GERMAN * 50).encode("utf-16"))
    # What is ASCII as far as it is looked at is not taken for something later, without having been said.
    (tmp_path / "c.txt").write_bytes(b"plain " * 400 + b"\n" + GERMAN.encode("cp1252"))
    looked = look_through(tmp_path)
    with pytest.raises(DataError, match=r"c\.txt:2 is not UTF-8"):
        list(looked.documents())
    looked = look_through(tmp_path, skip_unreadable=True)
    texts = [document.text for document in looked.documents()]
    assert texts == [f"{i} {JAPANESE}" for i in range(50)] + [GERMAN * 50]
    assert [entry[-1] for entry in looked.identities[0][1:3]] == ["as cp932", "as utf-16"]


def test_a_line_that_is_not_like_the_others_is_named(tmp_path: Path) -> None:
    good = json.dumps({"text": JAPANESE}, ensure_ascii=False).encode("cp932") + b"\n"
    (tmp_path / "a.jsonl").write_bytes(good * 2000 + b'{"text": "\x85"}\n' + good)
    with pytest.raises(
        DataError, match=r"a\.jsonl:2001 is not Shift-JIS \(byte 11 .* 0x85\), as what stands before it is"
    ):
        look_through(tmp_path)
    assert len(list(look_through(tmp_path, skip_unreadable=True).documents())) == 2001

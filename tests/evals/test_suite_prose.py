"""Which sentences and headings are told in text of other languages than English."""

import textwrap

import pytest

from skipwise.evals.languages import LANGUAGES
from skipwise.evals.suite.prose import halves, headings, margin_of, paragraphs, quotable_sentences, without_rulings

from .test_languages import CHINESE, GERMAN, JAPANESE, all_sentences


def test_german_lines_that_begin_with_a_noun_are_no_sentences_of_their_own() -> None:
    known = all_sentences("de")[:30]
    text = "\n".join(textwrap.wrap(" ".join(known), 60))
    assert any(line[0].isupper() and not line.startswith(("Die", "Das", "Der")) for line in text.splitlines())
    assert [quote.text for quote in quotable_sentences(text, GERMAN, margin_of(text))] == known


def test_abbreviations_end_no_sentence() -> None:
    known = [
        "Das Paket liegt in dem Archiv der alten bzw. der neuen Ausgabe und wird täglich geprüft.",
        "Die Namen der Dateien, z. B. Berichte, stehen in der Liste am Ende des ersten Kapitels.",
    ]
    assert [quote.text for quote in quotable_sentences(" ".join(known), GERMAN)] == known[:1]
    known = ["Die Größe des Pakets beträgt 28 Byte für die alte bzw. 48 Byte für die neue Art von Adressen im Netz."]
    assert [quote.text for quote in quotable_sentences(known[0], GERMAN)] == known


def test_korean_sentences_of_few_long_words_are_quoted() -> None:
    known = "모든 인간은 태어날 때부터 자유로우며 존엄과 권리에 있어 동등하다."
    assert [quote.text for quote in quotable_sentences(f"{known} 그것은 참으로 좋은 일이다.", LANGUAGES["ko"])] == [
        known
    ]


def test_a_full_width_mark_ends_a_sentence_whatever_follows() -> None:
    known = [
        "这个命令可以用来合并多个文件，在处理大量的文档时是很有用的。",
        "pdftk 软件包中的命令也同样可以用来处理这些文件和文档。",
    ]
    assert [quote.text for quote in quotable_sentences("".join(known), CHINESE)] == known[:1]


def test_lines_of_their_own_are_not_joined() -> None:
    lines = [*all_sentences("ja")[:40], "設定の概要", "次の表を見てください"]
    text = "\n".join(lines)
    assert [text[start:end] for start, end in paragraphs(text, JAPANESE, margin_of(text))] == lines


def test_headings_of_unspaced_scripts_are_found() -> None:
    below = "".join(all_sentences("zh")[:2])
    text = f"系统配置的基本步骤\n{below}\n第二章 网络设置\n\n{below}\n更多\n短行\n{below}"
    assert [quote.text for quote in headings(text, CHINESE)] == ["系统配置的基本步骤", "第二章 网络设置"]


@pytest.mark.parametrize(
    ("sentence", "first"),
    [
        ("以上はシェルのリディレクションとともによく使われます。", "以上はシェルの"),
        ("Debian システムをよく理解するまでは、用心として避けるべきです。", "Debian システムをよく"),
        ("当使用非 Debian 的档案库的时候，你应该检查它们的用途和可信度。", "当使用非 Debian 的档案库的时候，"),
        ("委员会在二楼开会并且一致同意不对任何现有的规章制度作出改变。", "委员会在二楼开会并且一致同意"),
    ],
)
def test_sentences_without_spaces_are_halved_between_words(sentence: str, first: str) -> None:
    found, rest = halves(sentence)
    assert found + rest == sentence[:-1]
    assert found == first


def test_rulings_alone_are_left_out() -> None:
    table = "表1\n  +----+----+\n| 名前 | 値 |\n|----|:---|\n│ 甲 ─ 乙 │\n━━━━━━\n--\n...\n本文。\n"
    assert without_rulings(table) == "表1\n| 名前 | 値 |\n│ 甲 ─ 乙 │\n--\n本文。\n"

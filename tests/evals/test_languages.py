"""What evaluations hide and ask is in the language of the documents, and English suites are as they were."""

import logging
import re
import textwrap
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipwise.data.documents import Document
from skipwise.data.language import language_of
from skipwise.errors import ConfigError
from skipwise.evals.evaluation import _say_what_asks_in_english
from skipwise.evals.languages import ENGLISH, LANGUAGES, Language
from skipwise.evals.prompts import string_match_all
from skipwise.evals.ruler.niah import NeedleSingle1, NeedleSingle2
from skipwise.evals.suite import Item, SuiteFolder, build_suite
from skipwise.evals.suite.item import encode_item
from skipwise.evals.suite.library import Collection, Library
from skipwise.evals.suite.prose import squeezed
from skipwise.evals.suite.task import begins_with
from skipwise.evals.tasks.needles import KINDS, NeedleGrid
from skipwise.evals.tasks.passkey import Passkey

from .suite_documents import prose, write_documents
from .tiny import ByteTokenizer, Oracle, Utf8Tokenizer, context_of

JAPANESE, CHINESE, GERMAN = (LANGUAGES[code] for code in ("ja", "zh", "de"))
OTHERS = [language for language in LANGUAGES.values() if language is not ENGLISH]
RULING = "    +--------+------+\n"
# Beginnings and ends, with what stands between them, and the width that lines break off at.
PARTS = {
    "ja": (
        "この装置は,新しい倉庫は,北側の入口は,古い図書館は,市の博物館は,中央の広場は,二階の会議室は,駅前の食堂は",
        "川に近い場所にあり、,去年の春に改修され、,静かな通りに面し、,多くの人に親しまれ、,山のふもとに位置し、,高い塀に囲まれ、",
        "毎朝早くから,週末になると,夜の間だけ,雨の日には,夏の終わりに,年に一度だけ,祭りの前に,昼を過ぎると",
        "係員が点検しています。,長い列ができています。,明かりがともされます。,音楽が聞こえてきます。,扉が大きく開かれます。,人が集まってきます。",
        "",
        40,
    ),
    "zh": (
        "这台设备,新建的仓库,北边的入口,古老的图书馆,城市博物馆,中央广场,二楼的会议室,车站前的食堂",
        "位于河边的街道上，,去年春天翻修过，,面对着宽阔的马路，,受到居民的喜爱，,坐落在山脚下，,被高墙围了起来，",
        "每天清晨都,周末常常会,到了夜晚就,下雨天总是,夏末的时候,每年有一次,节日之前都,午后通常会",
        "有工作人员检查。,排起很长的队伍。,亮起明亮的灯光。,传来悠扬的音乐。,打开两扇大门。,聚集许多的人。",
        "",
        40,
    ),
    "de": (
        "Die Anlage,Das neue Lager,Der nördliche Eingang,Die alte Bücherei,Das Museum,Der Platz,Die Halle,Der Turm",
        "am Ufer des Flusses,in der stillen Straße,nahe dem Bahnhof,hinter dem Rathaus,vor der Mauer,an der Brücke",
        "wird jeden Morgen,ist am Wochenende,bleibt im Winter,wird nach dem Regen,ist im Sommer,wird vor dem Fest",
        "von den Wärtern geprüft.,für alle Gäste geöffnet.,mit Lampen hell beleuchtet.,durch ein Tor verschlossen.,"
        "mit Blumen reich geschmückt.,von Kindern gern besucht.",
        " ",
        72,
    ),
    "fr": (
        "La machine,La réserve,La porte du nord,La vieille bibliothèque,La galerie,La grande place,La halle,La tour",
        "au bord de la rivière,dans la rue tranquille,près de la gare,derrière la mairie,devant le mur,sous le pont",
        "est chaque matin,reste tout l’hiver,sera après la pluie,semble pendant l’été,était avant la fête,est le soir",
        "contrôlée par deux gardiens.,ouverte à tous les visiteurs.,éclairée par des lampes.,fermée par une porte.,"
        "ornée de fleurs rouges.,appréciée de tous les enfants.,gardée par un vieux chien.,couverte de feuilles.",
        " ",
        72,
    ),
    "es": (
        "La máquina,La tienda,La puerta del norte,La vieja biblioteca,La galería,La plaza mayor,La sala,La torre",
        "a la orilla del río,en la calle tranquila,cerca de la estación,detrás del ayuntamiento,delante del muro,"
        "bajo el gran puente",
        "se queda cada mañana,sigue todo el invierno,aparece después de la lluvia,parece durante el verano,"
        "estaba antes de la fiesta,está por la noche",
        "vigilada por dos guardias.,abierta a todos los visitantes.,iluminada por varias lámparas.,"
        "cerrada con una puerta.,adornada con flores rojas.,llena de niños alegres.,guardada por un viejo perro.,"
        "cubierta de hojas secas.",
        " ",
        72,
    ),
    "ko": (
        "이 장치는,새 창고는,북쪽 입구는,오래된 도서관은,시립 박물관은,중앙 광장은,이층 회의실은,역 앞 식당은",
        "강 가까이에 있고,지난 봄에 고쳤고,조용한 거리에 있고,많은 사람에게 사랑받고,"
        "산기슭에 있고,높은 담에 둘러싸여 있고",
        "매일 아침 일찍부터,주말이 되면 언제나,밤이 깊어지는 동안,비가 오는 날에는,여름이 끝날 무렵에,일 년에 한 번만",
        "담당자 두 사람이 꼼꼼하게 점검합니다.,줄이 길게 늘어서는 일이 많습니다.,밝은 불이 하나둘씩 켜지기 시작합니다.,"
        "음악 소리가 멀리서 들려오곤 합니다.,크고 무거운 문이 활짝 열립니다.,많은 사람이 이곳으로 모여듭니다.",
        " ",
        60,
    ),
}


def all_sentences(code: str) -> list[str]:
    """Sentences no two of which have a half in common."""
    *parts, space, _ = PARTS[code]
    one, two, three, four = (part.split(",") for part in parts)
    halves = zip(product(one, two), list(product(three, four))[::-1], strict=False)
    return [space.join((*first, *second)) for first, second in halves]


def written(code: str, folder: Path, *, wrapped: bool) -> set[str]:
    """Writes four documents with tables, and returns their sentences."""
    rng = np.random.default_rng(0)
    known = all_sentences(code)
    order = [known[place] for place in rng.permutation(len(known))]
    space, width = PARTS[code][4:]
    documents = []
    for number in range(4):
        own = order[number::4]
        blocks = [space.join(own[start : start + 3]) for start in range(0, len(own), 3)]
        if wrapped:
            # Of unspaced scripts, `textwrap` breaks the one long word at the width.
            blocks = ["\n".join(textwrap.wrap(block, width, break_on_hyphens=False)) for block in blocks]
        documents.append(Document(name=f"{number}.txt", text=f"\n\n{RULING}\n".join(blocks)))
    write_documents(folder, documents)
    return set(known)


@pytest.fixture(
    scope="module",
    params=[("ja", True), ("zh", False), ("de", True), ("fr", True), ("es", False), ("ko", True)],
    ids=str,
)
def built(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Language, SuiteFolder, set[str]]:
    code, wrapped = request.param
    root = tmp_path_factory.mktemp(code)
    known = written(code, root / "documents", wrapped=wrapped)
    settings = {"lengths": [1500], "num_items": 4, "progress": False}
    return LANGUAGES[code], build_suite(root / "documents", ByteTokenizer(), root / "suite", **settings), known


def items_of(suite: SuiteFolder) -> list[Item]:
    return [item for kind in suite.kinds for item in suite.items(1500, kind)]


def test_questions_and_instructions_are_in_the_language_of_the_documents(built) -> None:
    language, suite, _ = built
    assert suite.index["languages"] == [language.code]
    assert "languages" not in suite.index["documents"]
    assert f"planted sentences are in {language.name}." in (suite.folder / "README.md").read_text()
    for item in items_of(suite):
        assert 0.98 * 1500 <= item.num_tokens <= 1500
        assert item.context.startswith(language.suite.instruction)
        assert language_of(item.question) == language.code
        # Only letters of documents and choices are Latin in Japanese and Chinese.
        assert language.space or not re.findall("[A-Za-z]{2}", item.prompt)
        assert RULING.strip() not in item.context


def test_a_planted_fact_is_a_sentence_of_the_language_with_an_unheard_name(built) -> None:
    language, suite, known = built
    everything = " ".join(known)
    for item in suite.items(1500, "fact"):
        beginning = item.question.splitlines()[-1].lstrip("「“„«\u00a0")
        (template,) = [one for one in language.suite.facts if _fits(one, beginning)]
        before, between = template.split("{number}")[0].split("{name}")
        names = re.findall(rf"{before}(\w+?){between}(\d{{6}})", item.context)
        assert len(set(names)) == len({name for name, _ in names}) == 4
        name = beginning.removeprefix(before).removesuffix(between.rstrip(" "))
        assert (name, item.answer.strip()) in names
        assert not any(name in everything for name, _ in names)
        if language is JAPANESE:
            assert all(re.fullmatch("[ァ-ヴー]+", name) for name, _ in names)
        assert item.answer == language.space + item.answer.strip()
        # It stands at the end of a sentence or line, not inside a word.
        above = item.context[: item.context.index(f"{beginning}{item.answer}")]
        assert above.endswith(("\n", "。", ". "))


def _fits(template: str, beginning: str) -> bool:
    before, after = template.split("{number}")[0].rstrip(" ").split("{name}")
    return beginning.startswith(before) and beginning.endswith(after)


def test_quotes_are_whole_sentences_also_where_lines_break_inside_words(built) -> None:
    language, suite, known = built
    for item in suite.items(1500, "continue"):
        first = item.question.splitlines()[-1].lstrip("「“„«\u00a0")
        assert first + item.answer + ("。" if not language.space else ".") in known
        assert squeezed(first + item.answer) in squeezed(item.context)
    for item in suite.items(1500, "which_document"):
        assert item.question.splitlines()[1].strip("「」“”„«»\u00a0") in known
        # The label follows its heading, with a space only where the language has one.
        heading = language.suite.document.format(label=item.answer.strip())
        assert heading in item.context
        assert item.choices == [f"{language.space}{choice.strip()}" for choice in item.choices]
    for item in suite.items(1500, "order"):
        first, second = (line.split(": ", 1)[1] for line in item.question.splitlines()[1:3])
        assert {first, second} <= known
        context = squeezed(item.context)
        assert item.answer.strip() == "BA"[context.index(squeezed(first)) < context.index(squeezed(second))]


def test_an_english_suite_is_as_earlier_versions_built_it(tmp_path: Path) -> None:
    documents = [prose(f"{n}.md", 60 + 10 * n, with_headings=n % 2 == 0) for n in range(6)]
    write_documents(tmp_path / "documents", documents)
    settings: dict[str, Any] = {"lengths": [1600], "num_items": 4, "progress": False}
    # The invented words are of no known language.
    built = build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "suite", language="en", **settings)
    # Of the suite that the last version without languages builds: it covers every byte of every file.
    assert built.sha256 == "daa01f43977f2241a0241b607bbb8564eb53831b938360a368cb07146ddb9ddf"


def test_a_language_can_be_chosen(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", [prose(f"{n}.md", 60) for n in range(2)])
    settings: dict[str, Any] = {"lengths": [1300], "num_items": 1, "kinds": ["fact"], "progress": False}
    built = build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "suite", language="fr", **settings)
    assert built.index["languages"] == ["fr"]
    assert built.items(1300, "fact")[0].question.startswith("Une phrase du texte")
    with pytest.raises(
        ConfigError, match=r"language is 'jp'; .*there are templates in en \(English\), .*ja \(Japanese"
    ):
        build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "other", language="jp", **settings)


RUSSIAN = "Эта книга рассказывает, как устроена система и как ей пользоваться каждый день. "
ENGLISH_TEXT = "This book tells how the system is made and how to use it every day of the week. "


@pytest.mark.parametrize(
    ("texts", "chosen", "said"),
    [
        ([ENGLISH_TEXT * 9], "en", None),
        (["".join(all_sentences("ja"))], "ja", None),
        (
            [RUSSIAN * 9],
            "en",
            r"in a language without templates \(100% ru\); questions are in English",
        ),
        (["0x00 0xff 12 13 14 " * 9], "en", "the language of the documents cannot be told; .* are in English"),
        (
            ["".join(all_sentences("ja")) * 2, ENGLISH_TEXT * 10],
            "ja",
            r"several languages \(\d\d% ja and \d\d% en\); each question is in the language of its text \(Jap",
        ),
    ],
)
def test_what_is_not_asked_in_the_documents_language_is_said_in_one_line(texts, chosen, said, caplog) -> None:
    caplog.set_level(logging.WARNING, "skipwise")
    collection = Collection([Document(name=str(number), text=text) for number, text in enumerate(texts)])
    assert collection.libraries[0].language is LANGUAGES[chosen]
    assert (collection.shares is None) == (said is None)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert said is None or re.search(said, messages[0])


def mixed(folder: Path) -> dict[str, str]:
    """Writes four documents in Japanese and four in English, and returns the language of each."""
    written("ja", folder, wrapped=False)
    write_documents(folder, [Document(name=f"{n}.md", text=english_text(n)) for n in range(4)])
    return {path.name: "ja" if path.suffix == ".txt" else "en" for path in folder.iterdir()}


def english_text(number: int) -> str:
    """Twelve sentences of which no half stands elsewhere."""
    one = ("the old harbor", "our new library", "the stone bridge", "a small museum", "the night train")[number:][:1]
    two = ("was open to the public", "was closed for the winter", "was painted in bright colors", "was sold at last")
    three = ("after the long rain of the spring", "before the first days of the fair", "when all the guests had left")
    said = [
        f"In the year {1900 + 40 * number + place} {a} {b} {c}, as {5100 + 40 * number + place} people remember well."
        for place, (a, b, c) in enumerate(product(one, two, three))
    ]
    return "\n\n".join(" ".join(said[start : start + 4]) for start in range(0, len(said), 4))


def test_of_documents_in_two_languages_each_question_is_in_that_of_its_text(tmp_path: Path, caplog) -> None:
    languages = mixed(tmp_path / "documents")
    settings: dict[str, Any] = {"lengths": [1500], "num_items": 8, "progress": False}
    built = build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "suite", **settings)
    asked = set()
    for kind in built.kinds:
        for item in built.items(1500, kind):
            (code,) = {languages[name] for name in item.documents}
            assert item.context.startswith(LANGUAGES[code].suite.instruction)
            assert language_of(item.question) == code
            asked.add((kind, code))
    assert asked == set(product(built.kinds, ("ja", "en")))
    assert set(built.index["languages"]) == set(built.index["documents"]["languages"]) == {"ja", "en"}
    assert "each in the language of its text" in (built.folder / "README.md").read_text()
    assert len([each for each in caplog.messages if "several languages" in each]) == 1
    # All in one, where one is chosen.
    settings |= {"num_items": 2, "kinds": ["fact"], "language": "en"}
    chosen = build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "chosen", **settings)
    assert {item.question[:12] for item in chosen.items(1500, "fact")} == {"One sentence"}
    assert "languages" not in chosen.index


def test_a_suite_says_that_its_documents_are_in_another_language(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", [Document(name="a.txt", text=RUSSIAN * 60)])
    settings: dict[str, Any] = {"lengths": [1300], "num_items": 1, "kinds": ["fact"], "progress": False}
    built = build_suite(tmp_path / "documents", ByteTokenizer(), tmp_path / "suite", **settings)
    assert (built.index["languages"], built.index["documents"]["languages"]) == (["en"], {"ru": 1.0})
    said = "sentences are in English.\nThe languages of the documents: ru (100%)."
    assert said in (built.folder / "README.md").read_text()


def test_a_name_with_a_particle_is_heard() -> None:
    library = Library([Document(name="a", text="가라간의 창고는 강가에 있다.")], LANGUAGES["ko"])
    assert library.has_word("가라간")
    assert not library.has_word("가라덴")


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_templates_are_complete_and_in_their_language(language: Language) -> None:
    passkey, needles, suite = language.passkey, language.needles, language.suite
    assert passkey.needle.count("{key}") == 2
    assert all(fact.count("{name}") == fact.count("{number}") == 1 for fact in suite.facts)
    assert len(suite.facts) == len(ENGLISH.suite.facts) == 8
    assert needles.num_keys == len({needles.key_of(number) for number in range(needles.num_keys)}) > 600
    spoken = [
        passkey.instruction,
        passkey.filler,
        passkey.needle.format(key=12345) + passkey.question,
        needles.instruction + needles.needle.format(key=needles.key_of(7), value=1),
        needles.needle_of_several.format(key=needles.key_of(8), value=1)
        + needles.question.format(key=needles.key_of(9)),
        needles.question_values.format(key=needles.key_of(40), count=4),
        needles.question_keys.format(keys=language.listed([needles.key_of(80), needles.key_of(123)])),
        suite.instruction,
        suite.repeated.format(beginning=""),
        suite.which.format(labels=language.listed(list("BCD")), sentence=""),
        suite.order_lines.format(lines=""),
        suite.order_sentences.format(lines=""),
        *(fact.format(name="X", number=1) for fact in suite.facts),
    ]
    assert {language_of(text) for text in spoken} <= {language.code, None}
    assert language_of(" ".join(spoken)) == language.code
    # No half is forgotten in English: in scripts of their own, no Latin word is left.
    assert (
        language_of("".join(spoken)) == "en"
        or language.code in "defres"
        or not re.search("[A-Za-z]{2}", "".join(spoken))
    )


def text_of(ids: list[int], errors: str = "strict") -> str:
    return bytes(token for token in ids if token < 256).decode(errors=errors)


@pytest.mark.parametrize("language", OTHERS, ids=[language.code for language in OTHERS])
def test_needles_and_passkeys_are_hidden_and_asked_in_a_language(language: Language) -> None:
    context = context_of(Oracle(lambda _: ""), Utf8Tokenizer())
    task = Passkey(language=language.code)
    prompt = task.prompt(context, 1500, 3)
    assert len(prompt.prompt_ids) + len(prompt.answer_ids) == 1500
    (key,) = prompt.references
    assert text_of(prompt.prompt_ids).startswith(language.passkey.instruction)
    assert language.passkey.needle.format(key=key) in text_of(prompt.prompt_ids)
    assert text_of(prompt.prompt_ids + prompt.answer_ids).endswith(f"{language.passkey.question}{language.space}{key}")
    assert task.spoken(context) == {"language": language.code}
    for kind in KINDS:
        prompt = NeedleGrid(language=language.code, trials=5).prompt(context, kind, 2500, 1)
        read = text_of(prompt.prompt_ids)
        assert len(prompt.prompt_ids) == 2500 - 128
        assert read.startswith(language.needles.instruction)
        for key, value in zip(prompt.details["keys"], prompt.references, strict=True):
            assert f"{key}" in read.splitlines()[-1]
            assert sum(key in line and value in line for line in read.splitlines()) == 1


def test_hidden_lines_are_in_the_language_of_the_documents_that_they_hide_in() -> None:
    japanese = "".join(all_sentences("ja"))
    documents = [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in (japanese, japanese)]
    for task, instruction in (
        (Passkey(haystack="documents"), JAPANESE.passkey.instruction),
        (Passkey(haystack="documents", language="en"), ENGLISH.passkey.instruction),
        (Passkey(), ENGLISH.passkey.instruction),
    ):
        context = context_of(Oracle(lambda _: ""), Utf8Tokenizer(), documents=documents)
        prompt = task.prompt(context, 1500, 0)
        # Prompts in English are as those of earlier versions, which may cut a character of the documents.
        assert text_of(prompt.prompt_ids, "strict" if task.language is None else "ignore").startswith(instruction)
        assert task.spoken(context) == ({"language": "ja"} if instruction is JAPANESE.passkey.instruction else {})


def test_ruler_says_that_it_asks_in_english(caplog) -> None:
    caplog.set_level(logging.WARNING, "skipwise")
    for text, said in (("".join(all_sentences("ja")), 1), (ENGLISH_TEXT * 30, 0)):
        documents = [np.frombuffer(text.encode(), np.uint8).astype(np.int64)]
        context = context_of(Oracle(lambda _: ""), Utf8Tokenizer(), documents=documents)
        tasks: list[Any] = [NeedleSingle2(), NeedleSingle1()]
        _say_what_asks_in_english(context, tasks)
        assert len(caplog.messages) == said
        assert not said or "that ruler_niah_single_2 hide needles in are in another language (ja)" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("task", [Passkey, NeedleGrid])
def test_an_unknown_language_is_refused(task: type) -> None:
    with pytest.raises(ConfigError, match="language is 'xx'; there are templates in en"):
        task(language="xx")


def full_width(text: str) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


@pytest.mark.parametrize(
    ("output", "reference", "found"),
    [
        (full_width("438134") + "です。」", "438134", True),
        ("は438134。", "438134", True),
        ("438134です", full_width("438134"), True),
        (full_width("438135"), "438134", False),
    ],
)
def test_a_number_is_found_however_it_is_written(output: str, reference: str, found: bool) -> None:
    assert string_match_all(output, [reference]) == found


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("Debianシステムを使います。」", True),
        ("Debian システム を使います", True),
        (full_width("Debian") + " システムを\n使います。", True),
        ("Debian システムは使います", False),
    ],
)
def test_a_continuation_is_found_however_it_is_spelled(output: str, right: bool) -> None:
    assert begins_with(output, ["Debian システムを使います"]) == right
    # Spaces between words that have them still count.
    assert not begins_with("the oldharbor", ["the old harbor"])


class MergingTokenizer(ByteTokenizer):
    """Writes a whole word in one token: `使用` is 256 + 1."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for part in re.split("(使用)", text):
            ids += [257] if part == "使用" else list(part.encode())
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join("使用".encode() if token == 257 else bytes([token]) for token in ids).decode()


def test_what_a_tokenizer_merges_with_an_answer_belongs_to_it() -> None:
    encoded = encode_item(MergingTokenizer(), "文。\n“我们使", ["用新的设备", "用旧的设备"])
    assert encoded.is_merged
    assert MergingTokenizer().decode(encoded.prompt_ids) == "文。\n“我们"
    assert [MergingTokenizer().decode(ids) for ids in encoded.answers] == ["使用新的设备", "使用旧的设备"]
    assert not encode_item(MergingTokenizer(), "文。\n“我们", ["使用新的设备"]).is_merged


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.code)
def test_what_the_answer_follows_stands_once_in_the_question(language: Language) -> None:
    """After `番号は何ですか。番号は` a model copies what followed the words the first time."""
    asked = [language.passkey.question, language.needles.question.format(key="K")]
    for question in asked:
        *_, end = re.split(r"[.?!。？]\s*", question)
        assert question.casefold().count(end.strip().casefold()) == 1

"""Suites that a person could answer, of exact lengths, the same every time, and refused once changed."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_pages.formats import SUITE_FIELDS

from skipwise.data.documents import Document
from skipwise.errors import ConfigError, DataError
from skipwise.evals.suite import SuiteFolder, build_suite, folder
from skipwise.evals.suite import build as build_module
from skipwise.evals.suite.item import SLACK_TOKENS, Item
from skipwise.evals.suite.prose import quotable_sentences

from .suite_documents import prose, sentence, write_documents
from .tiny import ByteTokenizer

LENGTHS = [1600, 4000]
ITEMS = 8


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some long enough for every length, some to be joined, two thirds with headings."""
    path = tmp_path_factory.mktemp("documents")
    sizes = [20, 24, 28, 32, 36, 40, 40, 40, 40, 100, 120, 160]
    write_documents(
        path, [prose(f"report-{number}.md", size, with_headings=number % 3 > 0) for number, size in enumerate(sizes)]
    )
    return path


def build(documents: Path, out: Path, **changes) -> SuiteFolder:
    settings = {"lengths": LENGTHS, "num_items": ITEMS, "progress": False}
    return build_suite(documents, ByteTokenizer(), out, **(settings | changes))


@pytest.fixture(scope="module")
def suite(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> SuiteFolder:
    return build(documents, tmp_path_factory.mktemp("suites") / "suite")


def all_items(suite: SuiteFolder, kind: str) -> list[Item]:
    return [item for length in LENGTHS for item in suite.items(length, kind)]


def plain(text: str) -> str:
    return " ".join(text.split())


def text_of(item: Item) -> str:
    return plain(item.context).removeprefix("Read the text below. A question about it follows at its end. ")


def test_every_length_is_met_and_never_passed(suite: SuiteFolder) -> None:
    assert {*suite.index} <= {*SUITE_FIELDS}, "scripts/reference_pages/formats.py tells every field"
    assert list(suite.kinds) == ["fact", "continue", "continue_control", "order", "which_document"]
    for kind in suite.kinds:
        for length in LENGTHS:
            items = suite.items(length, kind)
            assert [item.id for item in items] == [f"{kind}-{length}-{number:03d}" for number in range(ITEMS)]
            for item in items:
                # A byte is a token, and one opens the text; open answers get some tokens more.
                answer = len(item.answer.encode()) + (0 if item.choices else SLACK_TOKENS)
                assert item.num_tokens == 1 + len((item.context + item.question).encode()) + answer
                assert 0.98 * length <= item.num_tokens <= length == item.length_tokens


def test_contexts_are_text_of_the_documents_they_name(suite: SuiteFolder, documents: Path) -> None:
    texts = {path.name: plain(path.read_text()) for path in documents.iterdir()}
    for item in all_items(suite, "continue"):
        pieces = item.documents
        assert set(pieces) <= set(texts)
        context = text_of(item)
        start = next(size for size in range(len(context), 0, -1) if context[:size] in texts[pieces[0]])
        for name in pieces[1:]:
            rest = context[start:].strip()
            size = next(size for size in range(len(rest), 0, -1) if texts[name].startswith(rest[:size]))
            start += len(context[start:]) - len(rest) + size
        assert start == len(context)
    joined = suite.index["documents"]["items_with_joined"]
    assert joined["4000-continue"] == sum(len(item.documents) > 1 for item in suite.items(4000, "continue")) > 0
    assert joined["1600-which_document"] == 0


def test_facts_are_invented_and_stand_once_at_their_depth(suite: SuiteFolder, documents: Path) -> None:
    everything = " ".join(path.read_text() for path in documents.iterdir()).casefold()
    for length in LENGTHS:
        items = suite.items(length, "fact")
        for number, item in enumerate(items):
            opening = item.question.split('"')[1]
            fact = f"{opening}{item.answer}."
            assert item.answer.strip().isdigit()
            assert item.answer.strip() not in everything
            name = next(word for word in opening.split()[1:] if word[0].isupper())
            assert name.casefold() not in everything
            context = item.context
            assert context.count(name) == context.count(item.answer) == context.count(fact) == 1
            # Three others of the same wording, with other names and numbers.
            before, after = opening.split(name)
            others = [part[:60] for part in context.split(before) if after in part[:60]]
            assert len({part.split(after)[0] for part in others}) == len({part.split(after)[1] for part in others}) == 4
            # The depth is that of the text without what was planted.
            assert item.depth is not None
            assert number % 5 / 5 <= item.depth <= (number % 5 + 1) / 5
            assert context.index(fact) / len(context) == pytest.approx(item.depth, abs=0.16)


def test_facts_do_not_break_sentences(suite: SuiteFolder, documents: Path) -> None:
    known = {quote.text for path in documents.iterdir() for quote in quotable_sentences(path.read_text())}
    for item in all_items(suite, "fact"):
        found = [quote.text for quote in quotable_sentences(item.context)]
        begin = item.question.split('"')[1].split()[:2]
        # The first and the last may be cut.
        assert all(text in known or text.split()[:2] == begin for text in found[1:-1])


def test_continuations_are_real_stand_once_and_are_missing_in_the_control(suite: SuiteFolder, documents: Path) -> None:
    known = {quote.text for path in documents.iterdir() for quote in quotable_sentences(path.read_text())}
    pairs = zip(all_items(suite, "continue"), all_items(suite, "continue_control"), strict=True)
    for number, (item, control) in enumerate(pairs):
        first = item.question.split('"')[1]
        assert item.question.endswith(f'"{first}')
        whole = f"{first}{item.answer}"
        assert f"{whole}." in known
        context, without = text_of(item), text_of(control)
        assert context.count(first) == context.count(item.answer) == 1
        assert whole in context
        assert first not in without
        assert item.answer not in without
        # Nothing else differs, up to where the shorter text ends.
        expected = plain(context.replace(f"{whole}.", ""))
        assert without[: len(expected) - 40] == expected[: len(expected) - 40]
        assert (control.question, control.answer) == (item.question, item.answer)
        assert item.depth is not None
        assert int(item.depth * 5) in {number % ITEMS % 5, number % ITEMS % 5 - 1}


def test_nothing_that_is_said_twice_is_asked_about(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boilerplate = [sentence(rng) for _ in range(3)]
    once_a_document = [sentence(rng) for _ in range(25)]
    documents = []
    for number in range(6):
        lines = []
        for shared in once_a_document:
            one, other, third = (sentence(rng) for _ in range(3))
            same_beginning = [f"{one[:-1]} and {one[0].lower()}{one[1:]}", f"{one[:-1]} but {other.lower()}"]
            same_end = [f"{other[:-1]} so that {third.lower()}", f"Later {third[:-1].lower()} so that {third.lower()}"]
            lines += list(rng.permutation([*same_beginning, *same_end, *boilerplate, shared, sentence(rng)]))
        documents.append(Document(name=f"{number}.md", text=" ".join(lines)))
    write_documents(tmp_path / "documents", documents)
    built = build(
        tmp_path / "documents", tmp_path / "out", lengths=[4000], kinds=["continue", "order", "which_document"]
    )
    for item in built.items(4000, "continue"):
        first = item.question.split('"')[1]
        assert plain(item.context).count(first) == plain(item.context).count(item.answer) == 1
        assert f"{first}{item.answer}." not in boilerplate + once_a_document
    for item in built.items(4000, "order"):
        assert not any(line in item.question for line in boilerplate)
    for item in built.items(4000, "which_document"):
        assert not any(line in item.question for line in boilerplate + once_a_document)


def test_the_earlier_line_is_the_answer_and_answers_are_balanced(suite: SuiteFolder) -> None:
    for length in LENGTHS:
        items = suite.items(length, "order")
        assert Counter(item.answer for item in items) == {" A": ITEMS // 2, " B": ITEMS // 2}
        for item in items:
            lines = dict(line.split(": ", 1) for line in item.question.splitlines()[1:3])
            context = text_of(item)
            assert [context.count(line) for line in lines.values()] == [1, 1]
            assert item.answer == f" {min(lines, key=lambda label: context.index(lines[label]))}"
            assert item.choices == [" A", " B"]
    whats = Counter(item.question.split()[1] for item in all_items(suite, "order"))
    assert set(whats) == {"lines", "sentences"}


def test_sections_are_shuffled(suite: SuiteFolder, documents: Path) -> None:
    texts = {path.name: plain(path.read_text()) for path in documents.iterdir()}
    as_in_document = Counter()
    for item in all_items(suite, "order"):
        first, second = (line.split(": ", 1)[1] for line in item.question.splitlines()[1:3])
        for text in texts.values():
            if first in text and second in text:
                ordered = text.index(first) < text.index(second)
                as_in_document[ordered == (item.answer == " A")] += 1
    assert min(as_in_document[True], as_in_document[False]) >= 3


def test_the_letter_is_that_of_the_document_with_the_sentence(suite: SuiteFolder, documents: Path) -> None:
    texts = {path.name: plain(path.read_text()) for path in documents.iterdir()}
    letters = set()
    for length in LENGTHS:
        items = suite.items(length, "which_document")
        places = Counter()
        for item in items:
            sentence = item.question.split('"')[1]
            parts = ("\n\n" + item.context).split("\n\nDocument ")[1:]
            bodies = {part[0]: plain(part[1:]) for part in parts}
            assert len(bodies) == 4
            assert item.choices == [f" {letter}" for letter in sorted(bodies)]
            assert [letter for letter, body in bodies.items() if sentence in body] == [item.answer.strip()]
            assert sum(text.count(sentence) for text in texts.values()) == 1
            places[list(bodies).index(item.answer.strip())] += 1
            letters |= set(bodies)
            sizes = [len(body) for body in bodies.values()]
            assert min(sizes) > 0.85 * max(sizes)
        assert places == dict.fromkeys(range(4), ITEMS // 4)
    assert len(letters) > 8


def test_documents_go_by_letters_of_equally_many_tokens(documents: Path, tmp_path: Path) -> None:
    class FewLetters(ByteTokenizer):
        """Puts another token before some letters."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            found = super().encode(text, add_special_tokens=add_special_tokens)
            return [token for byte in found for token in ([0, byte] if byte in {*b"JKQXYZ"} else [byte])]

    how: dict[str, Any] = {"lengths": [1600], "num_items": ITEMS, "kinds": ["which_document"], "progress": False}
    built = build_suite(documents, FewLetters(), tmp_path / "out", **how)
    letters = {choice.strip() for item in built.items(1600, "which_document") for choice in item.choices}
    assert not letters & set("JKQXYZ")
    assert len(letters) > 8


def content(suite: SuiteFolder) -> dict[str, bytes]:
    root = suite.folder
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_documents_and_seed_make_the_same_bytes(suite: SuiteFolder, documents: Path, tmp_path: Path) -> None:
    shutil.copytree(documents, tmp_path / "elsewhere")
    again = build(tmp_path / "elsewhere", tmp_path / "again")
    assert content(again) == content(suite)
    few = build(documents, tmp_path / "few", lengths=[4000], num_items=2, kinds=["order", "fact"])
    for kind in ("fact", "order"):
        # Neither other lengths nor other kinds nor more items change an item.
        assert few.items(4000, kind) == suite.items(4000, kind)[:2]
    # Other documents show in the index, another seed in the items.
    (tmp_path / "elsewhere" / "z.md").write_text("One more.")
    more = build(tmp_path / "elsewhere", tmp_path / "more", lengths=[1600], num_items=1, kinds=["order"])
    assert more.index["documents"]["sha256"] != suite.index["documents"]["sha256"]
    assert more.index["documents"]["number"] == suite.index["documents"]["number"] + 1
    other = build(documents, tmp_path / "other", seed=1, lengths=[1600], kinds=["fact", "order"])
    for kind in ("fact", "order"):
        hashes = [{item.sha256 for item in one.items(1600, kind)} for one in (suite, other)]
        assert len(hashes[0] | hashes[1]) == 2 * ITEMS


def test_the_readme_tells_a_person_what_it_is(suite: SuiteFolder) -> None:
    text = (suite.folder / "README.md").read_text()
    for kind in suite.kinds:
        assert f"| {kind} | " in text
    assert "12 documents" in text
    assert "1600, 4000" in text


def test_held_out_documents_alone_can_be_asked_about(documents: Path, tmp_path: Path, monkeypatch) -> None:
    held_out = {(documents / f"report-{number}.md").read_text().strip() for number in (7, 9)}
    monkeypatch.setattr("skipwise.evals.suite.build.is_held_out", lambda identity: identity in held_out)
    built = build(documents, tmp_path / "out", held_out=True, kinds=["fact"], lengths=[1600])
    assert {name for item in built.items(1600, "fact") for name in item.documents} == {"report-7.md", "report-9.md"}


def test_if_no_document_is_held_out_that_is_the_reason(documents: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("skipwise.evals.suite.build.is_held_out", lambda identity: False)
    with pytest.raises(DataError, match=r"^none of 12 documents is in the held-out part; give more .*--held-out"):
        build(documents, tmp_path / "out", held_out=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [10**6]}, r"kind fact at length 1000000 can be made: .*makes \d+ of 1000000 tokens, and all 12"),
        ({"lengths": [120]}, "kind fact at length 120 can be made: 120 tokens are too few"),
    ],
)
def test_documents_that_do_not_suffice_are_an_error_with_numbers(documents, tmp_path, changes, message) -> None:
    with pytest.raises(DataError, match=message):
        build(documents, tmp_path / "out", **changes)
    # Nothing is left of a suite that could not be finished.
    assert list(tmp_path.iterdir()) == []


def test_what_documents_do_not_suffice_for_is_said_before_much_is_made(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    own = build_module._ItemMaker.items
    monkeypatch.setattr(build_module._ItemMaker, "items", lambda maker, *of: made.append(of[2]) or own(maker, *of))
    write_documents(tmp_path / "one", [prose("one.md", 400)])
    with pytest.raises(DataError, match=r"which_document asks about 4 documents and 1 with text .* \(--kinds\)"):
        build(tmp_path / "one", tmp_path / "out", num_items=50)
    assert made == []
    with pytest.raises(DataError, match=r"kind fact at length 120 .*; no question of kind order at length 120 "):
        build(documents, tmp_path / "out", lengths=[120, 1600], kinds=["fact", "order"], num_items=50)
    assert made == [0] * 4
    assert not (tmp_path / "out").exists()


def test_each_kind_says_what_it_lacks(tmp_path: Path) -> None:
    write_documents(tmp_path / "three", [prose(f"{number}.md", 80) for number in range(3)])
    with pytest.raises(DataError, match="which_document asks about 4 documents and 3 with text were given"):
        build(tmp_path / "three", tmp_path / "out", kinds=["which_document"])
    (tmp_path / "code").mkdir()
    for number in range(4):
        lines = (f"{number}_{line} = [{line}, {line**2}]" for line in range(1000))
        (tmp_path / "code" / f"{number}.txt").write_text("\n".join(lines))
    for kind in ("continue", "order", "which_document"):
        with pytest.raises(DataError, match=f"kind {kind} at length 1600 can be made: no text drawn has what"):
            build(tmp_path / "code", tmp_path / "out", kinds=[kind])
    assert build(tmp_path / "code", tmp_path / "out", kinds=["fact"]).items(1600, "fact")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kinds": ["fact", "facts"]}, "facts; did you mean 'fact'"),
        ({"kinds": []}, "kinds are none"),
        ({"lengths": []}, r"lengths are \[\]"),
        ({"num_items": 0}, "items are 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(tmp_path / "nowhere", tmp_path / "out", **changes)


def test_what_is_there_is_never_overwritten(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="which is already there; give a new folder"):
        build(documents, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    # What an interrupted build left is no obstacle.
    (tmp_path / "new.partial" / "items").mkdir(parents=True)
    build(documents, tmp_path / "new", kinds=["fact"], num_items=1, lengths=[1600])
    assert not (tmp_path / "new.partial").exists()


def spoil(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


def edit_index(path: Path, **changes) -> None:
    index = json.loads((path / "suite.json").read_text())
    (path / "suite.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda path: (path / "suite.json").unlink(), "is no complete suite"),
        (lambda path: (path / "suite.json").write_text("[1]"), "is no complete suite"),
        (lambda path: edit_index(path, seed=7), "suite.json was changed"),
        (lambda path: edit_index(path, files={}), "suite.json was changed"),
        (lambda path: (path / "items/1600-order.jsonl").unlink(), "1600-order.jsonl is missing"),
        (lambda path: (path / "items/1600-order.jsonl").write_text(""), "1600-order.jsonl was changed"),
        (lambda path: (path / "README.md").write_text("All is well."), "README.md was changed"),
        (lambda path: spoil(path / "items/1600-order.jsonl", '"answer": " A"', '"answer": " B"'), "was changed"),
    ],
)
def test_a_changed_suite_is_refused(suite: SuiteFolder, tmp_path: Path, tamper, message: str) -> None:
    shutil.copytree(suite.folder, tmp_path / "suite")
    SuiteFolder(tmp_path / "suite")
    tamper(tmp_path / "suite")
    with pytest.raises(DataError, match=message) as refusal:
        SuiteFolder(tmp_path / "suite")
    assert "\n" not in str(refusal.value)


def test_a_suite_of_another_format_is_refused(suite: SuiteFolder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "FORMAT", 2)
    with pytest.raises(DataError, match="has suite format 1, known is 2"):
        SuiteFolder(suite.folder)

"""What a suite is made of: quotes, places to cut, sizes that fit, and how prompts are tokenized."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.data.documents import Document
from skipwise.errors import DataError
from skipwise.evals.suite.build import fit_size
from skipwise.evals.suite.item import Item, encode_item
from skipwise.evals.suite.kinds import unheard
from skipwise.evals.suite.library import Collection, Library
from skipwise.evals.suite.prose import (
    cut,
    halves,
    headings,
    is_quotable,
    place_near,
    quotable_sentences,
    squeezed,
)
from skipwise.evals.suite.task import begins_with

from .suite_documents import prose

GOOD = "The committee met on the second floor and agreed that nothing would be changed."


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        (GOOD, True),
        (GOOD.lower(), False),  # its beginning is missing
        (GOOD[:-1], False),  # its end is
        ("The committee met.", False),
        (GOOD[:-1] + " " + GOOD[:-1].lower() + " " + GOOD[:-1].lower() + GOOD, False),  # too long
        (GOOD.replace("second", "[second]"), False),
        (GOOD.replace("second floor", "2 345 678 901 23"), False),
        (GOOD.replace("changed.", "changed, e.g."), False),
        ("委员会在二楼开会并且一致同意不对任何现有的规章制度作出改变。", True),
    ],
)
def test_only_whole_plain_sentences_are_quoted(text: str, usable: bool) -> None:
    assert is_quotable(text) == usable


def test_sentences_are_found_where_they_stand() -> None:
    text = (
        f"# Minutes\n\nBy the way. {GOOD} It was\nover early.\n{GOOD.replace('floor and', f'floor{chr(10)}   and')}\n"
    )
    found = quotable_sentences(text)
    assert [quote.text for quote in found] == [GOOD, GOOD]
    assert [" ".join(text[quote.start : quote.end].split()) for quote in found] == [GOOD, GOOD]
    assert "\n" in text[found[1].start : found[1].end]


@pytest.mark.parametrize("text", [GOOD, "委员会在二楼开会并且一致同意不对任何现有的规章制度作出改变。"])
def test_halves_make_the_sentence_without_its_mark(text: str) -> None:
    first, second = halves(text)
    assert first + second == text[:-1]
    assert abs(len(first) - len(second)) < 20
    assert not first.endswith(" ")


def test_headings_stand_over_paragraphs() -> None:
    below = "A paragraph that is long enough to be one, with several words in it, and more."
    text = (
        f"## How it began\n\n{below}\n\n2.1 The second year\n{below}\nThe list\nshort"
        f"\n\nThe Third Year\n=====\n\n{below}\n"
        f"This line of a paragraph is broken\nand goes on here, long enough for a paragraph of its own, surely.\n"
        f"and so does\nThis line\n{below}"
    )
    assert [text[quote.start : quote.end] for quote in headings(text)] == [
        "How it began",
        "2.1 The second year",
        "The Third Year",
    ]


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(50, 3000),
    limit=st.integers(20, 3000),
    least=st.integers(0, 49),
    guess=st.floats(0.1, 10),
)
def test_a_fit_is_never_too_long_and_close_where_it_can_be(
    seed: int, size: int, limit: int, least: int, guess: float
) -> None:
    rng = np.random.default_rng(seed)
    # Stretches of characters that make no token, and characters that make many.
    tokens = np.concatenate(
        [[0], np.cumsum(rng.integers(0, 4, size) * rng.integers(0, 2, -(-size // 25)).repeat(25)[:size])]
    )
    asked = []

    def count(characters: int) -> int:
        asked.append(characters)
        return int(tokens[characters])

    fit = fit_size(count, limit, least, size, guess)
    if tokens[least] > limit:
        assert fit is None
        return
    assert fit is not None
    assert fit.tokens == tokens[fit.characters] <= limit
    assert least <= min(asked)
    best = tokens[tokens <= limit].max()
    assert fit.tokens >= min(best, np.floor(0.995 * limit))
    assert len(asked) == len(set(asked)) <= 40


def test_even_text_is_fitted_in_a_few_tries() -> None:
    asked: list[int] = []
    fit = fit_size(lambda size: asked.append(size) or 150 + size // 4, 131072, 471_000, 734_000, 3.7)
    assert fit is not None
    assert 0.995 * 131072 <= fit.tokens <= 131072
    assert len(asked) <= 4


class MergingTokenizer:
    """Words with the space before them; but " is" takes the space after it, too, and a text is opened and closed."""

    def __init__(self) -> None:
        self.words = ["<s>", "</s>"]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [0] * add_special_tokens
        for word in re.findall(r" is | ?\w+|\s|[^\w\s]", text):
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return ids + [1] * add_special_tokens

    def text(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.mark.parametrize("ending", ["The code is", "The code was"])
def test_prompt_and_answer_are_tokenized_as_one_text(ending: str) -> None:
    tokenizer = MergingTokenizer()
    prompt = f"A long text.\nMore of it.\n{ending}"
    encoded = encode_item(tokenizer, prompt, [" 12", " 34"])
    for answer, ids in zip((" 12", " 34"), encoded.answers, strict=True):
        assert [*encoded.prompt_ids, *ids] == tokenizer.encode(prompt + answer, add_special_tokens=True)[:-1]
    read = tokenizer.text(encoded.prompt_ids)
    assert read == "<s>" + (prompt if ending.endswith("was") else prompt.removesuffix(" is"))


def test_a_text_is_cut_after_paragraph_line_sentence_or_word() -> None:
    text = "One two.\n\nThree four.\nFive. Six seven"
    assert [text[: place_near(text, point)] for point in (len(text), 24, 12, 5)] == [
        "One two.\n\n",
        "One two.\n\n",
        "One two.\n\n",
        "One ",
    ]
    assert text[: place_near(text, 24, low=11)] == "One two.\n\nThree four.\n"
    assert text[: place_near(text, len(text), low=24)] == "One two.\n\nThree four.\nFive. "
    assert place_near(text, 2) == 2
    assert text[: place_near(text, 2, high=20)] == "One two.\n\n"
    assert place_near(text, 2, high=3) == 2
    assert [cut(text, size) for size in (3, 5, 7, 8, 100)] == ["One", "One", "One", "One two.", text]
    assert cut("无空格的文字", 3) == "无空格"


@pytest.mark.parametrize("size", [500, 2000, 6000])
def test_stretches_share_no_document_and_say_what_they_are_made_of(size: int) -> None:
    documents = [prose(f"{number}.md", 12 + 8 * number) for number in range(12)]
    (library,) = Collection(documents).libraries
    texts = {document.name: document.text.strip() for document in documents}
    for seed in range(5):
        stretches = library.stretches(3, size, np.random.default_rng(seed))
        names = [name for stretch in stretches for name in stretch.names]
        assert len(names) == len(set(names))
        for stretch in stretches:
            assert len(stretch.text) == size
            ends = [*(start - 2 for start in stretch.starts[1:]), len(stretch.text)]
            for name, start, end in zip(stretch.names, stretch.starts, ends, strict=True):
                assert stretch.text[start:end] in texts[name]
            # Only a document that is too short as a whole is continued with others.
            assert len(stretch.names) == 1 or len(texts[stretch.names[0]]) < size
            assert stretch.names_until(1) == stretch.names[:1]
            assert stretch.names_until(len(stretch.text)) == stretch.names


def test_a_library_knows_words_and_what_is_said_twice() -> None:
    other = "Nobody of those who were present remembered later what the whole debate had been about."
    (library,) = Collection(
        [
            Document(name="a", text=f"{GOOD} Call 555123 today."),
            Document(name="b", text=f"{other} {GOOD.replace('second floor', f'Second{chr(10)}floor,')}"),
            Document(name="c", text=" \n"),
        ]
    ).libraries
    assert library.num_documents == 2
    assert [library.has_word(word) for word in ("COMMITTEE", "555123", "comm", "55512")] == [True, True, False, False]
    assert [library.is_repeated(text) for text in (GOOD, other)] == [True, False]
    with pytest.raises(DataError, match="none of the documents has any text"):
        Collection([Document(name="c", text=" \n")])


def test_what_a_document_holds_is_never_invented() -> None:
    library = Library([Document(name="a", text="The Dorim depot has 123456 things.")])
    drawn = iter(["Dorim", "123456", "dorim", "Volka", "Volka", "Brem", "654321", "depot", "Kren"])
    assert unheard(library, drawn.__next__) == ["Volka", "Brem", "654321", "Kren"]


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        (" second  floor,\nand agreed that", 1.0),
        ("Second floor, AND agreed", 1.0),
        (' the second floor, and agreed"', 0.0),
        (" second floor and agreed", 0.0),
        ("", 0.0),
    ],
)
def test_a_continuation_must_come_at_once(output: str, counts: float) -> None:
    assert begins_with(output, ["second floor, and agreed"]) == counts


def test_items_survive_their_line_and_nothing_else() -> None:
    item = Item(
        id="fact-64-000",
        kind="fact",
        length_tokens=64,
        num_tokens=63,
        answer=" 12",
        choices=[],
        depth=0.5,
        documents=["a.md"],
        context="Zwölf\nLines\u2028 and more\n",
        question="How many?",
    )
    line = item.to_json()
    assert "\n" not in line
    assert Item.from_json(line) == item
    assert item.prompt == "Zwölf\nLines\u2028 and more\nHow many?"
    for other, named in ((line.replace(" 12", " 13"), "fact-64-000 of a suite was changed"), (line[:-5], "cannot be")):
        with pytest.raises(DataError, match=named):
            Item.from_json(other)


def test_squeezed_text_compares_what_is_said() -> None:
    assert squeezed("  The\n\tSECOND  Straße ") == "the second strasse"

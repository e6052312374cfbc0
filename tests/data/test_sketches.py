"""Near-duplicates, compared with sets of shingles that a plain loop makes, and all pairs of these."""

import itertools
import random
import unicodedata

import numpy as np
import pytest

from skipwise.data.survey.sketches import ALIKE, alike_pairs, groups, likeness, sketch

ENGLISH = [
    "".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", ["", "n", "r", "s"], ["", "ing", "ed"])
]
JAPANESE = [chr(code) for code in (*range(0x3042, 0x3093), *range(0x4E00, 0x5200))]
EDITS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3)


def shingles_of(text: str, is_spaced: bool) -> set[tuple[str, ...]]:
    letters = [letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text.lower()]
    words = "".join(letters).split() if is_spaced else [letter for letter in letters if letter != " "]
    return {tuple(words[begin : begin + 5]) for begin in range(max(1, len(words) - 4))}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def edited(words: list[str], rate: float, vocabulary: list[str], draw: random.Random) -> list[str]:
    """Replaces, drops and inserts words."""
    found = []
    for word in words:
        if draw.random() >= rate:
            found.append(word)
        elif (kind := draw.randrange(3)) < 2:
            found += [draw.choice(vocabulary)] + [word] * kind
    return found


def corpus(vocabulary: list[str], space: str, number: int) -> list[str]:
    """Texts of 30 to 900 words, each followed by its edited copies."""
    draw = random.Random(number)
    texts = []
    for _ in range(number):
        words = draw.choices(vocabulary, k=int(30 * 30 ** draw.random()))
        texts += [space.join(edited(words, rate, vocabulary, draw)) for rate in EDITS]
    return texts


@pytest.mark.parametrize(("vocabulary", "space"), [(ENGLISH, " "), (JAPANESE, "")], ids=["with spaces", "without"])
def test_pairs_are_those_of_all_pairs(vocabulary: list[str], space: str) -> None:
    texts = corpus(vocabulary, space, 25)
    sets = [shingles_of(text, bool(space)) for text in texts]
    sketches = np.stack([drawn for text in texts if (drawn := sketch(text)) is not None])
    assert len(sketches) == len(texts) == 200
    found = {*zip(*(numbers.tolist() for numbers in alike_pairs(sketches)), strict=True)}
    true = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in itertools.combinations(range(len(texts)), 2)}
    # The error of an estimate from 128 entries is 0.04; texts of 30 words have fewer shingles than that.
    clear = {pair for pair, alike in true.items() if alike >= ALIKE + 0.1}
    near = {pair for pair, alike in true.items() if alike >= ALIKE - 0.1}
    group = groups(alike_pairs(sketches), len(texts))
    together = {pair for pair in clear if group[pair[0]] == group[pair[1]]}
    print(f"{len(clear)} clear pairs: {len(together)} found; of {len(found)} found {len(found & near)} are near")
    assert len(together) >= 0.99 * len(clear) > 100
    assert len(found & near) >= 0.99 * len(found)
    errors = [likeness(sketches[a], sketches[b]) - alike for (a, b), alike in true.items() if alike > 0]
    assert abs(np.mean(errors)) < 0.01
    assert np.sqrt(np.mean(np.square(errors))) < 0.05


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The quick brown fox, as it jumps over", "the QUICK brown fox\n\nas it jumps -- over!"),
        ("one", "One."),
        ("日本語の文書。", "日本語の、文書"),
        ("これはテストです", "これ は テス ト です。"),
        ("ภาษาไทย ไม่มีช่องว่าง", "ภาษาไทยไม่มีช่องว่าง"),
        ("हिन्दी में", "हिन्दी  में"),
    ],
)
def test_case_spaces_and_punctuation_do_not_count(one: str, other: str) -> None:
    first, second = sketch(one), sketch(other)
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist()


def test_order_and_spaces_between_words_count() -> None:
    texts = ("one two three four five", "five four three two one", "onetwo threefour five", "one two three four")
    sketches = np.stack([drawn for text in texts if (drawn := sketch(text)) is not None])
    assert not len(alike_pairs(sketches).first)


@pytest.mark.parametrize("text", ["", " \n", "--- *** ---"])
def test_a_text_without_words_has_no_sketch(text: str) -> None:
    assert sketch(text) is None


def test_a_text_of_any_length_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    words = random.Random(0).choices(ENGLISH, k=3000)
    whole = sketch(" ".join(words))
    monkeypatch.setattr("skipwise.data.survey.sketches._PIECE", 1000)
    assert whole is not None
    pieces = sketch(" ".join(words))
    assert pieces is not None
    assert likeness(whole, pieces) > 0.9  # A word is cut at the end of most pieces.


def test_of_equal_texts_each_is_in_the_group() -> None:
    drawn = sketch("a b c d e f g")
    assert drawn is not None
    sketches = np.stack([drawn] * 1000)
    assert set(groups(alike_pairs(sketches), 1000).tolist()) == {0}
    assert len(alike_pairs(sketches).first) < 2000
    assert len(alike_pairs(sketches[:0]).first) == 0

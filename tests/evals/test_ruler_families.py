"""What RULER's paper says of its retrieval, tracing and counting tasks, checked on the text of generated prompts."""

import re
import uuid
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from skipwise.errors import DataError
from skipwise.evals import TASKS
from skipwise.evals.drafts import Draft
from skipwise.evals.languages import ENGLISH
from skipwise.evals.ruler.niah import DocumentWords, UniqueDraws, sentence_ends
from skipwise.evals.ruler.variables import draw_chains, variable_draft
from skipwise.evals.ruler.vocabulary import ADJECTIVES, NOUNS, VERBS
from skipwise.evals.ruler.words import (
    LONG_FORM,
    MIN_DRAWS,
    SHORT_FORM,
    WORDS,
    apart,
    common_words_draft,
    compounds,
    frequent_words_draft,
    rank_counts,
)

from .tiny import PROSE, PieceTokenizer, context_of, prose_documents

SEEDS = range(8)
NEEDLE = re.compile(r"One secret (\w+) of (\S+) is: (\S+)\.")


def prose(num_words: int) -> list[str]:
    return list((PROSE * (1 + num_words // 40)).split()[:num_words])


def task_of(task: str) -> Any:
    return TASKS[f"ruler_niah_{task}"]()


def make(task: str, seed: int, num_units: int = 200) -> Draft:
    return task_of(task).draft(seed, prose, num_units, 0)


def text_of(draft: Draft) -> str:
    """What is between the first and the last line."""
    return draft.request.partition("\n")[2].rpartition("\n")[0]


# Needles in a haystack -----------------------------------------------------------------------------------------------


# Haystack, keys, values; number of keys, of values of each, and of keys asked for.
RETRIEVAL: dict[str, tuple[str, str, str, int, int, int]] = {
    "single_1": ("noise", "words", "numbers", 1, 1, 1),
    "single_2": ("essay", "words", "numbers", 1, 1, 1),
    "single_3": ("essay", "words", "uuids", 1, 1, 1),
    "multikey_1": ("essay", "words", "numbers", 4, 1, 1),
    "multikey_2": ("needle", "words", "numbers", 1, 1, 1),
    "multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "multiquery": ("essay", "words", "numbers", 1, 1, 4),
}


@pytest.mark.parametrize("task", RETRIEVAL)
def test_retrieval_is_set_up_as_published_and_the_prompts_are_so(task: str) -> None:
    own = task_of(task)
    haystack, keys, values, num_keys, num_values, num_queries = RETRIEVAL[task]
    assert (own.haystack, own.keys, own.values, own.num_keys, own.num_values, own.num_queries) == RETRIEVAL[task]
    for seed in SEEDS:
        draft = make(task, seed)
        found = NEEDLE.findall(draft.request)
        by_key: dict[str, set[str]] = {}
        for _, key, value in found:
            by_key.setdefault(key, set()).add(value)
        # The keys that are asked for, by the question's own text, and what the text says of them.
        asked = re.findall(r"[\w-]+-[\w-]+", draft.request.rpartition("\n")[2])
        assert len(asked) == len(set(asked)) == num_queries == len(draft.details["keys"])
        assert set(draft.references) == set().union(*(by_key[key] for key in asked))
        assert [len(by_key[key]) for key in asked] == [num_values] * num_queries
        assert len(draft.references) == len(set(draft.references)) == num_values * num_queries
        # Nothing is said twice, and no key has values that are not wanted.
        assert len(found) == sum(map(len, by_key.values()))
        distractors = 200 if haystack == "needle" else max(num_keys, num_queries) - num_queries
        assert len(by_key) == num_queries + distractors
        assert all(is_of_kind(keys, key) for key in by_key)
        assert all(is_of_kind(values, value) for of_key in by_key.values() for value in of_key)
        # The prefix names the keys and gives nothing away.
        assert all(key in draft.answer_prefix for key in asked)
        assert not any(value in draft.answer_prefix for value in draft.references)
        # Neither depends on the size.
        other = make(task, seed, 10)
        assert (other.references, other.answer_prefix) == (draft.references, draft.answer_prefix)


def is_of_kind(kind: str, text: str) -> bool:
    if kind == "numbers":
        return re.fullmatch(r"[1-9]\d{6}", text) is not None
    if kind == "uuids":
        return uuid.UUID(text).version == 4 and len(text) == 36
    adjective, noun = text.split("-")
    return adjective in ADJECTIVES and noun in NOUNS


def test_noise_is_filler_lines_and_needle_haystacks_are_needles_alone() -> None:
    lines = text_of(make("single_1", 1, 210)).split("\n")
    rounds, rest = divmod(210, len(ENGLISH.passkey.filler.split()))
    hay = [ENGLISH.passkey.filler.strip()] * rounds + [" ".join(ENGLISH.passkey.filler.split()[:rest])]
    assert [line for line in lines if not NEEDLE.fullmatch(line)] == hay
    assert sum(NEEDLE.fullmatch(line) is not None for line in lines) == 1
    for task in ("multikey_2", "multikey_3"):
        lines = text_of(make(task, 1, 50)).split("\n")
        assert len(lines) == 51
        assert all(NEEDLE.fullmatch(line) for line in lines)


def test_an_essay_is_the_text_with_the_needles_between_its_sentences() -> None:
    depths = set()
    for seed in range(60):
        context = text_of(make("multikey_1", seed, 400))
        assert NEEDLE.sub("", context).split() == prose(400)
        for match in NEEDLE.finditer(context):
            before = NEEDLE.sub("", context[: match.start()]).split()
            assert not before or before[-1].rstrip('"')[-1] in ".!?"
            depths.add(round(len(before) / 400, 1))
        places = [match.start() for match in NEEDLE.finditer(context)]
        assert len({len(NEEDLE.sub("", context[:place]).split()) for place in places}) == 4, "four depths"
    # Needles are found from the very first to the very last sentence.
    assert depths >= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


def test_the_key_that_is_asked_comes_at_any_place_among_the_others() -> None:
    firsts = Counter()
    for seed in range(200):
        draft = make("multikey_1", seed, 40)
        order = [key for _, key, _ in NEEDLE.findall(draft.request)]
        firsts[order.index(draft.details["keys"][0])] += 1
    assert min(firsts[place] for place in range(4)) > 25


def test_no_key_or_value_is_drawn_twice() -> None:
    unique = UniqueDraws(np.random.default_rng(0))
    # Of some 200,000 pairs, 3,000 draws with replacement would meet about twenty times.
    assert len({unique.draw("words") for _ in range(3000)}) == 3000


def test_one_value_is_asked_in_the_singular_and_several_in_the_plural() -> None:
    assert "What is the secret uuid of" in make("single_3", 0).request
    assert "What are all the secret numbers of" in make("multivalue", 0).request
    assert re.search(r"numbers of \S+, \S+, \S+, and \S+ that", make("multiquery", 0).answer_prefix)


def test_words_of_documents_follow_on_and_start_over() -> None:
    tokenizer = PieceTokenizer()
    documents = prose_documents(tokenizer)
    first, second = (PROSE * 3).split(), ("A second document. " + PROSE).split()
    words = DocumentWords(context_of(tokenizer=tokenizer, documents=documents), first=1)
    assert words(5) == second[:5]
    assert words(1000) == ((second + first) * 5)[:1000]
    assert words(7) == second[:7]
    blank = np.array(tokenizer.encode(" \n ", add_special_tokens=False))
    with pytest.raises(DataError, match="none of the 2 documents has text"):
        DocumentWords(context_of(tokenizer=tokenizer, documents=[blank, blank]), first=0)(10)
    # Text without sentence ends is cut all the same.
    assert sentence_ends(["x"] * 70) == [32, 64]
    assert sentence_ends(["He", "said", '"no."', "Why?", "e.g", "this"]) == [3, 4]


# Variable tracking ----------------------------------------------------------------------------------------------------

STATEMENT = re.compile(r"LET ([A-Z]+) = ([A-Z]+|\d+)(?= |\n|$)", re.M)


def tracked(seed: int, num_words: int = 600, num_chains: int = 1, num_hops: int = 4, example_lines: int = 10) -> Draft:
    return variable_draft(seed, num_words, 0, num_chains=num_chains, num_hops=num_hops, example_lines=example_lines)


def solve(statements: list[tuple[str, str]], wanted: str) -> list[str]:
    """Variables that hold a number, by running the assignments in the order of the text."""
    held: dict[str, str] = {}
    for name, source in statements:
        held[name] = source if source.isdigit() else held[source]
    return [name for name, value in held.items() if value == wanted]


@pytest.mark.parametrize(("num_words", "num_chains", "num_hops"), [(600, 1, 4), (30, 1, 4), (0, 1, 4), (900, 3, 6)])
def test_the_answer_is_what_running_the_assignments_gives(num_words: int, num_chains: int, num_hops: int) -> None:
    for seed in SEEDS:
        draft = tracked(seed, num_words, num_chains, num_hops)
        example, _, asked = draft.request.rpartition("Follow every chain of them.")
        statements = STATEMENT.findall(asked)
        value = re.findall(r"hold the value (\d{5}) after", asked)
        assert value == [draft.details["value"]]
        assert draft.references == solve(statements, value[0])
        assert len(statements) == num_chains * (num_hops + 1)
        assert len(draft.references) == len(set(draft.references)) == num_hops + 1
        assert all(re.fullmatch("[A-Z]{5}", name) for name in draft.references)
        assert f"{num_hops + 1} variables hold the value {value[0]}" in draft.answer_prefix
        # The worked example is right too, tells nothing of the question, and no name is shared.
        shown = STATEMENT.findall(example)
        shown_value = re.search(r"hold the value (\d{5}) after", example)
        assert shown_value is not None
        assert example.split(":")[-1].split()[: num_hops + 1] == solve(shown, shown_value[1])
        assert all(re.fullmatch("[A-Z]{3}", name) for name, _ in shown)
        assert value[0] not in example


def test_distractor_chains_never_leak_into_the_answer() -> None:
    for seed in SEEDS:
        chains = draw_chains(np.random.default_rng(seed), 4, 4, 5)
        names = [name for chain in chains for name in chain.variables]
        assert len(names) == len(set(names)) == 20
        assert len({chain.value for chain in chains}) == 4
        assert all(10000 <= int(chain.value) <= 99999 for chain in chains)
        assert set(draw_chains(np.random.default_rng(seed), 2, 4, 5, taken=["1"])[0].variables) <= set(names)
    # Names run out only where there are no more of them, and a taken value is never drawn.
    crowded = draw_chains(np.random.default_rng(0), 4, 5, 1)
    assert len({name for chain in crowded for name in chain.variables}) == 24
    values = {str(value) for value in range(10000, 100000)} - {"31415"}
    assert draw_chains(np.random.default_rng(0), 1, 1, 5, taken=values)[0].value == "31415"


def test_statements_are_scattered_over_the_filler() -> None:
    depths = []
    for seed in range(40):
        asked = tracked(seed, 4000).request.rpartition("Follow every chain of them.")[2]
        depths += [match.start() / len(asked) for match in STATEMENT.finditer(asked)]
        text = STATEMENT.sub("", asked.partition("\nQuestion")[0])
        assert text.split() == (ENGLISH.passkey.filler * 300).split()[:4000]
    assert np.histogram(depths, bins=5, range=(0, 1))[0].min() > 15


# Common words ---------------------------------------------------------------------------------------------------------


def listed(text: str) -> Counter:
    entries = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return Counter(word for _, word in entries)


@pytest.mark.parametrize(
    ("form", "counted"), [(LONG_FORM, (30, 3, 10, 3, 30)), (SHORT_FORM, (6, 1, 3, 1, 10))], ids=["long", "short"]
)
@pytest.mark.parametrize("num_others", [0, 60, 1500])
def test_ten_words_are_common_and_the_example_is_answered(form, counted: tuple[int, ...], num_others: int) -> None:
    common, other, example_common, example_other, example_others = counted
    for seed in range(8):
        draft = common_words_draft(form, seed, num_others, 0)
        lines = draft.request.split("\n")
        assert len(lines) == 6
        counts = listed(lines[4])
        assert sorted(draft.references) == sorted(word for word, count in counts.items() if count == common)
        assert Counter(counts.values()) == Counter({common: 10}) + Counter({other: num_others})
        shown = listed(lines[1])
        assert Counter(shown.values()) == {example_common: 10, example_other: example_others}
        answer = listed(lines[2].partition("repeats most are:")[2])
        assert set(answer) == {word for word, count in shown.items() if count == example_common}
        # Containment cannot take one word for another.
        assert not [(a, b) for a in draft.references for b in {*counts, *shown} if a != b and a in b]
        assert draft.details["compound_words"] == sum("-" in word for word in counts)


def test_words_are_plain_distinct_and_in_any_order() -> None:
    assert apart(["art", "party", "cat", "cats", "dog", "cow"], 3) == ["art", "cat", "dog"]
    pairs = list(islice(compounds(["a", "b", "c"], np.random.default_rng(0)), 6))
    assert sorted(pairs) == ["a-b", "a-c", "b-a", "b-c", "c-a", "c-b"]
    assert len(WORDS) == len(set(WORDS)) == len(ADJECTIVES) + len(NOUNS) + len(VERBS)
    assert all(re.fullmatch("[a-z]{3,13}", word) for word in WORDS)
    places: list[int] = []
    for seed in range(5):
        lines = common_words_draft(LONG_FORM, seed, 60, 0).request.split("\n")
        entries = re.findall(r"\d+\. (\S+)", lines[4])
        places += [place for place, word in enumerate(entries) if Counter(entries)[word] == 30]
    assert np.histogram(places, bins=5, range=(0, 480))[0].min() > 200


# Frequent words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_draws", [MIN_DRAWS, 400, 20000])
def test_frequencies_follow_the_power_law_and_the_dots_come_first(num_draws: int) -> None:
    for seed in SEEDS:
        draft = frequent_words_draft(seed, 80, num_draws, 0)
        text = draft.request.partition("most frequent ones. ")[2].partition("\nQuestion")[0]
        counts = Counter(text.split()).most_common()
        assert counts[0][0] == "..."
        assert [word for word, _ in counts[1:4]] == draft.references
        # Ranks 2, 3 and 4 are apart from each other and from the fifth.
        assert counts[1][1] > counts[2][1] > counts[3][1] > ([*counts, ("", 0)][4][1])
        zeta = sum(k**-2.0 for k in range(1, 200000)) + 1 / 200000
        expected = [int(num_draws * rank**-2.0 / zeta + 1e-9) for rank in range(1, 81)]
        assert [count for _, count in counts] == [count for count in expected if count]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in counts[1:])
        assert "leaving out the dots" in draft.request


def test_the_three_words_are_determined_from_the_fewest_draws_on() -> None:
    for draws in range(MIN_DRAWS, 3000):
        _, second, third, fourth, fifth = rank_counts(draws, 5)
        assert second > third > fourth > fifth
    _, _, _, fourth, fifth = rank_counts(MIN_DRAWS - 1, 5)
    assert fourth == fifth

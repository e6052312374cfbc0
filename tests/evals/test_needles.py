"""Needles are where they are said to be, are asked for, and count where they lie."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from skipwise.errors import ConfigError
from skipwise.evals.languages import ENGLISH
from skipwise.evals.tasks.needles import KINDS, NeedleGrid, NeedleKind

from .tiny import BOS, ByteTokenizer, Oracle, context_of

HIDDEN = re.compile(r"\n(?:The number|One of the numbers) of (the \w+ \w+) is (\d{7})\.\n")
ASKED = re.compile(r"\nWhat (?:is|are) the .*? of (.*)\? (?:.* is|.* are)(?= |$)(.*)$")


def read(text: str) -> tuple[list[tuple[str, str]], list[str], str]:
    """Hidden lines in order, asked keys in order, and what was answered so far."""
    question = ASKED.search(text)
    if question is None:
        return HIDDEN.findall(text), [], ""
    return HIDDEN.findall(text[: question.start() + 1]), re.split(", | and ", question[1]), question[2]


def solve(text: str, known: int = 99) -> str:
    """The rest of the right answer; of each key's values the first `known`."""
    hidden, keys, said = read(text)
    values = [value for key in keys for name, value in hidden if name == key]
    return ("".join(f" {value}," for value in values[:known]) + " done")[len(said) :]


def text_of(prompt: Any) -> str:
    return ByteTokenizer().decode(prompt.prompt_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [800, 801, 4096])
def test_prompt_and_answer_have_exactly_the_length(kind: NeedleKind, length: int) -> None:
    for trial in range(5):
        prompt = NeedleGrid(trials=5).prompt(context_of(Oracle(solve)), kind, length, trial)
        assert prompt.num_tokens == length == len(prompt.prompt_ids) + 128
        assert prompt.prompt_ids[0] == BOS
        assert text_of(prompt).startswith(ENGLISH.needles.instruction)


@pytest.mark.parametrize(
    ("kind", "num_hidden", "num_keys", "num_asked"),
    [("single", 1, 1, 1), ("multi_key", 4, 4, 1), ("multi_value", 4, 1, 1), ("multi_query", 4, 4, 4)],
)
def test_each_kind_hides_and_asks_what_it_says(
    kind: NeedleKind, num_hidden: int, num_keys: int, num_asked: int
) -> None:
    orders = set()
    for trial in range(25):
        prompt = NeedleGrid().prompt(context_of(Oracle(solve)), kind, 2000, trial)
        hidden, asked, _ = read(text_of(prompt))
        assert len(hidden) == len({value for _, value in hidden}) == num_hidden
        assert len({key for key, _ in hidden}) == num_keys
        assert len(asked) == len(set(asked)) == num_asked
        found = {value for key, value in hidden if key in asked}
        assert set(prompt.references) == found
        assert len(prompt.references) == (1 if kind in ("single", "multi_key") else 4)
        # One continuation decides the score only where one value is asked for.
        answer = ByteTokenizer().decode(prompt.answer_ids)
        assert answer == (f" {prompt.references[0]}" if num_hidden == 1 or kind == "multi_key" else "")
        if kind == "multi_query":
            places = [[key for key, _ in hidden].index(key) for key in asked]
            orders.add(tuple((place - places[0]) % 4 for place in places))
    # Not even one that goes around the end of the text.
    assert kind != "multi_query" or len(orders) > 3, "the question's order tells nothing of the text's"


@pytest.mark.parametrize("kind", KINDS)
def test_depths_are_where_the_asked_needles_are(kind: NeedleKind) -> None:
    for trial in range(10):
        prompt = NeedleGrid(trials=10).prompt(context_of(Oracle(solve)), kind, 3000, trial)
        text = text_of(prompt)
        template = ENGLISH.needles.needle_of_several if kind == "multi_value" else ENGLISH.needles.needle
        keys = prompt.details["keys"]
        lines = [template.format(key=key, value=value) for key, value in zip(keys, prompt.references, strict=True)]
        assert prompt.details["depth"] == prompt.details["depths"][0]
        all_lines = [match.group() for match in HIDDEN.finditer(text)]
        end = text.rindex("\nWhat ")
        room = end - len(ENGLISH.needles.instruction) - sum(map(len, all_lines))
        for line, depth in zip(lines, prompt.details["depths"], strict=True):
            before = text[len(ENGLISH.needles.instruction) : text.index(line)]
            filler = len(before) - sum(len(other) for other in all_lines if other in before)
            assert filler == pytest.approx(depth * room, abs=0.51)


def test_depths_are_stratified_and_asked_needles_spread() -> None:
    task = NeedleGrid(trials=20, num_depths=5)
    for kind in KINDS:
        prompts = [task.prompt(context_of(Oracle(solve)), kind, 1200, trial) for trial in range(20)]
        assert Counter(int(5 * prompt.details["depth"]) for prompt in prompts) == dict.fromkeys(range(5), 4)
        if kind in ("multi_value", "multi_query"):
            for prompt in prompts:
                gaps = np.diff(sorted(prompt.details["depths"]))
                np.testing.assert_allclose(gaps, 0.25)


def test_a_model_that_reads_them_all_gets_everything() -> None:
    (measured,) = NeedleGrid(trials=2, num_depths=2, max_new_tokens=60).run(context_of(Oracle(solve)), [700])
    assert {result.value for result in measured.results} == {1.0}
    metrics = Counter((result.metric, result.details.get("kind")) for result in measured.results)
    assert metrics == {
        **{("score", kind): 1 for kind in KINDS},
        **{("score_at_depth", kind): 2 for kind in KINDS},
    }
    assert [result.num_samples for result in measured.results[:4]] == [2] * 4
    assert len(measured.samples) == 8


def test_one_pass_decides_single_needles_and_generation_the_others() -> None:
    task = NeedleGrid(kinds=["single"], trials=2, num_depths=2, max_new_tokens=60)
    # Seven of eight answer tokens are read where the first is right; a model that ends at once reads no more.
    for continuation, read, score in ((solve, 2 * 7, 1.0), (lambda text: "", 0, 0.0)):
        model = Oracle(continuation)
        (measured,) = task.run(context_of(model), [500])
        assert model.tokens_read == 2 * 440 + read
        assert {(result.value, result.num_skipped) for result in measured.results} == {(score, 0)}


def test_graded_kinds_count_each_needle_where_it_lies() -> None:
    # Always the first value in the text, and no other.
    model = Oracle(lambda text: solve(text, known=1))
    task = NeedleGrid(kinds=("multi_value",), trials=5, num_depths=5, max_new_tokens=40)
    (measured,) = task.run(context_of(model), [900])
    overall, *cells = measured.results
    assert overall.value == 0.25
    assert [cell.details["depth_from"] for cell in cells] == [0.0, 0.2, 0.4, 0.6, 0.8]
    # Four needles at distances of a quarter: the first of them is in the first quarter of the text.
    for cell, low in zip(cells, np.arange(5) / 5, strict=True):
        lying = [
            depth == min(sample["depths"])
            for sample in measured.samples
            for depth in sample["depths"]
            if low <= depth < low + 0.2
        ]
        assert cell.num_samples == len(lying) > 0
        assert cell.value == pytest.approx(np.mean(lying))
        assert cell.details["interval"] == "Wilson"
    assert cells[0].value == 1.0
    assert cells[2].value == cells[4].value == 0.0


def test_samples_depend_on_the_seed_and_on_nothing_else() -> None:
    task = NeedleGrid(trials=3, num_depths=3, max_new_tokens=40)
    first = next(iter(task.run(context_of(Oracle(solve)), [700])))
    again = list(task.run(context_of(Oracle(solve)), [650, 700]))[1]
    assert again == first
    fewer = next(
        iter(
            NeedleGrid(kinds=["multi_key"], trials=3, num_depths=3, max_new_tokens=40).run(
                context_of(Oracle(solve)), [700]
            )
        )
    )
    assert fewer.samples == [sample for sample in first.samples if sample["kind"] == "multi_key"]
    other = next(iter(task.run(context_of(Oracle(solve), seed=1), [700])))
    assert len({sample["prompt_sha256"] for sample in [*first.samples, *other.samples]}) == 24


def test_documents_can_hide_the_needles(documents) -> None:
    task = NeedleGrid(kinds=["single", "multi_query"], trials=2, num_depths=2, max_new_tokens=60, haystack="documents")
    assert task.uses_documents
    assert not NeedleGrid().uses_documents
    (measured,) = task.run(context_of(Oracle(solve), documents=documents), [900])
    assert {result.value for result in measured.results} == {1.0}
    assert task.prompt(context_of(Oracle(solve), documents=documents), "single", 900, 0).prompt_ids.count(BOS) == 1


def test_a_length_without_room_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"300 tokens.* multi_key .*128") as caught:
        NeedleGrid().prompt(context_of(), "multi_key", 300, 0)
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    with pytest.raises(ConfigError):
        NeedleGrid().prompt(context_of(), "multi_key", least - 20, 0)

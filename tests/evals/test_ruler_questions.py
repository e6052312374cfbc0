"""Question answering tasks: made up facts, and files in SQuAD's and HotpotQA's formats."""

import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from skipwise.errors import ConfigError, DataError
from skipwise.evals.ruler.facts import FactWorld
from skipwise.evals.ruler.questions import (
    Distractors,
    SingleHopQuestions,
    TwoHopQuestions,
    question_draft,
    read_questions,
)

from .tiny import PieceTokenizer, context_of


def squad(num_articles: int = 3, num_paragraphs: int = 4) -> dict:
    """Paragraph p of article a says that its number is a*100+p; every other question is impossible."""

    def paragraph(a: int, p: int) -> dict:
        answers = [{"text": f"n{a}{p}x", "answer_start": 0}, {"text": f"n{a}{p}x"}, {"text": f"no {a}{p}"}]
        return {
            "context": f"In article {a} paragraph {p} the number is n{a}{p}x. " + "Then some words follow. " * 5,
            "qas": [
                {"question": f"What is number {a} {p}?", "answers": answers, "is_impossible": False, "id": "1"},
                {"question": f"What is nothing {a} {p}?", "answers": [], "is_impossible": True},
            ],
        }

    paragraphs = [[paragraph(a, p) for p in range(num_paragraphs)] for a in range(num_articles)]
    return {"version": "v2.0", "data": [{"title": f"{a}", "paragraphs": own} for a, own in enumerate(paragraphs)]}


def hotpot(num_entries: int = 6) -> list[dict]:
    return [
        {
            "question": f"Which city is {number}?",
            "answer": f"City{number}",
            "type": "bridge",
            "context": [[f"Title {number} {k}", [f"First {k}.", f" Second of {number}."]] for k in range(10)],
        }
        for number in range(num_entries)
    ]


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(squad()))
    return path


# Made up facts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_hops", [1, 2])
def test_the_answer_is_in_the_questions_own_passages_and_nowhere_else(num_hops: int) -> None:
    kinds = set()
    for seed in range(20):
        world = FactWorld(np.random.default_rng(seed))
        question = world.question(num_hops)
        assert len(question.passages) == num_hops
        (answer,) = question.references
        assert answer not in question.text
        assert answer in question.passages[-1]
        others = world.passages()
        assert not [passage for passage in (next(others) for _ in range(100)) if answer in passage]
        kinds.add(question.text.split()[0])
        subject = re.findall(r"[A-Z]\w+ [A-Z]\w+|(?<=town of )\w+", question.text)[0]
        assert subject in question.passages[0]
        if num_hops == 2:
            # The second hop is needed: who was born is not where the answer is, and the town leads there.
            assert answer not in question.passages[0]
            assert subject not in question.passages[1]
            town = re.search(r"was born in (\w+)", question.passages[0])
            assert town is not None
            assert question.passages[1].startswith(town[1] + "\n")
            assert town[1] not in question.text
    assert kinds == ({"Who", "On"} if num_hops == 2 else {"Who", "On", "In"})
    passages = [*islice(FactWorld(np.random.default_rng(0)).passages(), 1000)]
    assert len({passage.partition("\n")[0] for passage in passages}) == 1000, "no name is used twice"
    assert len(set(re.findall(r"on the river (\w+)", " ".join(passages)))) == 500


# The prompt -----------------------------------------------------------------------------------------------------------


def test_passages_are_numbered_and_the_questions_own_are_at_any_place() -> None:
    world = FactWorld(np.random.default_rng(3))
    question = world.question(1)
    distractors = Distractors(world.passages())
    places = []
    for seed in range(60):
        draft = question_draft(question, distractors, seed, 400, 0)
        blocks = re.findall(r"Passage (\d+):\n(.*?)(?=\n\n)", draft.request, re.S)
        assert [int(number) for number, _ in blocks] == list(range(1, len(blocks) + 1))
        texts = [text for _, text in blocks]
        places.append(texts.index(question.passages[0]) / len(texts))
        assert draft.request.endswith(f"Question: {question.text}")
        assert draft.answer_prefix == "Answer:"
        assert sorted(texts) == sorted([*question.passages, *distractors(400)])
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 5


def test_distractors_are_cut_by_words_and_end_where_there_are_no_more() -> None:
    distractors = Distractors(["a b\nc d", "e f", "g"])
    assert distractors(0) == []
    assert distractors(2) == ["a b\nc"]
    assert distractors(3) == ["a b\nc d"]
    assert distractors(4) == ["a b\nc d", "e"]
    assert distractors(99) == ["a b\nc d", "e f", "g"]


# Files ----------------------------------------------------------------------------------------------------------------


def test_squad_is_read_without_its_impossible_questions(squad_file: Path) -> None:
    pool = read_questions(squad_file)
    assert (pool.name, pool.sha256) == ("mine.json", hashlib.sha256(squad_file.read_bytes()).hexdigest())
    assert len(pool.questions) == len(pool.passages) == 12
    question = pool.questions[5]
    assert question.text == "What is number 1 1?"
    assert question.references == ["n11x", "no 11"]
    assert "n11x" in question.passages[0]
    # The article's other paragraphs distract first.
    assert [re.findall(r"n\d\dx", passage)[0] for passage in question.related] == ["n10x", "n12x", "n13x"]
    # A file that has changed is read again.
    squad_file.write_text(json.dumps(squad(num_articles=1)))
    assert len(read_questions(squad_file).questions) == 4


def test_hotpotqa_is_read_with_all_paragraphs_of_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([*hotpot(), {"question": "Unknown?", "context": [["T", ["S."]]]}]))
    pool = read_questions(path)
    assert pool.questions[2].references == ["City2"]
    assert pool.questions[2].passages[3] == "Title 2 3\nFirst 3. Second of 2."
    assert len(pool.questions[2].passages) == 10
    assert len(pool.passages) == 61
    # An entry without an answer is kept, to be counted as one that cannot be scored.
    assert pool.questions[6].references == []
    task, context = TwoHopQuestions(file=str(path), trials=7), context_of(tokenizer=PieceTokenizer())
    (unknown,) = (prompt for i in range(7) if not (prompt := task.prompt(context, 1024, i)).references)
    assert unknown.answer_ids == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ("{}", r"entry data: field required"),
        ("[]", "no question"),
        ('[{"question": "Q", "context": [["T", "not a list"]]}]', r"entry \[0\]\.context\[0\]\[1\]: "),
        (
            '{"data": [{"paragraphs": []}, {"paragraphs": [{"context": "C", "qas": [{"answers": []}]}]}]}',
            r"entry data\[1\]\.paragraphs\[0\]\.qas\[0\]\.question: field required",
        ),
        ("3", "entry at the top"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_entry(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"bad\.json.*" + named) as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"missing\.json cannot be read"):
        read_questions(tmp_path / "missing.json")


def test_each_trial_asks_another_question_and_related_passages_come_first(squad_file: Path) -> None:
    task = SingleHopQuestions(file=str(squad_file), trials=12)
    here = context_of(tokenizer=PieceTokenizer())
    asked = []
    for index in range(12):
        draft = task.drafter(here, 1024, index)(60, 0)
        again = task.drafter(here, 2048, index)(60, 0)
        assert again.details["question"] == draft.details["question"]
        asked.append(draft.details["question"])
        article = draft.references[0][1]
        numbers = re.findall(r"paragraph \d the number is n(\d)\dx", draft.request)
        assert len(numbers) >= 3
        assert set(numbers) == {article}
    assert len(set(asked)) == 12
    with pytest.raises(ConfigError, match=r"trials is 13 and mine\.json has 12 questions"):
        SingleHopQuestions(file=str(squad_file), trials=13).drafter(here, 1024, 0)


def test_a_small_file_is_topped_up_with_filler_and_says_so(squad_file: Path) -> None:
    prompt = SingleHopQuestions(file=str(squad_file), trials=2).prompt(context_of(tokenizer=PieceTokenizer()), 4096, 0)
    assert 0.98 * 4096 <= prompt.num_tokens <= 4096
    assert prompt.details["passages"] == 12
    assert prompt.details["filler_words"] > 500

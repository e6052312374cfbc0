"""All RULER tasks: their list, the lengths of their prompts, the search for these lengths, and how they run."""

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.errors import ConfigError
from skipwise.evals import TASK_GROUPS, TASKS, EvalContext, evaluate
from skipwise.evals.drafts import Draft, PromptEncoder
from skipwise.evals.prompts import string_match_all, string_match_any
from skipwise.evals.ruler.task import TOLERANCE, filler_lines, filler_words, fit_length

from .tiny import ByteTokenizer, ChatTokenizer, Oracle, PieceTokenizer, context_of, prose_documents

RULER = {name: TASKS[name] for name in TASK_GROUPS["ruler"]}
NIAH = ["single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery"]


def with_prose(tokenizer: Any, seed: int = 0) -> EvalContext:
    return context_of(tokenizer=tokenizer, documents=prose_documents(tokenizer), seed=seed)


def test_there_are_thirteen_tasks_as_published() -> None:
    names = [f"niah_{kind}" for kind in NIAH] + ["vt", "cwe", "fwe", "qa_1", "qa_2"]
    assert list(RULER) == [f"ruler_{name}" for name in names]
    tokens = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
    for name, task in RULER.items():
        family = name.split("_")[1]
        assert (task.name, task.max_new_tokens) == (name, tokens[family])
        assert task().score is (string_match_any if family == "qa" else string_match_all)
        own = ["file"] if family == "qa" else []
        assert [field.name for field in fields(task)] == ["trials", "chat", "thinking_tokens", *own]
    assert (RULER["ruler_vt"].num_chains, RULER["ruler_vt"].num_hops) == (1, 4)
    essays = ("single_2", "single_3", "multikey_1", "multivalue", "multiquery")
    assert {name for name, task in RULER.items() if task().uses_documents} == {f"ruler_niah_{kind}" for kind in essays}


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize(
    ("tokenizer", "lengths"),
    [(PieceTokenizer, (1000, 1024, 2048, 4096, 10000)), (ByteTokenizer, (4000, 16384)), (ChatTokenizer, (1500, 6000))],
)
def test_prompts_with_their_answers_fill_the_length_and_never_exceed_it(name: str, tokenizer, lengths) -> None:
    context = with_prose(tokenizer())
    task = RULER[name](chat=tokenizer is ChatTokenizer)
    for length in lengths:
        for index in range(2):
            prompt = task.prompt(context, length, index)
            assert 0.98 * length <= prompt.num_tokens <= length
            # A right answer is known where there is one reference.
            answer = context.tokenizer.decode(prompt.answer_ids)
            assert answer == (f" {prompt.references[0]}" if len(prompt.references) == 1 else "")
            # What is asked for can be found in the prompt, and all of the prompt is there to its last word.
            text = context.tokenizer.decode(prompt.prompt_ids)
            assert prompt.references
            assert all(reference in text for reference in prompt.references)
            prefix_end = text.rstrip()[-8:]
            assert prefix_end in ("tates is", "ates are", "Answer:") or prefix_end.endswith(":")
            assert (prompt.prompt_ids[0] == context.tokenizer.bos_token_id) is not task.chat


@pytest.mark.parametrize("name", RULER)
def test_a_trial_depends_on_seed_length_and_index_alone(name: str) -> None:
    task, context = RULER[name](), with_prose(PieceTokenizer())
    first = task.prompt(context, 1500, 3)
    task.prompt(context, 1500, 0)
    assert task.prompt(context, 1500, 3) == first
    others = [task.prompt(context, 1500, 4), task.prompt(with_prose(context.tokenizer, seed=1), 1500, 3)]
    assert all(other.references != first.references for other in others)


def test_a_length_that_holds_no_prompt_is_refused_before_any_is_measured() -> None:
    model = Oracle(lambda text: "")
    with pytest.raises(ConfigError, match="ruler_fwe length is 200 tokens"):
        evaluate(model, ByteTokenizer(), [RULER["ruler_fwe"](trials=1)], [200], progress=False)
    assert model.tokens_read == 0


def finder(num_found: int | None):
    """A model that writes the values of the keys in its prompt's last sentence: all, or the first so many."""

    def continuation(text: str) -> str:
        asked, _, rest = text.rpartition(" that the text above states ")
        keys = re.findall(r"[a-z]+-[a-z]+", asked.rpartition("The secret")[2])
        values = [value for key in keys for value in re.findall(rf"One secret number of {key} is: (\d+)\.", asked)]
        answer = " " + ", ".join(values[:num_found]) + "."
        return answer[len(re.sub("^(is|are)", "", rest)) :]

    return Oracle(continuation)


@pytest.mark.parametrize(("num_found", "expected"), [(None, [1, 1, 1]), (2, [1, 0.5, 0.5]), (0, [0, 0, 0])])
def test_the_score_is_the_share_of_values_found(num_found: int | None, expected: list[float]) -> None:
    tasks = [RULER[f"ruler_niah_{kind}"](trials=1) for kind in ("single_1", "multivalue", "multiquery")]
    documents = [np.frombuffer(b"A sentence here. Another one there. ", np.uint8)]
    results = evaluate(finder(num_found), ByteTokenizer(), tasks, [1000], documents, progress=False)
    assert [(result.metric, result.value) for result in results] == [("score", value) for value in expected]


def test_questions_of_a_file_run_and_those_without_answer_are_counted_not_scored(tmp_path: Path) -> None:
    path, lines = tmp_path / "mine.json", tmp_path / "samples.jsonl"
    entries = [{"question": f"Q{n}?", "answer": "Paris", "context": [["T", ["It is Paris."]]]} for n in range(2)]
    path.write_text(json.dumps([*entries, {"question": "Q?", "context": [["T", ["It is."]]]}]))
    task = RULER["ruler_qa_2"](trials=3, file=str(path))  # type: ignore[call-arg]
    model = Oracle(lambda text: " in PARIS."[len(text.rpartition("Answer:")[2]) :])
    (result,) = evaluate(model, ByteTokenizer(), [task], [1200], progress=False, samples_out=lines)
    assert (result.value, result.num_samples, result.num_skipped) == (1.0, 2, 1)
    assert result.details["questions"] == "mine.json"
    assert result.details["questions_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    samples = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(str(sample["score"]) for sample in samples) == ["1.0", "1.0", "None"]
    assert all(sample["filler_words"] > 0 and sample["prompt_sha256"] for sample in samples)


def test_results_of_made_up_questions_say_so() -> None:
    model = Oracle(lambda text: "")
    (result,) = evaluate(model, ByteTokenizer(), [RULER["ruler_qa_1"](trials=2)], [1200], progress=False)
    assert (result.value, result.details["questions"]) == (0.0, "generated facts")


# --- the search for the length ----------------------------------------------------------------------------------------


class CountingEncoder(PromptEncoder):
    """Counts the prompts it was given."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        super().__init__(tokenizer)
        self.num_encoded = 0

    def encode(self, draft: Draft):
        self.num_encoded += 1
        return super().encode(draft)


def draft_of(units: list[str], filler_after: bool = True):
    """Prompts that begin with so many of the units."""

    def draft(num_units: int, num_filler_words: int) -> Draft:
        filler = filler_words(num_filler_words) if filler_after else ""
        return Draft(request=" ".join(["Ask", *units[:num_units], filler]), answer_prefix="So", references=["x"])

    return draft


def fitted(draft, length: int, *, max_new_tokens: int = 8) -> tuple[int, CountingEncoder]:
    encoder = CountingEncoder(PieceTokenizer())
    found = fit_length(draft, encoder, length, max_new_tokens=max_new_tokens, task="a task")
    return len(found.prompt_ids) + max_new_tokens, encoder


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(600, 3000))
def test_any_units_fill_the_length_and_never_more(sizes: list[int], length: int) -> None:
    units = ["abcd " * (sizes[place % len(sizes)] - 1) + "abcd" for place in range(3000)]
    total, _ = fitted(draft_of(units), length)
    assert length * (1 - TOLERANCE) <= total <= length


@pytest.mark.parametrize("length", [700, 5000, 40000])
def test_it_takes_few_tokenizations(length: int) -> None:
    rng = np.random.default_rng(0)
    units = ["abcd" * int(size) for size in rng.integers(1, 6, size=40000)]
    total, encoder = fitted(draft_of(units), length)
    assert length * (1 - TOLERANCE) <= total <= length
    assert encoder.num_encoded <= 7


def test_units_whose_tokens_jump_are_still_never_overfilled() -> None:
    """A merge over the boundary may make a longer text shorter; what is returned was measured."""
    units = ["abcdefgh" if place % 7 else "z " * 30 + "z" for place in range(4000)]
    for length in range(400, 460, 7):
        total, _ = fitted(draft_of(units), length)
        assert length * (1 - TOLERANCE) <= total <= length


def test_what_runs_out_is_topped_up_with_filler() -> None:
    assert fitted(draft_of(["abcd"]), 11)[0] == 11
    total, _ = fitted(draft_of(["abcd"] * 20), 1000)
    assert 980 <= total <= 1000
    alone, _ = fitted(draft_of(["abcd"] * 20, filler_after=False), 1000)
    assert alone < 40


def test_filler_by_lines_is_the_filler_by_words() -> None:
    for count in (0, 1, 19, 20, 21, 22, 60, 61):
        assert " ".join(filler_lines(count)) == filler_words(count)
        assert len(filler_words(count).split()) == count
    assert len(set(filler_lines(60))) == 1


def test_a_chat_puts_the_request_into_the_users_turn_and_the_prefix_after_the_header() -> None:
    tokenizer = ChatTokenizer()
    draft = Draft(request="What is it?", answer_prefix="It is", references=["five"])
    chat = PromptEncoder(tokenizer, chat=True).encode(draft)
    assert tokenizer.decode(chat.prompt_ids) == "<user>What is it?</user><assistant>It is"
    plain = PromptEncoder(tokenizer, bos_ids=[0]).encode(draft)
    assert plain.prompt_ids[0] == 0
    assert tokenizer.decode(plain.prompt_ids) == "<s>What is it? It is"
    with pytest.raises(ConfigError, match="no chat template"):
        PromptEncoder(PieceTokenizer(), chat=True)


def test_answer_ids_are_what_follows_the_prefix_or_nothing() -> None:
    tokenizer = PieceTokenizer()
    encoder = PromptEncoder(tokenizer)
    draft = Draft(request="Ask", answer_prefix="It is", references=["12345"])
    assert tokenizer.decode(encoder.answer_ids(draft, 8)) == " 12345"
    assert encoder.answer_ids(draft, 4) == []

    class Merging(PieceTokenizer):
        """Writes the prefix's end and the answer's beginning as one token."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [self._id(text)]

    assert PromptEncoder(Merging()).answer_ids(draft, 8) == []

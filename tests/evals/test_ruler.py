"""All RULER tasks: their list, their settings, the lengths of their prompts, and how they run."""

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from skipwise.errors import ConfigError
from skipwise.evals import TASK_GROUPS, TASKS, EvalContext, evaluate
from skipwise.evals.prompts import string_match_all, string_match_any

RULER = {name: TASKS[name] for name in TASK_GROUPS["ruler"]}

from .conftest import ByteTokenizer
from .oracle import Oracle
from .ruler_tokenizer import ChatTokenizer, PieceTokenizer, prose_documents

TASKS = sorted(RULER)


def context_of(tokenizer, seed: int = 0) -> EvalContext:
    return EvalContext(model=None, tokenizer=tokenizer, documents=prose_documents(tokenizer), seed=seed, progress=False)


def test_there_are_thirteen_tasks_by_their_published_names() -> None:
    niah = ["single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery"]
    names = [f"niah_{kind}" for kind in niah] + ["vt", "cwe", "fwe", "qa_1", "qa_2"]
    assert list(RULER) == [f"ruler_{name}" for name in names]
    assert all(task.name == name for name, task in RULER.items())


def test_answers_have_the_published_number_of_tokens_and_score() -> None:
    tokens = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
    for name, task in RULER.items():
        family = name.split("_")[1]
        assert task.max_new_tokens == tokens[family]
        assert task().score is (string_match_any if family == "qa" else string_match_all)
    assert (RULER["ruler_vt"].num_chains, RULER["ruler_vt"].num_hops) == (1, 4)  # type: ignore[attr-defined]
    essays = {name for name, task in RULER.items() if task().uses_documents}
    assert essays == {
        f"ruler_niah_{kind}" for kind in ("single_2", "single_3", "multikey_1", "multivalue", "multiquery")
    }


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_the_dataclass_fields(name: str) -> None:
    settings = [field.name for field in fields(RULER[name])]
    assert settings == ["trials", "chat", "thinking_tokens"] + ["file"] * name.startswith("ruler_qa")
    assert RULER[name](trials=3, chat=True).trials == 3
    with pytest.raises(ConfigError, match=f"{name}.trials is 0"):
        RULER[name](trials=0)
    with pytest.raises(ConfigError, match=f"{name}.thinking_tokens is 9, and plain text is not thought about"):
        RULER[name](thinking_tokens=9)
    with pytest.raises(ConfigError, match=f"{name}.chat is 'yes'"):
        RULER[name](chat="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("tokenizer", "lengths"),
    [(PieceTokenizer, (1000, 1024, 2048, 4096, 10000)), (ByteTokenizer, (4000, 16384)), (ChatTokenizer, (1500, 6000))],
)
def test_prompts_with_their_answers_fill_the_length_and_never_exceed_it(name: str, tokenizer, lengths) -> None:
    context = context_of(tokenizer())
    task = RULER[name](chat=tokenizer is ChatTokenizer)
    for length in lengths:
        for index in range(2):
            prompt = task.prompt(context, length, index)
            assert 0.98 * length <= prompt.num_tokens <= length
            # What is asked for can be found in the prompt, and all of the prompt is there to its last word.
            text = context.tokenizer.decode(prompt.prompt_ids)
            assert prompt.references
            assert all(reference in text for reference in prompt.references)
            prefix_end = text.rstrip()[-8:]
            assert prefix_end in ("tates is", "ates are", "Answer:") or prefix_end.endswith(":")
            assert (prompt.prompt_ids[0] == context.tokenizer.bos_token_id) is not task.chat


@pytest.mark.parametrize("name", TASKS)
def test_a_trial_depends_on_seed_length_and_index_alone(name: str) -> None:
    task, context = RULER[name](), context_of(PieceTokenizer())
    first = task.prompt(context, 1500, 3)
    task.prompt(context, 1500, 0)
    assert task.prompt(context, 1500, 3) == first
    others = [task.prompt(context, 1500, 4), task.prompt(context_of(context.tokenizer, seed=1), 1500, 3)]
    assert all(other.references != first.references for other in others)


@pytest.mark.parametrize("name", TASKS)
def test_a_length_below_the_smallest_prompt_is_refused_with_the_numbers(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} length is 140 tokens; its smallest prompt takes \d+ and the answer"
    ):
        RULER[name]().prompt(context_of(PieceTokenizer()), 140, 0)


def test_a_length_that_holds_no_prompt_is_refused_before_any_is_measured() -> None:
    model = Oracle(lambda text: "")
    with pytest.raises(ConfigError, match="ruler_fwe length is 200 tokens"):
        evaluate(model, ByteTokenizer(), [RULER["ruler_fwe"](trials=1)], [200], progress=False)
    assert model.tokens_read == 0


def test_a_teacher_forced_answer_exists_where_there_is_one_reference() -> None:
    context = context_of(PieceTokenizer())
    for name, task in RULER.items():
        prompt = task().prompt(context, 1500, 0)
        assert (prompt.answer_ids is not None) == (len(prompt.references) == 1), name
        if prompt.answer_ids is not None:
            assert context.tokenizer.decode(prompt.answer_ids) == f" {prompt.references[0]}"


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
    assert len(result.details["questions_sha256"]) == 64
    samples = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(str(sample["score"]) for sample in samples) == ["1.0", "1.0", "None"]
    assert all(sample["filler_words"] > 0 and sample["prompt_sha256"] for sample in samples)


def test_results_of_made_up_questions_say_so() -> None:
    model = Oracle(lambda text: "")
    (result,) = evaluate(model, ByteTokenizer(), [RULER["ruler_qa_1"](trials=2)], [1200], progress=False)
    assert (result.value, result.details["questions"]) == (0.0, "generated facts")

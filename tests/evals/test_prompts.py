"""Prompts are answered as wholes, scored as RULER scores, and counted honestly."""

import logging
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import prompts
from skipwise.evals.haystack import running_text
from skipwise.evals.prompts import (
    Prompt,
    answer_prompts,
    opening_ids,
    score_results,
    split_answers,
    string_match_all,
    string_match_any,
    texts_of_any_length,
)
from skipwise.records.results import hash_tokens

from .tiny import BOS, END, ByteTokenizer, Oracle, context_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiz:
    name: ClassVar[str] = "quiz"
    uses_documents: ClassVar[bool] = False
    rounds: int = 1


class EndingTokenizer(ByteTokenizer):
    """Closes a text with an end token, too."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode(text, add_special_tokens=add_special_tokens) + [END] * add_special_tokens


def ask(text: str, references: list[str], *, max_new_tokens: int = 12, answer: str = "") -> Prompt:
    return Prompt(
        prompt_ids=list(text.encode()),
        references=references,
        max_new_tokens=max_new_tokens,
        answer_ids=list(answer.encode()),
        details={"asked": text},
    )


def writer(full: str) -> Any:
    """A context whose model continues any text that ends with `:` and a part of `full` with the rest."""
    return context_of(Oracle(lambda text: full[len(text.rpartition(":")[2]) :]))


# Cases by hand from the scoring that RULER's paper describes: containment, in any case of letters, averaged.
CASES = [
    ("the numbers are 123 and 456.", ["123", "456"], 1.0, 1.0),
    ("the number is 123.", ["123", "456"], 0.5, 1.0),
    ("123", ["123", "456", "789"], 1 / 3, 1.0),
    ("it is PARIS, france", ["Paris"], 1.0, 1.0),
    ("paris", ["PARIS", "Paris, France"], 0.5, 1.0),
    ("91234567 or so", ["1234567"], 1.0, 1.0),
    ("12 3", ["123"], 0.0, 0.0),
    ("", ["123"], 0.0, 0.0),
    ("a a a", ["a", "a"], 1.0, 1.0),
    ("none of it", ["x", "y"], 0.0, 0.0),
    ("line\nbreaks are text", ["breaks ARE"], 1.0, 1.0),
    # Blank references say nothing, and without others there is no score.
    ("wrong", ["", "right"], 0.0, 0.0),
    ("right", ["", "right"], 1.0, 1.0),
    *(("anything", references, None, None) for references in ([], [""], [" ", "\n"])),
]


@pytest.mark.parametrize(("output", "references", "all_of_them", "any_of_them"), CASES)
def test_scores_by_hand(output: str, references: list[str], all_of_them: Any, any_of_them: Any) -> None:
    assert string_match_all(output, references) == pytest.approx(all_of_them)
    assert string_match_any(output, references) == any_of_them


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.lists(st.text("aB", min_size=1, max_size=3)))
def test_more_text_never_lowers_a_score(output: str, more: str, references: list[str]) -> None:
    for score in (string_match_all, string_match_any):
        before, after = score(output, references), score(output + more, references)
        assert (before is None and after is None) or after >= before  # type: ignore[operator]


def test_a_sample_tells_prompt_output_and_score() -> None:
    prompt = ask("What? :", ["yes", "sure"])
    (sample,) = answer_prompts(writer(" Yes, so."), Quiz(), 32, 1, lambda index: prompt, string_match_all)
    assert sample == {
        "task": "quiz",
        "length_tokens": 32,
        "asked": "What? :",
        "prompt_tokens": 7,
        "max_new_tokens": 12,
        "prompt_sha256": hash_tokens(list(b"What? :")),
        "references": ["yes", "sure"],
        "output": " Yes, so.",
        "output_ids": list(b" Yes, so."),
        "score": 0.5,
    }


def test_an_output_ends_once_its_score_is_full_and_not_before() -> None:
    build = [ask("a:", ["one"]), ask("b:", ["ONE", "three"]), ask("c:", ["nine"])]
    context = writer("one two three four")
    samples = answer_prompts(context, Quiz(), 24, 3, build.__getitem__, string_match_all)
    assert [sample["output"] for sample in samples] == ["one", "one two thre", "one two thre"]
    assert [sample["score"] for sample in samples] == [1.0, 0.5, 0.0]


def test_scores_that_may_fall_see_the_whole_output() -> None:
    def exactly(output: str, references: Any) -> float:
        return float(output == references[0])

    context = writer("one two")
    (sample,) = answer_prompts(context, Quiz(), 24, 1, lambda index: ask("a:", ["one"]), exactly)
    assert (sample["output"], sample["score"]) == ("one two", 0.0)


def test_a_right_answer_is_decided_in_one_pass_over_it() -> None:
    context = writer(" one, and two")
    (right,) = answer_prompts(context, Quiz(), 24, 1, lambda index: ask("a:", ["one"], answer=" one"), string_match_all)
    # The prompt, and the answer but its last token.
    assert (right["output"], right["score"], context.model.tokens_read) == (" one", 1.0, 2 + 3)
    other = writer(" One, and two")
    (generated,) = answer_prompts(
        other, Quiz(), 24, 1, lambda index: ask("a:", ["one"], answer=" one"), string_match_all
    )
    assert (generated["output"], generated["score"]) == (" One", 1.0)


def test_answers_do_not_depend_on_the_batch(monkeypatch) -> None:
    build = [ask(f"{'x' * index}{index}:", ["7"]) for index in range(9)]
    runs = []
    for tokens in (16384, 60, 1):
        monkeypatch.setattr(prompts, "BATCH_TOKENS", tokens)
        context = context_of(Oracle(lambda text: "" if text.rpartition(":")[2] else text[-2]))
        runs.append(answer_prompts(context, Quiz(), 30, 9, build.__getitem__, string_match_all))
    assert runs[0] == runs[1] == runs[2]
    assert [sample["score"] for sample in runs[0]] == [0.0] * 7 + [1.0, 0.0]


def test_a_prompt_that_does_not_fit_is_an_error_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"quiz: prompt 1 takes 33 .*21 and 12.* 32"):
        answer_prompts(writer(""), Quiz(), 32, 2, lambda index: ask("x" * (20 + index), ["x"]), string_match_all)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_ids": [], "max_new_tokens": 3}, "prompt of 0 tokens .* in 3"),
        ({"prompt_ids": [1], "max_new_tokens": 0}, "prompt of 1 tokens .* in 0; .* at least 1"),
        ({"prompt_ids": [1], "max_new_tokens": 2, "answer_ids": [1, 2, 3]}, "answer of 3 .* in 2; .* at least 3"),
    ],
)
def test_prompts_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Prompt(references=["x"], **settings)


def scored(*scores: float | None) -> list[dict[str, Any]]:
    return [{"score": score} for score in scores]


@pytest.mark.parametrize(
    ("scores", "value", "low", "high"),
    # Wilson's intervals of 3 out of 4, and of 50 out of 100: that of graded scores is not narrower.
    [([1.0, 0.0, 1.0, 1.0], 0.75, 0.3006, 0.9544), ([0.25, 0.75] * 50, 0.5, 0.4038, 0.5962)],
)
def test_scores_get_wilsons_interval(scores: list[float], value: float, low: float, high: float) -> None:
    (result,) = score_results(writer(""), Quiz(), 64, scored(*scores), metric="share", depth_from=0.5)
    assert (result.task, result.length_tokens, result.metric, result.value) == ("quiz", 64, "share", value)
    assert (result.ci_low, result.ci_high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert result.details.items() >= {"interval": "Wilson", "depth_from": 0.5}.items()


def test_a_worse_answer_never_raises_the_lower_bound() -> None:
    perfect, nearly, equal = (
        score_results(writer(""), Quiz(), 64, scored(*scores))[0]
        for scores in ([1.0] * 20, [1.0] * 19 + [0.75], [0.75] * 20)
    )
    assert perfect.ci_low > nearly.ci_low > equal.ci_low  # type: ignore[operator]
    assert (nearly.value, equal.value) == (0.9875, 0.75)
    assert equal.ci_low < 0.6, "twenty equal answers are not certain"  # type: ignore[operator]


@pytest.mark.parametrize(("details", "kind"), [({}, ""), ({"kind": "single"}, ", kind single")])
def test_nan_logits_stop_with_the_item(details: dict, kind: str, monkeypatch) -> None:
    # Two at a time: it is the second of its batch.
    monkeypatch.setattr(prompts, "BATCH_TOKENS", 48)
    build = [replace(ask(f"{index}:", ["x"]), details=details) for index in range(5)]
    context = context_of(Oracle(lambda text: "x"))
    read = context.model.forward

    def poisoned(**given: Any) -> Any:
        output = read(**given)
        output.logits[(given["input_ids"] == ord("3")).any(-1)] = float("nan")
        return output

    context.model.forward = poisoned
    with pytest.raises(CheckpointError, match=rf"quiz, length 24{kind}, item 3: logits are NaN at position 1"):
        answer_prompts(context, Quiz(), 24, 5, build.__getitem__, string_match_all)


def test_what_cannot_be_scored_is_counted_and_not_averaged(caplog: pytest.LogCaptureFixture) -> None:
    (result,) = score_results(writer(""), Quiz(), 64, scored(1.0, None, 1.0, None, None))
    assert (result.value, result.num_samples, result.num_skipped) == (1.0, 2, 3)
    assert not caplog.records
    samples = answer_prompts(
        writer("one"), Quiz(), 24, 2, [ask("a:", []), ask("b:", ["one"])].__getitem__, string_match_any
    )
    assert [sample["score"] for sample in samples] == [None, 1.0]
    assert score_results(writer(""), Quiz(), 64, scored(None, None), kind="open") == []
    assert "quiz, kind open at 64: none of 2 samples can be scored" in caplog.text


def test_openings_have_what_goes_before_a_text_and_nothing_after() -> None:
    assert opening_ids(ByteTokenizer(), "Hi") == [BOS, *b"Hi"]
    assert opening_ids(ByteTokenizer(adds_bos=False), "Hi") == list(b"Hi")
    assert opening_ids(EndingTokenizer(), "Hi") == [BOS, *b"Hi"]


def test_answers_take_what_the_tokenizer_joins_to_them() -> None:
    class Joining(ByteTokenizer):
        """One token, 200, for `s 1`, across question and answer."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return list(text.encode().replace(b"s 1", b"\xc8"))

    assert split_answers(ByteTokenizer(), "It is", [" 12"]) == (list(b"It is"), [list(b" 12")])
    assert split_answers(Joining(), "It is", [" 12"]) == (list(b"It i"), [[200, *b"2"]])
    assert split_answers(ByteTokenizer(), "It is", [""]) == (list(b"It is"), [[]])


def test_running_text_joins_documents_without_their_first_token() -> None:
    documents = [np.array([BOS, 1, 2]), np.array([3]), np.array([BOS, 4, 5, 6])]
    context = context_of(documents=documents)
    texts = {tuple(running_text(context, 8, np.random.default_rng(seed))) for seed in range(20)}
    assert texts == {(1, 2, 3, 4, 5, 6, 1, 2), (3, 4, 5, 6, 1, 2, 3, 4), (4, 5, 6, 1, 2, 3, 4, 5)}
    with pytest.raises(DataError, match="a haystack of documents was asked for and there are none"):
        running_text(context_of(), 8, np.random.default_rng(0))
    with pytest.raises(DataError, match="none of the 2 documents has a token"):
        running_text(context_of(documents=[np.array([BOS]), np.array([], int)]), 8, np.random.default_rng(0))


def test_texts_of_any_length_are_tokenized_without_a_warning(tiny_checkpoint, caplog, monkeypatch) -> None:
    # The library's own logger keeps its records to itself.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, model_max_length=64)
    with texts_of_any_length(tokenizer):
        tokenizer.encode("x" * 100)
    assert not caplog.records
    assert tokenizer.model_max_length == 64
    tokenizer.encode("x" * 100)
    assert "longer than the specified maximum" in caplog.text

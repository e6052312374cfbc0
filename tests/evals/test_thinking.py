# ruff: noqa: RUF001 - the bars of DeepSeek's control tokens are wide ones
"""Reasoning models: their published templates, rendered by transformers, and a model that thinks before it answers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from skipwise.evals import TASKS, EvalContext, SampleCache, evaluate
from skipwise.evals.drafts import Draft, PromptEncoder
from skipwise.evals.prompts import string_match_all
from skipwise.evals.thinking import AfterThought, answer_of, without_thought

from .tiny import ByteTokenizer, Oracle, key_reader

# The ends of published templates, before which messages are written as here.
_MESSAGES = "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
_CHATML = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
TEMPLATES = {
    "qwen3": _MESSAGES
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and "
    "enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
    "qwen3-thinking": _MESSAGES
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}",
    "deepseek-r1": "{% for m in messages %}{{ '<｜User｜>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    "deepseek-v3.1": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{{ '<｜User｜>' + m.content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<｜Assistant｜>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}",
    "qwen2.5": _MESSAGES + _CHATML,
}
ENDS = {
    # What transformers makes of a template that is told not to think, and of an empty thought elsewhere.
    "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\nIt is",
    "qwen3-thinking": "<|im_start|>assistant\n<think>\n\n</think>\n\nIt is",
    "deepseek-r1": "<｜Assistant｜><think>\n\n</think>\n\nIt is",
    "deepseek-v3.1": "<｜Assistant｜></think>It is",
    "qwen2.5": "<|im_start|>assistant\nIt is",
}
ENDS_IN_THOUGHT = {
    "qwen3": "<|im_start|>assistant\n",
    "qwen3-thinking": "<|im_start|>assistant\n<think>\n",
    "deepseek-r1": "<｜Assistant｜><think>\n",
    "deepseek-v3.1": "<｜Assistant｜><think>",
    "qwen2.5": "<|im_start|>assistant\n",
}


class Chat(ByteTokenizer):
    """One token a byte, with a real template."""

    def __init__(self, template: str) -> None:
        super().__init__(adds_bos=False)
        self.chat_template = TEMPLATES[template]

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool, **how: Any) -> str:
        assert not tokenize
        (rendered,), _ = render_jinja_template([messages], chat_template=self.chat_template, **how)
        return rendered

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if 0 < token < 256).decode("utf8", "replace")


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_begins_behind_the_thought(template: str) -> None:
    tokenizer = Chat(template)
    draft = Draft(request="What is it?", answer_prefix="It is", references=["five"])
    text = tokenizer.decode(PromptEncoder(tokenizer, chat=True).encode(draft).prompt_ids)
    assert text.endswith(ENDS[template])
    assert "What is it?" in text
    thinking = PromptEncoder(tokenizer, chat=True, thinks=True)
    assert tokenizer.decode(thinking.encode(draft).prompt_ids).endswith(ENDS_IN_THOUGHT[template])
    assert thinking.opens_thought == ENDS_IN_THOUGHT[template].rstrip().endswith("<think>")


def test_thoughts_by_other_names() -> None:
    for name in ("<thinking>", "<seed:think>", "[THINK]", "<reasoning>"):
        assert without_thought(f"A: {name}\n") == f"A: {name}\n\n{name[0]}/{name[1:]}\n\n"
    for closed in ("A: <think>\n\n</think>\n\n", "I think", "<b>", "Think: <think> about"):
        assert without_thought(closed) == closed
    assert answer_of("well</think>\n\n5", opened=True) == "\n\n5"
    assert answer_of("<think>5</think>6", opened=False) == "6"
    assert answer_of("5, and more", opened=False) == "5, and more"
    assert answer_of("5, and more", opened=True) == answer_of("<think>5, and", opened=False) == ""
    assert AfterThought(string_match_all, opened=True)("5? no</think> 6", ["5"]) == 0


def reasoner(thought: str, *, answers: bool = True) -> Oracle:
    """Writes `thought` wherever a thought is open, closes it, and then the number that was asked for."""

    def continuation(text: str) -> str:
        begun = text.rfind("<think>")
        if begun > text.rfind("</think>"):
            return f"{thought}</think>"[len(text) - begun - len("<think>") :].lstrip() or "."
        turn = max(text.rfind("assistant\n"), text.rfind("</think>"))
        said = text[turn:]
        key = re.findall(r"[a-z]+-[a-z]+", text[: text.rfind(" that the text above states")])[-1]
        value = re.findall(rf"secret number of {key} is: (\d+)\.", text)[0]
        if not answers or value in said:
            return ""
        done = next((n for n in range(len(value), 0, -1) if said.endswith(value[:n])), 0)
        return value[done:] if done or said.endswith(" ") else " "

    return Oracle(continuation)


DOCUMENTS = [np.frombuffer(b"A sentence here. Another one there. ", np.uint8)]


def score(model: Oracle, template: str, **how: Any) -> Any:
    task = TASKS["ruler_niah_single_2"](trials=2, chat=True, **how)  # type: ignore[call-arg]
    (result,) = evaluate(model, Chat(template), [task], [1600], DOCUMENTS, progress=False)
    return result.value


@pytest.mark.parametrize("template", ["qwen3", "deepseek-r1", "qwen2.5"])
def test_a_model_that_would_think_for_long_answers_at_once(template: str) -> None:
    assert score(reasoner("Hmm. " * 200), template) == 1.0


def test_thinking_has_a_budget_of_its_own_that_counts() -> None:
    thought = "Hmm, it could be anything. " * 4
    assert score(reasoner(thought), "deepseek-r1", thinking_tokens=160) == 1.0
    # What is mentioned in a thought is no answer, and a thought without an end has none.
    assert score(reasoner(thought + "1234567 " * 5, answers=False), "deepseek-r1", thinking_tokens=160) == 0.0
    assert score(reasoner("Hmm. " * 40), "deepseek-r1", thinking_tokens=50) == 0.0
    task = TASKS["ruler_niah_single_2"](trials=1, chat=True, thinking_tokens=160)  # type: ignore[call-arg]
    context = EvalContext(model=reasoner(thought), tokenizer=Chat("deepseek-r1"), documents=DOCUMENTS, progress=False)
    prompt = task.prompt(context, 1600, 0)
    assert prompt.max_new_tokens == 160 + 128
    assert 0.98 * 1600 <= len(prompt.prompt_ids) + 160 + 128 <= 1600


def test_nothing_but_zeros_is_warned_of_with_a_prompt_and_its_answer(tmp_path: Path, caplog) -> None:
    """The one line shows what the model was given, to its last token, and what it wrote."""
    cache = SampleCache(tmp_path)
    for _ in ("measured", "from the cache"):
        caplog.clear()
        tasks = [{"kind": "ruler_niah_single_2", "trials": 2, "chat": True}, {"kind": "ruler_vt", "trials": 2}]
        evaluate(Oracle(says("Sorry.")), Chat("qwen2.5"), tasks, [1600], DOCUMENTS, progress=False, cache=cache)
        (record,) = caplog.records
        assert record.message.startswith("ruler_niah_single_2 at 1600: all 2 scores are 0.")
        assert r"<|im_end|>\n<|im_start|>assistant\n" in record.message
        assert record.message.endswith("was answered 'Sorry.'")
        assert len(record.message) < 1000


def test_zeros_that_are_no_wonder_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    needles = {"kind": "needles", "trials": 2, "num_depths": 1, "kinds": ["single"]}

    def warnings(model: Any, task: dict[str, Any], lengths: list[int], **how: Any) -> int:
        caplog.clear()
        evaluate(model, ByteTokenizer(), [task], lengths, DOCUMENTS, progress=False, **how)
        return len(caplog.records)

    silent = Oracle(lambda _: "", window=700)
    assert warnings(silent, needles, [600, 700]) == 1
    assert warnings(silent, needles, [1600], allow_beyond=True) == 0
    # A window that YaRN widens, though the config's maximum was kept at the original.
    wide = Oracle(lambda _: "", window=700)
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 700}
    wide.config.rope_parameters = rope  # type: ignore[assignment]
    assert warnings(wide, needles, [1600]) == 1
    # Shorter prompts were answered, so that their form is none of the reasons.
    assert warnings(Oracle(lambda text: finder(text) if len(text) < 650 else ""), needles, [600, 1600]) == 0
    passkey = {"kind": "passkey", "trials": 2, "num_depths": 1}
    assert warnings(key_reader(wrong_digit=2), passkey, [600, 700]) == 1
    assert warnings(key_reader(), passkey, [600, 700]) == 0


def says(words: str) -> Any:
    """Goes on with these words after any turn, and ends."""
    return lambda text: words[len(text) - text.rfind("is") - 2 :] if len(text) - text.rfind("is") - 2 < 6 else ""


def finder(text: str) -> str:
    """The number that stands somewhere in the text, after its question."""
    (number,) = set(re.findall(r"\d{5,7}", text.rpartition("?")[0]))
    written = text.rpartition(" is")[2]
    return f" {number}"[len(written) :]

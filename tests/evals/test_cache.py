"""Samples that were measured before are found again, by content, and no others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from skipwise.evals import EvalResult, SampleCache, evaluate
from skipwise.evals.cache import hash_model

from .conftest import KeyReader, make_llama

TASK = {"kind": "passkey", "trials": 6, "num_depths": 2}


@pytest.fixture
def measure(tokenizer, documents, tmp_path) -> Callable[..., tuple[list[EvalResult], int]]:
    """Measures through one cache; returns the results and how often the model was called."""

    def measure(
        model: torch.nn.Module, task: dict = TASK, length: int = 300, **changes
    ) -> tuple[list[EvalResult], int]:
        calls = []
        handle = model.register_forward_pre_hook(lambda module, args: calls.append(1))
        settings = {"seed": 0, "documents": documents, "cache": SampleCache(tmp_path), "progress": False} | changes
        results = evaluate(model, tokenizer, [task], [length], **settings)
        handle.remove()
        return results, len(calls)

    return measure


def test_a_rerun_costs_nothing_and_gives_the_same(measure) -> None:
    model = make_llama()
    first, calls = measure(model)
    assert calls > 0
    assert measure(model) == (first, 0)


def test_the_same_checkpoint_is_found_wherever_it_lies(measure, tmp_path) -> None:
    model = make_llama()
    first, _ = measure(model)
    model.save_pretrained(tmp_path / "elsewhere")
    again, calls = measure(LlamaForCausalLM.from_pretrained(tmp_path / "elsewhere").eval())
    assert calls == 0
    assert [result.value for result in again] == [result.value for result in first]


def test_whatever_changes_the_numbers_is_measured_anew(measure, documents) -> None:
    model = make_llama()
    measure(model)
    in_documents = TASK | {"haystack": "documents"}
    assert measure(model, seed=1)[1]
    assert measure(model, length=310)[1]
    assert measure(model, TASK | {"num_depths": 3})[1]
    assert measure(model, in_documents)[1]
    assert measure(model, in_documents)[1] == 0
    assert measure(model, in_documents, documents=documents[1:])[1]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert measure(model)[1], "another weight"
    measured = hash_model(model)
    rotary: Any = model.model.rotary_emb
    rotary.inv_freq *= 0.5
    assert hash_model(model) != measured, "another rotary table"


def test_an_interrupted_run_goes_on_where_it_stopped(measure, monkeypatch, tmp_path) -> None:
    model, stop_at = make_llama(), [3]
    from skipwise.evals import passkey

    monkeypatch.setattr(passkey, "_BATCH_TOKENS", 1)
    answers = passkey.greedy_answers
    asked = []

    def interrupted(*arguments) -> list[list[int]]:
        asked.append(1)
        if len(asked) > stop_at[0]:
            raise KeyboardInterrupt
        return answers(*arguments)

    monkeypatch.setattr(passkey, "greedy_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(model)
    asked.clear()
    stop_at[0] = 100
    results, _ = measure(model)
    assert len(asked) == 3, "of six samples three were there"

    (line_file,) = (file for file in tmp_path.rglob("*.jsonl"))
    text = line_file.read_text()
    line_file.write_text(text[:-20])
    asked.clear()
    assert measure(model)[0] == results
    assert len(asked) == 1, "a line that was cut short is measured again"


def test_fresh_and_cached_samples_are_written_alike(tokenizer, documents, tmp_path) -> None:
    files = [tmp_path / name for name in ("fresh", "cached")]
    for file in files:
        evaluate(KeyReader(), tokenizer, [TASK], [400], cache=SampleCache(tmp_path), samples_out=file, progress=False)
    assert files[0].read_text() == files[1].read_text()

"""Samples that were measured before are found again, by content, and no others."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import skipwise.evals.context
from skipwise.evals import EvalResult, Measurement, SampleCache, evaluate
from skipwise.evals.cache import _hash_files, hash_code, hash_model
from skipwise.evals.settings import NO_KEY
from skipwise.evals.tasks import passkey
from skipwise.records import stats
from skipwise.runtime import session

from .tiny import ByteTokenizer, make_llama

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


def test_a_rerun_costs_nothing_wherever_the_checkpoint_lies(measure, tmp_path) -> None:
    model, files = make_llama(), [tmp_path / "fresh", tmp_path / "cached"]
    first, calls = measure(model, samples_out=files[0])
    assert calls > 0
    assert measure(model, samples_out=files[1]) == (first, 0)
    assert files[0].read_text() == files[1].read_text()
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


def test_weights_are_hashed_for_a_cache_or_a_record_alone_and_once(measure, documents, monkeypatch, tmp_path) -> None:
    hashed = []
    monkeypatch.setattr(skipwise.evals.context, "hash_model", lambda model: hashed.append(model) or "0" * 64)
    model, task = make_llama(), {"kind": "perplexity", "scored_tokens": 16}
    (result,) = evaluate(model, ByteTokenizer(), [task], [64], documents, progress=False)
    assert not hashed
    assert "model_sha256" not in result.details
    evaluate(model, ByteTokenizer(), [task], [48, 64], documents, out=tmp_path / "results.jsonl", progress=False)
    assert hashed == [model]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["details"]["model_sha256"] for line in lines] == ["0" * 64] * 2
    hashed.clear()
    measure(model)
    assert hashed == [model]


def test_an_interrupted_run_goes_on_where_it_stopped(measure, monkeypatch, tmp_path) -> None:
    model, stop_at = make_llama(), [3]
    monkeypatch.setattr("skipwise.evals.prompts.BATCH_TOKENS", 1)
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


def test_a_text_may_hold_any_end_of_line_and_a_cut_letter_loses_one_line(tmp_path) -> None:
    cache = SampleCache(tmp_path)
    texts = ["plain", "a\u2028b", "a\x85b", "naïve"]
    cache.add("key", {index: {"output": text} for index, text in enumerate(texts)})
    assert [cache.read("key")[index]["output"] for index in range(4)] == texts
    (line_file,) = tmp_path.rglob("*.jsonl")
    line_file.write_bytes(line_file.read_bytes().split("ï".encode())[0] + "ï".encode()[:1])
    assert sorted(cache.read("key")) == [0, 1, 2]
    with pytest.raises(ValueError, match="JSON"):
        cache.add("other", {0: {"nll_sum": float("nan")}})


def test_what_writes_and_ends_an_answer_is_part_of_the_key(measure, tokenizer, monkeypatch) -> None:
    model = make_llama()
    measure(model)
    assert measure(model)[1] == 0
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages }}", raising=False)
    assert measure(model)[1], "another chat template"
    monkeypatch.undo()
    settings: Any = model.generation_config
    monkeypatch.setattr(settings, "eos_token_id", [3, 5])
    assert measure(model)[1], "other end tokens"
    monkeypatch.undo()
    assert measure(model)[1] == 0
    monkeypatch.setattr("skipwise.evals.context.hash_code", lambda task: "another version")
    assert measure(model)[1], "other code"


def test_code_of_the_tasks_and_of_what_runs_models_is_part_of_the_key(monkeypatch) -> None:
    read = Path.read_bytes
    hashes = [hash_code(passkey.Passkey)]
    for changed in (Path(module.__file__ or "") for module in (passkey, session, stats)):
        monkeypatch.setattr(Path, "read_bytes", lambda file, changed=changed: read(file) + b"#" * (file == changed))
        _hash_files.cache_clear()
        hashes.append(hash_code(passkey.Passkey))
    _hash_files.cache_clear()
    assert len({*hashes}) == 4


def test_the_strength_of_additions_counts() -> None:
    def hashed(alpha: int) -> str:
        torch.manual_seed(0)
        return hash_model(get_peft_model(make_llama(), LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])))

    assert hashed(4) == hashed(4) != hashed(64)


def test_settings_that_no_sample_depends_on_are_no_part_of_the_key(tokenizer, tmp_path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Numbered:
        name: ClassVar[str] = "numbered"
        uses_documents: ClassVar[bool] = False
        trials: int = field(default=2, metadata=NO_KEY)
        asked: list[int] = field(default_factory=list, metadata=NO_KEY)

        def check_lengths(self, context, lengths) -> None: ...

        def run(self, context, lengths):
            def compute(indices):
                self.asked.extend(indices)
                return [{"index": index} for index in indices]

            yield Measurement([], context.samples(self, 8, self.trials, compute))

    asked: list[int] = []
    for trials in (2, 5):
        task: Any = Numbered(trials=trials, asked=asked)
        evaluate(make_llama(), tokenizer, [task], [8], cache=SampleCache(tmp_path), progress=False)
    assert asked == [0, 1, 2, 3, 4]

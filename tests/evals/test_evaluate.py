"""evaluate(): tasks by name, records on disk, and refusals."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from refusals import refused

from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import TASK_GROUPS, TASKS, EvalResult, Measurement, evaluate, make_task
from skipwise.records.results import hash_tokenizer
from skipwise.records.stats import Estimate

from .tiny import ByteTokenizer

SMALL = {
    "perplexity": {"scored_tokens": 8},
    "passkey": {"trials": 4, "num_depths": 2},
    "needles": {"kinds": ["single"], "trials": 2, "num_depths": 2, "max_new_tokens": 8},
    # Of a model that has learnt nothing, every token is key.
    "longppl": {"short_tokens": 64, "stride_tokens": 32, "min_gain": -100.0, "max_nll": 100.0},
}
# These need a second model, a folder of their own, or prompts of thousands of bytes, or give times that no second run
# repeats; they have tests of their own.
NEEDING_MORE = {"regression", "suite", "serving", *TASK_GROUPS["ruler"], *TASK_GROUPS["reasoning"]}
KINDS = [kind for kind in TASKS if kind not in NEEDING_MORE]
LENGTHS = [250, 280]


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_writes_what_it_returns_and_repeats_itself(kind, tiny_llama, tokenizer, documents, tmp_path) -> None:
    files = [tmp_path / "results.jsonl", tmp_path / "samples.jsonl"]
    tiny_llama.train()
    modes: list[bool] = []
    tiny_llama.register_forward_pre_hook(lambda module, args: modes.append(module.training))

    def run(**files) -> list[EvalResult]:
        spec = {"kind": kind} | SMALL.get(kind, {})
        return evaluate(tiny_llama, tokenizer, [spec], LENGTHS, documents, seed=3, progress=False, **files)

    results = run(out=files[0], samples_out=files[1])
    assert run(out=files[0]) == results, "the same seed gives the same numbers"
    lines = files[0].read_text().splitlines()
    assert [EvalResult.from_json(line) for line in lines] == results * 2, "a second run appends"
    assert {result.length_tokens for result in results} == set(LENGTHS)
    for result in results:
        assert (result.task, result.seed) == (kind, 3)
        assert result.details["tokenizer_sha256"] == hash_tokenizer(tokenizer)
        settings = json.loads(json.dumps(result.details["settings"]))
        assert settings.items() >= SMALL.get(kind, {}).items()
    samples = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert all(len(sample["prompt_sha256"]) == 64 and sample["task"] == kind for sample in samples)
    assert not any(modes), "dropout is on"
    assert tiny_llama.training, "the model is left as it was found"


def test_a_task_of_ones_own_is_an_object(tiny_llama, tokenizer) -> None:
    @dataclass(frozen=True)
    class Weight:
        name: ClassVar[str] = "weight"
        uses_documents: ClassVar[bool] = False

        def check_lengths(self, context, lengths) -> None: ...

        def run(self, context, lengths):
            for length in lengths:
                yield Measurement([context.result(self, length, "kg", Estimate(2.0, None, None), num_samples=1)], [])

    results = evaluate(tiny_llama, tokenizer, [Weight()], [8, 16], progress=False)  # pyright: ignore[reportArgumentType]
    assert [(result.task, result.length_tokens, result.value) for result in results] == [
        ("weight", 8, 2.0),
        ("weight", 16, 2.0),
    ]


@pytest.mark.parametrize(
    ("tasks", "lengths", "error", "named"),
    [
        (["perplexty"], [64], ConfigError, "'perplexty'.* 'perplexity'"),
        ([{"kind": "passkey", "trails": 10}], [64], ConfigError, "'trails'.* 'trials'"),
        ([{"trials": 10}], [64], ConfigError, "task is None"),
        ([], [64], ConfigError, " 0 tasks"),
        (["passkey"], [], ConfigError, r"lengths \[\]"),
        (["passkey"], [513], ConfigError, " 513 .* 512"),
        (["passkey", "sliding"], [64], DataError, "sliding"),
        (["suite"], [8], ConfigError, "suite.folder=VALUE"),
        # All that cannot be measured is said at once.
        (["passkey", "ruler_vt"], [16], ConfigError, "^passkey .* 16 .*; ruler_vt .* 16 "),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_llama, tokenizer, tasks, lengths, error, named: str) -> None:
    with refused(error, named):
        evaluate(tiny_llama, tokenizer, tasks, lengths, progress=False)


def test_beyond_the_window_on_purpose(tiny_llama, tokenizer) -> None:
    task = make_task({"kind": "passkey", "trials": 2, "num_depths": 1})
    (result, _) = evaluate(tiny_llama, tokenizer, [task], [600], allow_beyond=True, progress=False)
    assert (result.length_tokens, result.value) == (600, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_weights_stop_with_the_item_and_leave_earlier_results(
    kind: str, tiny_llama, tokenizer, documents, tmp_path
) -> None:
    out = tmp_path / "results.jsonl"
    spec = {"kind": kind} | SMALL.get(kind, {})
    before = evaluate(tiny_llama, tokenizer, [spec], [280], documents, out=out, progress=False)
    with torch.no_grad():
        tiny_llama.lm_head.weight[5] = float("nan")
    with refused(CheckpointError, rf"^{kind}, length 280, \w+.* [0-9]+.*: .*NaN at position [0-9]+"):
        evaluate(tiny_llama, tokenizer, [spec], [280], documents, out=out, progress=False)
    assert len(out.read_text().splitlines()) == len(before)


def test_a_line_that_is_no_result_is_refused() -> None:
    for line in ("{", "[]", '{"task": "passkey"}', '{"tusk": 1}'):
        with pytest.raises(DataError):
            EvalResult.from_json(line)


def test_tokenizers_are_told_apart() -> None:
    class Doubled(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return super().encode(text + text, add_special_tokens=add_special_tokens)

    hashes = [hash_tokenizer(tokenizer) for tokenizer in (ByteTokenizer(), ByteTokenizer(), Doubled())]
    assert hashes[0] == hashes[1] != hashes[2]

"""The benchmarks' adapter to lm-evaluation-harness: its scores by hand, its data from a folder, its refusals."""

import importlib.util
import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from forked import launched
from tiny_models import byte_tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from skipwise.cli import benchmarks as verb
from skipwise.errors import ConfigError, DataError
from skipwise.evals import EvalResult
from skipwise.evals.benchmarks import BENCHMARKS, run_benchmarks
from skipwise.model import save_model
from skipwise.records.stats import wilson

from .tiny import make_llama

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: skipwise[bench]"
)

TASK = """
task: riddles
dataset_path: json
dataset_kwargs: {data_files: {train: data/solved.jsonl, validation: data/riddles.jsonl}}
output_type: multiple_choice
training_split: train
validation_split: validation
num_fewshot: SHOTS
doc_to_text: "Riddle: {{riddle}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 7}
"""
CHOICES = ["a stone", "time", "the wind in the trees"]
RIDDLES = [{"riddle": f"{'what ' * (i % 3)}is {i}?", "choices": CHOICES, "answer": i % 3} for i in range(14)]

# One question of each data set in its own columns; a 25-shot prompt needs 25 other ones.
_PIQA = {"goal": "Open a tin", "sol1": "with a key", "sol2": "with a song", "label": 0}
_ARC = {"question": "Which?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"}
_HELLASWAG = {
    "activity_label": "Sailing",
    "ctx_a": "A boat leaves.",
    "ctx_b": "it",
    "endings": ["sinks.", "sails.", "sings.", "sits."],
    "label": "1",
}
ROWS: dict[str, dict[str, Any]] = {
    "boolq": {"passage": "Water is wet.", "question": "is water wet", "idx": 0, "label": 1},
    "piqa": _PIQA,
    "winogrande": {"sentence": "The cup fell off the shelf as _ was loose.", "option1": "it", "option2": "she"}
    | {"answer": "1"},
    "truthfulqa_mc2": {
        "question": "Do pigs fly?",
        "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No", "Not at all", "Yes"], "labels": [1, 1, 0]},
    },
    "arc_challenge": _ARC,
    "hellaswag": _HELLASWAG,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, without a padding token."""
    tokenizer = byte_tokenizer(special=False)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    return tokenizer


@pytest.fixture(autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are prepared in a temporary folder, not in the user's cache; and none is looked for elsewhere."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def riddles(folder: Path, shots: int) -> Path:
    """A folder with a task of one's own beside its data."""
    write_lines(folder / "data" / "riddles.jsonl", RIDDLES)
    write_lines(folder / "data" / "solved.jsonl", RIDDLES[:4])
    (folder / "riddles.yaml").write_text(TASK.replace("SHOTS", str(shots)))
    return folder


def log_likelihood(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    ids = torch.tensor([tokenizer.encode(prompt + continuation)])
    with torch.no_grad():
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].log_softmax(-1)
    return sum(scores[place - 1, ids[0, place]].item() for place in range(len(prompt), ids.shape[1]))


def test_the_harness_has_what_our_adapter_overrides() -> None:
    from lm_eval.models.huggingface import HFLM

    def taken(method: str) -> set[str]:
        return set(inspect.signature(getattr(HFLM, method)).parameters)

    assert taken("_loglikelihood_tokens") >= {"requests"}
    assert taken("tok_batch_encode") >= {"strings", "padding_side", "left_truncate_len"}
    assert taken("loglikelihood") >= {"requests", "disable_tqdm"}
    assert taken("generate_until") >= {"requests", "disable_tqdm"}
    assert taken("__init__") >= {"pretrained", "backend", "tokenizer", "max_length", "batch_size"}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_log_likelihoods_by_hand(tiny_llama, tokenizer, tmp_path, batch_size: int) -> None:
    files = {"out": tmp_path / "results.jsonl", "samples_out": tmp_path / "samples.jsonl"}
    folder = riddles(tmp_path / "tasks", shots=0)
    results = run_benchmarks(
        tiny_llama, tokenizer, ["riddles"], tasks_folder=folder, batch_size=batch_size, progress=False, **files
    )
    likelihoods = np.array(
        [
            [
                log_likelihood(tiny_llama, tokenizer, f"Riddle: {row['riddle']}\nAnswer:", f" {choice}")
                for choice in CHOICES
            ]
            for row in RIDDLES
        ]
    )
    answers = np.array([row["answer"] for row in RIDDLES])
    right = likelihoods.argmax(1) == answers
    # The harness divides by the characters of a choice.
    right_by_length = (likelihoods / [len(choice) for choice in CHOICES]).argmax(1) == answers
    assert [(result.metric, result.value) for result in results] == [
        ("acc", pytest.approx(right.mean())),
        ("acc_norm", pytest.approx(right_by_length.mean())),
    ]
    assert 0 < right.mean() < 1
    assert right.mean() != right_by_length.mean()
    error = right.std(ddof=1) / math.sqrt(len(right))
    assert results[0].ci_high == pytest.approx(right.mean() + 1.96 * error, rel=1e-4)
    assert results[0].ci_low == pytest.approx(right.mean() - 1.96 * error, rel=1e-4)

    longest = max(len(f"Riddle: {row['riddle']}\nAnswer: {CHOICES[2]}") for row in RIDDLES)
    for result in results:
        assert (result.task, result.length_tokens, result.num_samples, result.seed) == ("riddles", longest, 14, 0)
        assert result.details.items() >= {"shots": 0, "task_version": 7, "limit": None}.items()
        assert result.details["harness"].startswith("lm-eval 0.")
    assert [EvalResult.from_json(line) for line in files["out"].read_text().splitlines()] == results
    samples = [json.loads(line) for line in files["samples_out"].read_text().splitlines()]
    for sample, row, of_row in zip(samples, RIDDLES, likelihoods, strict=True):
        assert [likelihood for likelihood, _ in sample["output"]] == pytest.approx(of_row, rel=1e-4)
        assert sample["target"] == row["answer"]
        assert len(sample["prompt_sha256"]) == 64


def test_a_random_guess_is_within_the_interval(tiny_llama, tokenizer, tmp_path) -> None:
    result = run_benchmarks(
        tiny_llama, tokenizer, ["riddles"], tasks_folder=riddles(tmp_path, 0), limit=5, progress=False
    )[0]
    assert (result.num_samples, result.details["limit"]) == (5, 5)
    # Of the same order as Wilson's, which knows nothing of the harness.
    expected = wilson(round(5 * result.value), 5)
    assert 0.5 < (result.ci_high - result.ci_low) / (expected.high - expected.low) < 2  # type: ignore[operator]
    (alone, _) = run_benchmarks(tiny_llama, tokenizer, ["riddles"], tasks_folder=tmp_path, limit=1, progress=False)
    assert (alone.num_samples, alone.ci_low, alone.ci_high) == (1, None, None)


def test_shots_are_drawn_by_the_seed(tiny_llama, tokenizer, tmp_path, monkeypatch) -> None:
    prompts = prompts_seen(monkeypatch)
    folder = riddles(tmp_path, shots=2)

    def run(seed: int) -> list[str]:
        prompts.clear()
        run_benchmarks(tiny_llama, tokenizer, ["riddles"], tasks_folder=folder, seed=seed, progress=False)
        return list(prompts)

    first = run(0)
    assert all(prompt.count("Riddle: ") == 3 for prompt in first)
    assert run(0) == first
    assert run(1) != first


def prompts_seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt from now on, with the model taken out: each continuation is the less likely the longer it is."""
    from skipwise.evals.harness import LoadedLM

    prompts: list[str] = []

    def loglikelihood(self: Any, requests: list[Any], **_: Any) -> list[Any]:
        prompts.extend(request.args[0] for request in requests)
        return [(-float(len(request.args[1])), False) for request in requests]

    monkeypatch.setattr(LoadedLM, "loglikelihood", loglikelihood)
    return prompts


def test_the_six_run_from_a_folder_of_copies_with_the_shots_of_the_paper(
    tiny_llama, tokenizer, tmp_path, monkeypatch
) -> None:
    for name, row in ROWS.items():
        text = next(column for column, value in row.items() if isinstance(value, str))
        # The harness takes no example that equals the question.
        rows = [row | {text: f"{row[text]} {number}"} for number in range(1 + (BENCHMARKS[name].shots or 1))]
        for split in ("train", "validation", "test"):
            write_lines(tmp_path / name / f"{split}.jsonl", rows)
    # As on the hub: parts of a data set by name, this benchmark's among them.
    parts = "".join(
        f"- config_name: {part}\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in ("train", "validation", "test"))
        for part in ("ARC-Challenge", "ARC-Easy")
    )
    (tmp_path / "arc_challenge" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    prompts = prompts_seen(monkeypatch)
    found = {}
    for name in BENCHMARKS:
        prompts.clear()
        results = run_benchmarks(tiny_llama, tokenizer, [name], tasks_folder=tmp_path, limit=2, progress=False)
        found[name] = (results[0].metric, results[0].details["shots"], results[0].value)
        if name == "arc_challenge":
            assert all(prompt.count("Question: ") == 26 for prompt in prompts)
        if name == "hellaswag":
            assert all(prompt.count("Sailing") == 11 for prompt in prompts)
    # With these likelihoods the shorter choice wins, the first where they are equally long.
    truthful = np.exp([-3.0, -11.0, -4.0])
    assert found == {
        "boolq": ("acc", 0, 0.0),
        "piqa": ("acc", 0, 1.0),
        "winogrande": ("acc", 0, 1.0),
        "truthfulqa_mc2": ("acc", 0, pytest.approx(truthful[:2].sum() / truthful.sum())),
        "arc_challenge": ("acc_norm", 25, 0.0),
        "hellaswag": ("acc_norm", 10, found["hellaswag"][2]),
    }


def test_a_prompt_that_would_be_cut_is_an_error_with_the_numbers(tokenizer, tmp_path) -> None:
    model: Any = make_llama(max_position_embeddings=64)
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    folder = riddles(tmp_path, shots=2)
    with pytest.raises(DataError, match=r"tokens .* 65"):
        run_benchmarks(model, tokenizer, ["riddles"], tasks_folder=folder, progress=False)
    assert not forwards


def test_prompts_to_be_continued_are_not_cut_either(tokenizer, tmp_path) -> None:
    definition = riddles(tmp_path, shots=0) / "riddles.yaml"
    definition.write_text(
        definition.read_text()
        .replace("multiple_choice", "generate_until\ngeneration_kwargs: {until: ['?'], max_gen_toks: 4}")
        .replace("doc_to_choice: choices\n", "")
        .replace("{metric: acc}, {metric: acc_norm}", "{metric: exact_match}")
    )
    (result,) = run_benchmarks(make_llama(), tokenizer, ["riddles"], tasks_folder=tmp_path, limit=2, progress=False)
    assert (result.metric.split(",")[0], result.length_tokens) == ("exact_match", len("Riddle: what is 1?\nAnswer:"))
    small = make_llama(max_position_embeddings=24)
    with pytest.raises(DataError, match=r" 26 .* 20"):
        run_benchmarks(small, tokenizer, ["riddles"], tasks_folder=tmp_path, limit=2, progress=False)


def test_missing_data_are_one_line_that_says_what_to_do(tiny_llama, tokenizer, tmp_path) -> None:
    with pytest.raises(DataError, match=r"boolq .*hf download aps/super_glue"):
        run_benchmarks(tiny_llama, tokenizer, ["boolq"], progress=False)
    folder = riddles(tmp_path, 0)
    (folder / "data" / "riddles.jsonl").unlink()
    with pytest.raises(DataError, match=r"riddles\.yaml .*riddles\.jsonl"):
        run_benchmarks(tiny_llama, tokenizer, ["riddles"], tasks_folder=folder, progress=False)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["hellaswags"], {}, "'hellaswags'.* 'hellaswag'"),
        (["boolq"], {"limit": 0}, "limit is 0"),
        (["boolq"], {"batch_size": 0}, "batch_size is 0"),
        (["boolq"], {"tasks_folder": "nowhere"}, "nowhere'"),
    ],
)
def test_what_cannot_be_run_is_refused(tiny_llama, tokenizer, names, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_benchmarks(tiny_llama, tokenizer, names, progress=False, **settings)


def test_a_tokenizer_without_ends_is_refused(tiny_llama, tokenizer) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError, match="tokenizer_config"):
        run_benchmarks(tiny_llama, bare, ["boolq"], progress=False)


def test_the_verb_prints_a_table_and_leaves_the_tokenizer_as_it_was(tokenizer, tmp_path) -> None:
    save_model(make_llama(), tokenizer, tmp_path / "model")
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(verb.benchmarks)
    arguments = [tmp_path / "model", "--benchmark", "riddles", "--tasks-folder", riddles(tmp_path / "tasks", 2)]
    shown = CliRunner().invoke(app, ["benchmarks", *map(str, arguments)], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "95% interval" in shown.output
    printed = CliRunner().invoke(app, ["benchmarks", *map(str, arguments), "--json"], catch_exceptions=False)
    results = [EvalResult.from_json(line) for line in printed.stdout.splitlines() if line.startswith("{")]
    assert [(result.task, result.metric, result.details["shots"]) for result in results] == [
        ("riddles", "acc", 2),
        ("riddles", "acc_norm", 2),
    ]
    assert tokenizer.pad_token is None


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_ask_what_one_asks(tokenizer, tmp_path) -> None:
    save_model(make_llama(), tokenizer, tmp_path / "model")
    folder = riddles(tmp_path / "tasks", shots=2)
    code = (
        "import sys\n"
        "from skipwise.evals.benchmarks import run_benchmarks\n"
        "from skipwise.model import load_model\n"
        "model, folder, out, samples = sys.argv[1:]\n"
        "how = dict(tasks_folder=folder, out=out, samples_out=samples, progress=False)\n"
        "run_benchmarks(*load_model(model), ['riddles'], **how)\n"
    )

    def run(name: str, processes: int | None) -> list[str]:
        files = [tmp_path / f"{name}.jsonl", tmp_path / f"{name}-samples.jsonl"]
        launched(code, tmp_path / "model", folder, *files, processes=processes)
        return [file.read_text() for file in files]

    assert run("two", 2) == run("one", None)

"""The verb `eval` on whole runs: every checkpoint, low-rank ones too, and the verdict with its exit code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from skipwise import cli, evals
from skipwise.cli.evaluate_tables import print_checkpoints, print_results
from skipwise.cli.verdict import Rule, require_retrieval, state_verdict
from skipwise.config import RunConfig
from skipwise.errors import ConfigError
from skipwise.evals import EvalResult
from skipwise.train import extend
from skipwise.train.checkpoints import load_checkpoint, run_checkpoints


def trained(model: Path, folder: Path, **settings) -> Path:
    """A run of four short steps with a checkpoint every two."""
    texts = folder / "texts.txt"
    texts.write_text("abcdefg " * 400)
    tree = {
        "model": str(model),
        "target": 256,
        "window": 32,
        "output": str(folder / "run"),
        "data": {"source": str(texts), "held_out": 0.0},
        "training": {"max_steps": 4, "gradient_accumulation_steps": 1, "save_steps": 2, "learning_rate": 1e-2},
    }
    return extend(RunConfig.from_mapping(tree | settings)).folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_every_checkpoint_of_a_run_is_measured(tiny_checkpoint: Path, tmp_path: Path, capsys, tuning: str) -> None:
    lora = {"kind": "lora", "rank": 4, "train_norms": True, "train_embeddings": True}
    run = trained(tiny_checkpoint, tmp_path, tuning=lora if tuning == "lora" else {"kind": "full"})
    checkpoints = run_checkpoints(run)
    assert [checkpoint.step for checkpoint in checkpoints] == [2, 4]
    assert checkpoints[-1].folder == run, "the last checkpoint is the finished model"

    out = tmp_path / "out.jsonl"
    command = ["eval", str(run), "--all-checkpoints", "--task", "sliding", "--length", "64,128"]
    command += ["--documents", str(tmp_path / "texts.txt"), "--all-documents", "--out", str(out)]
    assert cli.main(command) == 0
    results = [EvalResult.from_json(line) for line in out.read_text().splitlines()]
    assert [(r.details["step"], r.length_tokens) for r in results] == [(2, 64), (2, 128), (4, 64), (4, 128)]
    assert all(result.details["may_have_been_trained_on"] for result in results), "the run held nothing out"
    assert results[0].value != results[2].value, "two steps more change the model"
    assert "step" in capsys.readouterr().out

    # The last checkpoint is the same model, whether it holds additions or all of it.
    last = checkpoints[-1]
    adapter = last._replace(folder=run / "checkpoint-4")
    assert (adapter.folder / "adapter_config.json").exists() == (tuning == "lora")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        finished, loaded = (load_checkpoint(which, run).model(input_ids=ids).logits for which in (last, adapter))
    torch.testing.assert_close(loaded, finished)


def test_weights_in_eight_bits_are_measured_and_said(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "texts.txt").write_text("abcdefg " * 400)
    command = ["eval", str(tiny_checkpoint), "--task", "sliding", "--length", "64", "--all-documents", "--json"]
    command += ["--documents", str(tmp_path / "texts.txt")]
    results = []
    for flags in ([], ["--weights", "int8"]):
        assert cli.main([*command, *flags]) == 0
        results += [EvalResult.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [result.details.get("weights") for result in results] == [None, "int8"]
    assert results[0].value != results[1].value == pytest.approx(results[0].value, rel=1e-2)


def test_a_folder_without_a_run_is_refused(tiny_checkpoint: Path, capsys) -> None:
    assert cli.main(["eval", str(tiny_checkpoint), "--all-checkpoints", "--length", "64"]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err


def test_a_verdict_below_the_window_is_exit_1_and_goes_into_the_card(
    tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    run = trained(tiny_checkpoint, tmp_path)
    command = ["eval", str(run), "--task", "passkey", "--length", "220,256", "--trials", "4", "--depths", "2"]
    assert cli.main([*command, "--verdict"]) == 1
    printed = capsys.readouterr().out
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith("passkey  ")][-2:] == [
        ["passkey", "220", "0"],
        ["passkey", "256", "0"],
    ], "the mean at each length"
    assert "verdict over 1 task x 4 prompts a length: passkey; these are not RULER's 13 tasks" in printed
    assert "falls short: effective context length none under RULER's rule" in printed
    assert "not decided: effective context length not decided under the relative rule: no short score" in printed
    card = run / "README.md"
    assert "- Effective context length: none under RULER's rule" in card.read_text()
    assert "mean score 220 0.0% (at least 0.0%), 256 0.0%" in card.read_text()
    assert cli.main(command) == 0, "without a verdict low scores are no failure"
    capsys.readouterr()

    assert cli.main([*command, "--verdict", "--json"]) == 1
    by_rule = {line["verdict"]: line for line in map(json.loads, capsys.readouterr().out.splitlines()[-2:])}
    assert by_rule["ruler"] == {
        "verdict": "ruler",
        "group": "retrieval",
        "decided": True,
        "outcome": "falls short",
        "holds": False,
        "effective_tokens": 0,
        "measured_tokens": 256,
        "advertised_tokens": 256,
        "threshold": 0.856,
        "tasks": ["passkey"],
        "basis": by_rule["relative"]["basis"],
        "mean_scores": by_rule["relative"]["mean_scores"],
    }
    assert (by_rule["relative"]["decided"], by_rule["relative"]["threshold"]) == (False, None)

    # An untrained arm of the same folder says nothing about the trained model, and lengths beyond are not its window's.
    before = card.read_text()
    capsys.readouterr()
    card.write_text(before.replace("none under RULER's rule", "32k under RULER's rule"))
    for other in (["--interpolation", "yarn", "--target", "512"], ["--allow-beyond"]):
        assert cli.main([*command, "--verdict", *other]) == 1, capsys.readouterr().err
        assert "32k under RULER's rule" in card.read_text()
    assert cli.main([*command, "--verdict"]) == 1
    assert card.read_text() == before


def test_a_verdict_without_a_score_is_refused_before_anything_is_measured(
    tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(evals, "evaluate", never)
    command = ["eval", str(tiny_checkpoint), "--verdict", "--length", "60,64"]
    assert cli.main([*command, "--task", "perplexity,sliding"]) == 2
    assert "--verdict needs retrieval scores, and perplexity, sliding has none" in capsys.readouterr().err
    assert cli.main([*command, "--task", "passkey", "--rule", "relative"]) == 2
    assert "the shortest length is 60 tokens; measure a length of at most 32 too" in capsys.readouterr().err


def test_every_task_either_gives_a_score_or_measures_text() -> None:
    """A new task has to be put where `--verdict` looks for it."""
    settings = {"regression": {"base": "x"}, "suite": {"folder": "x"}}
    refused = set()
    for name in evals.TASKS:
        try:
            require_retrieval([evals.make_task({"kind": name, **settings.get(name, {})})])
        except ConfigError:
            refused.add(name)
    assert refused == {"perplexity", "sliding", "truncated", "longppl", "nll_by_position", "regression", "serving"}


def score(task: str, metric: str, value: float, **details: str) -> EvalResult:
    return EvalResult(
        task=task,
        length_tokens=64,
        metric=metric,
        value=value,
        ci_low=value,
        ci_high=value,
        num_samples=1,
        num_skipped=0,
        seed=0,
        details=details,
    )


@pytest.mark.parametrize(("value", "holds"), [(0.9, True), (0.8, False)])
def test_a_rule_that_is_not_decided_leaves_the_other_to_decide(value: float, holds: bool, capsys) -> None:
    config = LlamaConfig(max_position_embeddings=64)
    results = [score("passkey", "accuracy", value)]
    assert state_verdict(results, config, Rule.BOTH, card_folder=None, as_json=False) is holds
    assert "not decided: " in capsys.readouterr().out


def test_lengths_that_were_not_asked_for_are_no_failure(capsys) -> None:
    config = LlamaConfig(max_position_embeddings=2048)
    results = [replace(score("passkey", "accuracy", 1.0), length_tokens=length) for length in (512, 1024)]
    assert state_verdict(results, config, Rule.BOTH, card_folder=None, as_json=False)
    printed = capsys.readouterr().out
    assert printed.count("holds as far as measured: effective context length 1k") == 2
    assert "falls short" not in printed


def test_numbers_of_parts_of_the_input_are_a_grid_and_units_are_for_people(capsys) -> None:
    def at(first: int, value: float, arm: str) -> EvalResult:
        place = {"position_from": first, "position_to": first + 32}
        return replace(score("regression", "kl_mean_at_position", value), details={"arm": arm, **place})

    results = [score("serving", "peak_bytes", 3 * 2**20), score("serving", "prefill_seconds", 0.012)]
    results += [at(0, 0.1, "model"), at(32, 0.2, "model"), at(0, 0.3, "untrained"), at(32, 0.4, "untrained")]
    print_results([*results, replace(score("passkey", "accuracy", 1.0), num_skipped=2)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "3.00 MiB" in lines[1]
    assert "12.0 ms" in lines[2]
    assert [line.split() for line in lines[-3:]] == [
        ["regression", "64,", "position", "0", "to", "31", "32", "to", "63"],
        ["kl_mean_at_position", "model", "0.1", "0.2"],
        ["kl_mean_at_position", "untrained", "0.3", "0.4"],
    ]
    assert sum("skipped: inputs that could not be measured" in line for line in lines) == 1


def test_what_a_guesser_scores_is_said_beneath_the_scores(capsys) -> None:
    walks = [
        replace(score("reasoning_walks", "score", 0.5), length_tokens=length, details={"chance": chance})
        for length, chance in ((512, 0.0253), (1024, 0.0114))
    ]
    chains = [replace(score("reasoning_chains", "score", 0.5), details={"chance": 0.25})]
    print_results([*walks, *chains, score("passkey", "accuracy", 0.5)])
    printed = capsys.readouterr().out
    assert "chance, which is what a guesser scores: reasoning_walks 0.011 to 0.025, reasoning_chains 0.25\n" in printed
    print_results([score("passkey", "accuracy", 0.5)])
    assert "chance" not in capsys.readouterr().out


def test_names_stay_whole_where_the_screen_is_narrow(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"ruler_niah_multikey_{number}" for number in (1, 2, 3)]
    print_results([replace(score(name, "score", 0.25), ci_low=0.1119, ci_high=0.4687) for name in names])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_only_what_is_a_merit_has_a_best_checkpoint(capsys) -> None:
    columns = [("passkey", "accuracy", {}), ("perplexity", "perplexity", {}), ("longppl", "key_share", {})]
    columns.append(("suite", "score", {"kind": "continue_control"}))
    columns.append(("suite", "score", {"kind": "continue"}))
    print_checkpoints(
        {
            step: [score(task, metric, value, **details) for task, metric, details in columns]
            for step, value in ((2, 0.25), (4, 0.5))
        }
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [
        ["2", "0.25", "0.25", "*", "0.25", "0.25", "0.25"],
        ["4", "0.5", "*", "0.5", "0.5", "0.5", "0.5", "*"],
    ]

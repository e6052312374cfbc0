"""The verb `eval` on whole runs: every checkpoint, low-rank ones too, and the verdict with its exit code."""

import json
from pathlib import Path

import pytest
import torch

from skipwise import cli
from skipwise.config import RunConfig
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


def test_a_low_rank_checkpoint_is_the_model_that_was_trained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora = {"kind": "lora", "rank": 4, "train_norms": True, "train_embeddings": True}
    run = trained(tiny_checkpoint, tmp_path, tuning=lora)
    last = run_checkpoints(run)[-1]
    adapter = last._replace(folder=run / "checkpoint-4")
    assert (adapter.folder / "adapter_config.json").exists()
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        finished, loaded = (load_checkpoint(which, run).model(input_ids=ids).logits for which in (last, adapter))
    torch.testing.assert_close(loaded, finished)


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
    assert "falls short: effective context length none under RULER's rule" in printed
    assert "- Effective context length: none under RULER's rule" in (run / "README.md").read_text()
    assert cli.main([*command, "--verdict", "--json", "--rule", "relative"]) == 1
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict == {
        "verdict": "relative",
        "holds": False,
        "effective_tokens": 0,
        "advertised_tokens": 256,
        "threshold": 0.0,
    }
    assert cli.main(command) == 0, "without a verdict low scores are no failure"

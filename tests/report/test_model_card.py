"""The model card says what was done and measured, and claims nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_results import arm_of, records_of, write_extended, write_lines

from skipwise import cli
from skipwise.errors import CheckpointError
from skipwise.records.verdict import Verdict
from skipwise.report.effective import effective_length
from skipwise.report.model_card import state_effective_length, write_model_card
from skipwise.window import Window

CARD: dict[str, Any] = {
    "window": Window(train=256, original=256, target=4096),
    "interpolation": {"kind": "yarn", "beta_fast": 32.0},
    "sampler": {"kind": "pose", "chunks": 2, "skips": "flat"},
    "tuning": {"kind": "full"},
    "data": {"source": ["stdlib", "books"], "join": True, "buffer": 100, "field": "text"},
}


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_without_results_says_what_was_done_and_claims_nothing(tmp_path: Path) -> None:
    card = write_model_card(tmp_path, base="someone/small-7b", **CARD).read_text()
    assert front_matter(card) == {
        "base_model": "someone/small-7b",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["long-context", "skipwise"],
    }
    for part in (
        "# small-7b, extended to 4k tokens",
        "- Training window: 256 tokens\n",
        "- Target window: 4096 tokens (16 times)\n",
        "- Positions: pose (chunks 2, skips flat)\n",
        "- Data: Python's own sources (stdlib), books; short documents joined\n",
        "AutoModelForCausalLM.from_pretrained",
        "- Configured context length: 4096 tokens\n- Effective context length: not measured",
        "No results were at hand",
    ):
        assert part in card
    assert not re.search(r"perplexity|passkey|%|checks", card, re.IGNORECASE)


def test_a_card_gives_results_verdicts_and_notes(tmp_path: Path) -> None:
    card = write_model_card(
        tmp_path,
        base="small",
        results=[arm_of("pose", records_of("pose", kinds=()))],
        verdicts=[Verdict(name="chunks", status="pass", detail="they see\neach other")],
        notes=["Code only."],
        **CARD,
    ).read_text()
    assert "| 4k | 7.37 (6.85\N{EN DASH}7.96) |" in card
    assert "No results were at hand" not in card
    assert "- pass: chunks: they see each other" in card
    assert "- Code only." in card


@pytest.mark.parametrize("base", ["runs/model", "/models/big", "small", "weights.gguf"])
def test_a_path_is_not_passed_off_as_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/model").mkdir(parents=True)
    assert "base_model" not in front_matter(write_model_card(tmp_path, base=base, **CARD).read_text())


def test_results_go_into_a_card_and_replace_those_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_extended(tmp_path / "model")
    card = folder / "README.md"
    lines = [one for one in records_of("pose", kinds=()) if one["task"] == "perplexity"]
    source = str(write_lines(tmp_path / "small.jsonl", lines))
    arguments = ["report", source, str(folder), "--card", str(folder), "--out", str(tmp_path / "r.html")]
    # A card without its section is refused before anything is written.
    assert cli.main(arguments) == 2
    assert "## What was measured" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    card.write_text("# x\n\n## What was measured\n\nNothing was measured.\n\n## Limits\n\n- one\n")
    for _ in range(2):
        assert cli.main(arguments) == 0
    text = card.read_text()
    assert "Nothing was measured" not in text
    assert text.count("| 4k | 7.37 (6.85\N{EN DASH}7.96) |") == 1
    assert text.endswith("## Limits\n\n- one\n")


def test_the_effective_length_stands_beside_the_configured_one(tmp_path: Path) -> None:
    write_model_card(tmp_path, base="m", **CARD)
    card = tmp_path / "README.md"
    results = arm_of("randpos", [one for one in records_of("randpos") if one["task"] == "passkey"]).results
    windows: dict[str, Any] = {"advertised_tokens": 4096, "original_tokens": 256}
    found = [effective_length(results, rule=rule, **windows) for rule in ("ruler", "relative")]
    for _ in range(2):
        state_effective_length(tmp_path, found)
    text = card.read_text()
    assert "- Effective context length: 512 under RULER's rule" in text
    assert "512 under the relative rule" in text
    assert "over 1 task x 50 prompts a length: passkey; these are not RULER's 13 tasks" in text
    # Wilson's lower ends at 50 of 50 and 48 of 50.
    assert "mean score 256 100.0% (at least 92.9%), 512 96.0% (at least 86.5%), 1k 90.0%" in text
    assert text.count("Effective context length:") == 1
    card.write_text("mine")
    with pytest.raises(CheckpointError, match="README"):
        state_effective_length(tmp_path, found)

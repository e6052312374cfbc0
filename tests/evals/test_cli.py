"""The verb `eval`, on a checkpoint folder and a folder of texts."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from skipwise.cli import evaluate as verb
from skipwise.documents import is_held_out
from skipwise.errors import ConfigError
from skipwise.evals import EvalResult


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four held-out texts and four others, in another alphabet."""
    monkeypatch.setenv("SKIPWISE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    names = [f"{number}.txt" for number in range(200)]
    held_out = [name for name in names if is_held_out(name)][:4]
    for name in [*held_out, *[name for name in names if not is_held_out(name)][:4]]:
        letters = "abcdefg\n" if name in held_out else "ABCDEFG\n"
        (folder / name).write_text(letters * (20 + len(name)))
    return folder


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    verb.register(app)
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_results_are_appended_and_printed(tiny_checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [tiny_checkpoint, "--task", "nll_by_position,sliding", "--length", "32,64", "--documents", texts]
    printed = run(*arguments, "--out", out, "--num-documents", 3, "--json")
    lines = out.read_text().splitlines()
    assert [json.loads(line) for line in printed.splitlines() if line.startswith("{")] == list(map(json.loads, lines))
    results = list(map(EvalResult.from_json, lines))
    assert [(r.task, r.length_tokens) for r in results if r.task == "sliding"] == [("sliding", 32), ("sliding", 64)]
    assert all(result.num_samples == 3 for result in results)
    table = run(*arguments, "--out", out, "--samples", tmp_path / "samples.jsonl", "--all-documents")
    assert "95% interval" in table
    assert len(out.read_text().splitlines()) == 2 * len(lines)
    documents = {json.loads(line)["document"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}
    assert documents == set(range(8)), "four held out, four not"


def test_passkeys_need_no_documents_and_print_a_grid(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--task", "passkey", "--length", "220", "--trials", 4, "--depths", 2, "--allow-beyond"]
    printed = run(tiny_checkpoint, *arguments, "--documents", tmp_path / "nowhere")
    assert "passkey depth" in printed
    assert "0.50 to 1.00" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "passkey", "--length", "64x"], "length is '64x'"),
        (["--task", "pass", "--length", "64"], "'pass'; known are"),
        (["--task", "sliding", "--length", "64", "--trials", "5"], "trials is set to 5 and no task of sliding"),
        (["--task", "passkey", "--length", "128"], "window .* is 64"),
    ],
)
def test_bad_input_is_told_in_one_line(tiny_checkpoint: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny_checkpoint, *arguments)

"""The verb `eval build-suite`: what it writes and prints."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from skipwise.cli import build_app
from skipwise.evals.suite import SuiteFolder

from .suite_documents import prose, write_documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder, [prose(f"{number}.md", 60) for number in range(4)])
    return folder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["eval", "build-suite", *map(str, arguments)], env={"COLUMNS": "200"})


def test_it_writes_a_suite_and_says_what_is_in_it(documents: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "suite"
    options = ["--tokenizer", tiny_checkpoint, "--length", "1.5k,1300", "--items", "2", "--kinds", "fact, order"]
    result = invoke(documents, "--out", out, *options, "--seed", "3")
    assert result.exit_code == 0, result.output
    suite = SuiteFolder(out)
    assert (suite.lengths, list(suite.kinds), suite.index["seed"]) == ([1300, 1536], ["fact", "order"], 3)
    assert suite.index["tokenizer"]["name"] == tiny_checkpoint.name
    rows = [line.split() for line in result.stdout.splitlines()]
    counts = sorted(item.num_tokens for item in suite.items(1300, "order"))
    assert ["order", str(counts[0]), "to", str(counts[1]), "2", "0", "0.5"] in rows
    assert "README.md says how to run it" in result.stdout


def test_json_is_one_line_with_the_index(documents: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--tokenizer", tiny_checkpoint, "--length", "1300", "--items", "1", "--kinds", "order", "--json"]
    result = invoke(documents, "--out", tmp_path / "suite", *options)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert json.loads(line) == {"folder": str(tmp_path / "suite"), **SuiteFolder(tmp_path / "suite").index}

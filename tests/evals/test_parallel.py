"""Two processes share the samples of an evaluation out, and each result is what one process finds."""

import json
from pathlib import Path

import pytest
from forked import launched


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_find_what_one_finds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ["eval", str(tiny_checkpoint), "--task", "passkey,sliding", "--length", "220,240"]
    command += ["--documents", "stdlib", "--num-documents", "5", "--trials", "5", "--depths", "5", "--allow-beyond"]

    def run(name: str, processes: int | None, *more: str) -> list[dict]:
        out, samples = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-samples.jsonl"
        files = ["--out", out, "--samples", samples]
        launched("-m skipwise", *command, *files, *more, processes=processes, SKIPWISE_CACHE=str(tmp_path / "cache"))
        return [json.loads(line) for file in (out, samples) for line in file.read_text().splitlines()]

    shared = run("two", 2)
    files = [file for file in (tmp_path / "cache" / "evals").rglob("*.jsonl") if "tiny" not in file.name]
    assert len({file.name for file in files}) == 2, "each process kept what it measured"
    assert run("one", None, "--no-cache") == shared
    assert run("found", None) == shared

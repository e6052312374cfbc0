"""Two processes share the samples of an evaluation out, and each result is what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ["-m", "skipwise", "eval", str(tiny_checkpoint), "--task", "passkey,sliding", "--length", "220,240"]
    command += ["--documents", "stdlib", "--num-documents", "5", "--trials", "5", "--depths", "5", "--allow-beyond"]

    def run(name: str, launcher: list[str], *more: str) -> list[dict]:
        out, samples = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-samples.jsonl"
        subprocess.run(
            [sys.executable, *launcher, *command, "--out", str(out), "--samples", str(samples), *more],
            env={**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache")},
            check=True,
            capture_output=True,
        )
        return [json.loads(line) for file in (out, samples) for line in file.read_text().splitlines()]

    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = run("two", two)
    files = [file for file in (tmp_path / "cache" / "evals").rglob("*.jsonl") if "tiny" not in file.name]
    assert len({file.name for file in files}) == 2, "each process kept what it measured"
    assert run("one", [], "--no-cache") == shared
    assert run("found", []) == shared

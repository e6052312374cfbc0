"""A pilot that is killed goes on: in training from its last checkpoint, in evaluation from its samples."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from evals.suite_documents import prose, write_documents

from skipwise.report.reading import read_evidence


def killed_when(command: list[str], environment: dict[str, str], due: Callable[[], bool]) -> None:
    """Runs a command and kills it, and it alone, as soon as something is true; its jobs end with it."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    while not due():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children, "no job was running"
    assert not psutil.wait_procs(children, timeout=20)[1], "a job outlived its pilot"


@pytest.mark.slow
def test_a_pilot_that_is_killed_in_training_and_in_evaluation_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "docs", [prose(f"{name}.txt", 20 + name) for name in range(12)])
    folder = tmp_path / "pilot"
    settings = {
        "window": 32,
        "data.held_out": 0.4,
        "data.retrieval": 0,
        "training.max_steps": 400,
        "training.gradient_accumulation_steps": 8,
        "training.save_steps": 100,
    }
    command = [sys.executable, "-m", "skipwise", "pilot", str(tiny_checkpoint), "--target", "512", "--time", "20m"]
    command += ["--data", str(tmp_path / "docs"), "--output", str(folder)]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    environment = {**os.environ, "SKIPWISE_CACHE": str(tmp_path / "cache")}
    job = folder / "arms" / "extended" / "seed-0"
    killed_when(command, environment, lambda: any((job / "model").glob("checkpoint-*")))
    decided = json.loads((folder / "schedule.json").read_text())
    killed_when(
        command, environment, lambda: (job / "samples.jsonl").is_file() and (job / "samples.jsonl").stat().st_size > 0
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    kept = json.loads((folder / "schedule.json").read_text())
    assert (kept["schedule"], kept["steps"]) == (decided["schedule"], decided["steps"])
    assert kept["used_before"] > decided["used_before"]
    pilot = read_evidence([str(folder)]).pilot
    assert pilot is not None
    assert (pilot.steps, pilot.seconds_used > kept["used_before"]) == (400, True)

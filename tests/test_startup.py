"""What a verb loads, and what it says first. Each process takes seconds, so that one answers for several verbs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import lines_of

from skipwise.evals import TASKS
from skipwise.evals.benchmarks import BENCHMARKS
from skipwise.evals.catalogue import BENCHMARK_NAMES, READERS, SUITE_KINDS, TASK_HOMES
from skipwise.evals.suite import KINDS

# Nobody asked for any of them who trains, probes, measures or generates.
NEVER = ("bitsandbytes", "matplotlib", "lm_eval", "scipy", "sklearn", "pandas", "datasets", "deepspeed")
PEFT_LINE = "gemm_4bit_forward"

# Runs verbs one after the other, and writes down the modules that were loaded after each.
RUN = """
import json, sys
from skipwise.cli import main
loaded = []
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    loaded.append([code, sorted({name for name in sys.modules if sys.modules[name] is not None})])
    sys.stderr.flush()
open(sys.argv[2], "w").write(json.dumps(loaded))
"""


@pytest.fixture
def verbs(tmp_path: Path) -> Callable[..., tuple[list[tuple[int, set[str]]], subprocess.CompletedProcess[str]]]:
    """Runs verbs in one new process, without the network, and tells what was loaded after each."""

    def run(*verbs: list[str]) -> tuple[list[tuple[int, set[str]]], subprocess.CompletedProcess[str]]:
        told = tmp_path / "loaded.json"
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN, json.dumps(verbs), str(told)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert told.exists(), done.stderr
        return [(code, set(modules)) for code, modules in json.loads(told.read_text())], done

    return run


def test_names_and_paths_are_checked_without_torch(verbs: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "nonempty").write_text("")
    model, nothing, taken = str(tmp_path / "model"), str(tmp_path / "none"), str(tmp_path / "nonempty")
    suite = ["--out", f"{nothing}/suite", "--tokenizer", model, "--length", "1k"]
    wrong = [
        ["plan", model, "--target", "1k", "--machine", "nonsense"],
        ["plan", nothing, "--target", "1k"],
        ["pilot", nothing, "--target", "1k"],
        ["export", model, "--to", "nonsense"],
        ["export", nothing, "--to", "gguf"],
        ["eval", model, "--length", "64", "--task", "nonsense"],
        ["eval", model, "--length", "64", "--task", "passkey", "--language", "nonsense"],
        ["eval", model, "--length", "64", "--documents", model, "--format", "nonsense"],
        ["eval", nothing, "--length", "64"],
        ["eval", model, "--length", "64", "--documents", nothing],
        ["doctor", nothing, "--target", "1k"],
        ["extend", nothing, "--target", "1k", "--data", model],
        ["extend", model, "--target", "1k", "--data", nothing],
        ["generate", nothing, "--prompt", "a"],
        ["calibrate", nothing, "--dry-run"],
        ["calibrate", model, "--output", taken],
        ["compare", nothing, "--target", "1k"],
        ["compare", model, "--target", "1k", "--data", nothing],
        ["compare", model, "--target", "1k", "--arms", "nonsense"],
        ["demo", "--output", taken],
        ["export", model, "--to", "gguf", "--out", taken],
        ["export", model, "--to", "adapter", "--base", nothing],
        ["serve", nothing],
        ["serve", model, "--base", nothing],
        ["serve", model, "--keys", nothing],
        ["eval", "benchmarks", nothing],
        ["eval", "benchmarks", model, "--benchmark", "nonsense"],
        ["eval", "benchmarks", model, "--tasks-folder", nothing],
        ["eval", "build-suite", nothing, *suite],
        ["eval", "build-suite", "stdlib", *suite, "--kinds", "nonsense"],
        ["eval", "build-suite", "stdlib", *suite, "--language", "nonsense"],
        ["eval", "build-suite", "stdlib", *suite, "--tokenizer", nothing],
        ["eval", "build-suite", "stdlib", *suite, "--out", taken],
        ["plan", model, "--target", "1k", "--out", f"{nothing}/plan.html"],
        ["report", "results.jsonl", "--out", f"{nothing}/report.html"],
    ]
    after, done = verbs(["--help"], ["--version"], *wrong)
    assert [code for code, _ in after] == [0, 0, *[2] * len(wrong)]
    assert "numpy" not in after[1][1]
    for arguments, (_, loaded) in zip(wrong, after[2:], strict=True):
        assert not loaded & {"torch", "transformers", *NEVER}, arguments
    lines = lines_of(done.stderr)
    assert len(lines) == len(wrong)
    assert all(line.startswith("skipwise: ") and ("nonsense" in line or "none" in line) for line in lines)


def test_verbs_on_a_model_load_what_they_use(verbs: Callable[..., Any], tiny_checkpoint: Path) -> None:
    model = str(tiny_checkpoint)
    one = ["--task", "passkey", "--set", "trials=1", "--set", "num_depths=1", "--length", "256"]
    one += ["--allow-beyond", "--no-cache"]
    generated, measured, probed = (
        ["generate", model, "--prompt", "a", "--max-new-tokens", "1", "--json"],
        ["eval", model, *one, "--json"],
        ["doctor", model, "--target", "128", "--json"],
    )
    after, done = verbs(measured, generated, probed)
    assert [code for code, _ in after] == [0, 0, 0], done.stderr
    for _, loaded in after:
        assert not loaded & {*NEVER, "transformers.trainer"}
    # What takes its time is said once, at the beginning, and not among what machines read.
    assert done.stderr.splitlines()[0] == f"reading the model {model}"
    assert done.stderr.count("reading the model") == 1
    assert all(json.loads(line) for line in done.stdout.splitlines())
    assert PEFT_LINE not in done.stderr


def test_training_loads_the_trainer_and_no_4_bits(
    verbs: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"The river {number} is wide and low. " * 40)
    run = ["--target", "128", "--data", str(tmp_path / "text"), "--recipe", "paper", "--tuning", "lora"]
    run += ["--set=training.max_steps=1", "--set=training.use_cpu=true", "--set=training.gradient_accumulation_steps=1"]
    run += ["--set=validation.num_documents=1", "--output", str(tmp_path / "run")]
    [(code, loaded)], done = verbs(["extend", str(tiny_checkpoint), *run])
    assert code == 0, done.stderr
    assert {"peft", "transformers.trainer"} <= loaded
    assert not loaded & set(NEVER) - {"deepspeed"}
    lines = done.stderr.splitlines()
    assert lines[0] == f"reading the model {tiny_checkpoint}"
    # A preflight without a failure is one line, and libraries say nothing between ours.
    assert len([line for line in lines if re.fullmatch(r"preflight: \d+ checks passed", line)]) == 1
    assert not re.search(r"\n(pass|note) ", done.stderr)
    assert not re.search(r"WARNING|Warning|Loading weights|Token indices|" + PEFT_LINE, done.stderr + done.stdout)


def test_importing_the_library_is_no_training(fresh_python: Callable[[str], None]) -> None:
    heavy = (*NEVER[:3], "datasets", "pandas", "deepspeed", "transformers.trainer")
    fresh_python(
        "import sys, skipwise.train.extending, skipwise.evals, skipwise.plan.pages, skipwise.export.exporting\n"
        f"heavy = {{*{heavy}}} & {{*sys.modules}}\nassert not heavy, heavy"
    )


def test_names_are_those_of_the_catalogue() -> None:
    assert tuple(KINDS) == SUITE_KINDS
    assert tuple(BENCHMARKS) == BENCHMARK_NAMES
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASK_HOMES}
    assert all(TASKS[name]().uses_documents for name in READERS if name != "regression")
    assert TASKS["regression"](base="-").uses_documents

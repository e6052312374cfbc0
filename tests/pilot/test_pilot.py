"""A whole pilot on a tiny model: what it leaves, what it refuses, and how it goes on."""

import importlib
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.suite_documents import prose, write_documents
from refusals import lines_of

import skipwise.compare.running
from skipwise import cli
from skipwise.compare import worker
from skipwise.evals.suite import Collection
from skipwise.pilot.asked import parse_duration
from skipwise.pilot.measuring import Measured
from skipwise.records.verdict import Verdict
from skipwise.report.reading import read_evidence
from skipwise.train.trainer import SkipwiseTrainer

SECONDS = Measured(
    verdicts=[Verdict(name="reach", status="pass", detail="taken for granted")],
    preflight=0.1,
    start=0.1,
    passes={64: 0.001, 1024: 0.002},
    token=0.0001,
    windows={32: 0.001},
)


@pytest.fixture(scope="module", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store for tokens of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder, [prose(f"{name}.txt", 20 + name) for name in range(12)])
    return folder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, sound_model: None) -> list[str]:
    """Runs jobs in this process, on a machine of known speed; the names of the jobs that ran, in order."""
    names: list[str] = []

    def run(job_file: Path) -> int:
        names.append(json.loads(job_file.read_text())["name"])
        return worker.main(job_file)

    monkeypatch.setattr(skipwise.compare.running, "_run_process", run)
    monkeypatch.setattr(importlib.import_module("skipwise.pilot.preparing"), "measure", lambda *_: SECONDS)
    monkeypatch.setattr(importlib.import_module("skipwise.pilot.measures"), "LEAST_TRIALS", 5)
    # Drawings take most of a page's time.
    monkeypatch.setattr(importlib.import_module("skipwise.report.figures"), "svg_of", lambda *_: "<svg></svg>")
    return names


@pytest.fixture
def command(tiny_checkpoint: Path, documents: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def made(target: str = "512", time: str = "10m", *more: str) -> list[str]:
        settings = {
            "window": 32,
            "data.held_out": 0.4,
            "data.retrieval": 0,
            "training.max_steps": 3,
            "training.gradient_accumulation_steps": 8,
            "training.disable_tqdm": "true",
        }
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        where = ["--data", str(documents), "--output", str(tmp_path / "pilot")]
        return ["pilot", str(tiny_checkpoint), "--target", target, "--time", time, *where, *words, *more]

    return made


def test_a_pilot_leaves_its_page_and_measures_all_that_it_planned(ran, command, tmp_path, capsys) -> None:
    assert cli.main(command("512", "10m", "--json", "--price", "2", "--machine", "a100-80,cpu")) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert {"folder", "schedule", "page", "decision", "pilot", "verdict"} <= told.keys()
    assert ran == ["arms/base", "arms/interpolation-only", "arms/extended/seed-0"]
    evidence = read_evidence([told["folder"]])
    assert [arm.name for arm in evidence.arms] == ["base", "interpolation-only", "extended"]
    assert evidence.pilot is not None
    assert (evidence.original_tokens, evidence.target_tokens) == (64, 512)
    assert (evidence.pilot.steps, evidence.pilot.full_steps) == (3, 3)
    # Nothing of the schedule is missing, and nothing is there besides.
    measures = told["schedule"]["measures"]
    planned = {("perplexity", tokens) for tokens in measures["perplexity"]}
    planned |= {("passkey", tokens) for tokens in measures["passkeys"]}
    planned |= {("suite", tokens) for lengths in measures["questions"].values() for tokens in lengths}
    for arm in evidence.arms:
        beside = {("regression", 64)} if arm.name != "base" else set()
        beside |= {("serving", tokens) for tokens in measures["serving"]} if arm.name == "extended" else set()
        assert {(record.task, record.length_tokens) for record in arm.results} == planned | beside
    here, *named = evidence.pilot.full_runs
    assert here.cost is None
    assert [(one.machine, one.price_per_hour) for one in named] == [("a100-80", 2.0), ("cpu", 2.0)]
    assert named[0].cost == pytest.approx(2 * named[0].hours)
    assert evidence.pilot.made["prices"] == "given"
    assert evidence.pilot.next_command.startswith("skipwise extend ")
    assert "training.learning_rate=" in evidence.pilot.next_command
    assert Path(told["page"]).is_file()
    lines = err.splitlines()
    assert any(line.startswith("how 10m are split, from 64 to 512 tokens") for line in lines)
    assert "Questions of the kind fact cannot be made of these documents at 64" in err
    # The same command again reads it, and measures nothing.
    ran.clear()
    assert cli.main(command("512", "10m", "--json", "--price", "2", "--machine", "a100-80,cpu")) == 0
    assert json.loads(capsys.readouterr().out)["pilot"] == told["pilot"]
    assert ran == []


def test_an_interrupted_pilot_goes_on_with_its_schedule(ran, command, tmp_path, monkeypatch, capsys) -> None:
    """One that is too short to decide, so that it measures little."""
    measured = Measured(verdicts=(), preflight=1.0, start=1.0, passes={64: 0.2}, token=0.1, windows={32: 0.1})
    monkeypatch.setattr(importlib.import_module("skipwise.pilot.preparing"), "measure", lambda *_: measured)
    own, steps = SkipwiseTrainer.training_step, []

    def training_step(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        steps.append(trainer.state.global_step + 1)
        if steps == [1, 2]:
            os.kill(os.getpid(), signal.SIGINT)
        return own(trainer, *arguments, **keywords)

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    assert cli.main(command("512", "1m")) == cli.INTERRUPTED
    err = capsys.readouterr().err
    assert "Continue with: skipwise" in err
    assert "in 60s this tells perplexity at 512" in err
    assert re.search(r"cannot tell whether .* finds things there: \d+ questions to each of three models need", err)
    kept = json.loads((tmp_path / "pilot" / "schedule.json").read_text())
    ran.clear()
    # Another speed of the machine changes nothing of what was decided.
    slow = Measured(verdicts=(), preflight=9.0, start=9.0, passes={64: 9.0}, token=9.0, windows={32: 9.0})
    monkeypatch.setattr(importlib.import_module("skipwise.pilot.preparing"), "measure", lambda *_: slow)
    assert cli.main(command("512", "1m")) == 0
    assert ran == ["arms/extended/seed-0"]
    assert steps == [1, 2, 3]
    out = capsys.readouterr().out
    assert out.startswith("NOT YET: Text of 512 tokens has perplexity ")
    least = re.search(r"need --time (\d+)m on this machine", (tmp_path / "pilot" / "pilot.json").read_text())
    asked = re.search(r"next: .* --time (\d+)m\b", out)
    assert least is not None
    assert asked is not None
    assert int(least[1]) < int(asked[1]) < 1.2 * int(least[1]) + 10
    gone_on = json.loads((tmp_path / "pilot" / "schedule.json").read_text())
    assert (gone_on["schedule"], gone_on["steps"]) == (kept["schedule"], kept["steps"])
    assert gone_on["used_before"] > 0
    # The folder is of this pilot, and no other is begun in it.
    assert cli.main(command("256", "1m")) == 2
    assert "begun with another setting of the run's settings" in capsys.readouterr().err


def test_a_time_that_is_too_short_is_refused_with_the_least(ran, command, tmp_path, monkeypatch, capsys) -> None:
    slow = Measured(verdicts=(), preflight=1.0, start=5.0, passes={64: 0.1}, token=0.1, windows={32: 0.1})
    monkeypatch.setattr(importlib.import_module("skipwise.pilot.preparing"), "measure", lambda *_: slow)
    assert cli.main(command("1k", "40s")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("skipwise: --time 40s is too short for 1k: the least is --time ")
    least = last.split("--time ")[2].split(",")[0]
    assert ran == []
    assert not (tmp_path / "pilot").exists(), "it can be begun with more"
    assert cli.main(command("1k", least, "--schedule")) == 0
    assert f"how {least} are split" in capsys.readouterr().err
    assert not (tmp_path / "pilot").exists()


def test_documents_that_are_too_short_are_told_with_what_they_carry(ran, command, capsys) -> None:
    assert cli.main(command("8k")) == 2
    last = lines_of(capsys.readouterr().err)[-1]
    assert "no held-out document has 8,192 tokens" in last
    assert "they carry --target 2k, or --set data.join=true joins short ones" in last
    assert ran == []


def test_everything_wrong_is_said_at_once(tmp_path, capsys, tiny_checkpoint) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "note.txt").write_text("mine")
    words = ["pilot", str(tiny_checkpoint), "--target", "64", "--time", "soon", "--data", str(tmp_path / "none")]
    words += ["--output", str(taken), "--machine", "a100-80,h10", "--set", "sampler.kind=posse"]
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("skipwise: ") for line in lines)
    said = ["sampler", "no documents at", "time is 'soon'", "the machine is 'h10'", "is not empty", "target is 64"]
    assert len(lines) == len(said)
    assert all(any(each in line for line in lines) for each in said), lines


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h", 3600.0), ("40m", 2400.0), ("90s", 90.0), ("1h30m", 5400.0), ("1.5h", 5400.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_questions_are_of_held_out_documents_alone(ran, command, documents, monkeypatch, capsys) -> None:
    from skipwise.data.documents import is_held_out

    seen: list[str] = []
    monkeypatch.setattr(
        importlib.import_module("skipwise.pilot.documents"),
        "Collection",
        lambda found: seen.extend(document.text for document in found) or Collection(found),
    )
    assert cli.main(command("1k", "10m", "--schedule")) == 0
    texts = [file.read_text() for file in documents.iterdir()]
    assert sorted(text.strip() for text in seen) == sorted(
        text.strip() for text in texts if is_held_out(text.strip(), 0.4)
    )

"""The log of a run: each entry is written once, and is there once, wherever the run was killed."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import STEPS, run

from skipwise.errors import CheckpointError
from skipwise.train import log as run_log
from skipwise.train.durable import SEAL_FILE
from skipwise.train.log import LOG_FILE, RunLog
from skipwise.train.trainer import SkipwiseTrainer

SAVED = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": STEPS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoint-2").mkdir()
    return tmp_path


def trained(log: RunLog, steps: range, history: list[dict[str, Any]], *, first: bool = True) -> list[dict[str, Any]]:
    """What the state of a Trainer that begins with this history has after these steps."""
    state = SimpleNamespace(is_world_process_zero=first, log_history=[*history])
    log.on_train_begin(None, state, None)
    logged(log, steps, state)
    return state.log_history


def logged(log: RunLog, steps: range, state: Any) -> None:
    for step in steps:
        state.log_history.append({"loss": 1 / step, "step": step})
        log.on_log(None, state, None)


def lines(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LOG_FILE).read_text().splitlines()]


def test_a_run_goes_on_from_what_its_checkpoint_knows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_KEPT", 3)
    before = RunLog(folder, None)
    state = trained(before, range(1, 6), [])
    assert [entry["step"] for entry in state] == [3, 4, 5], "the state is as small as the checkpoint that it is in"
    before.save(folder / "checkpoint-2")
    logged(before, range(6, 8), SimpleNamespace(log_history=[*state]))  # A killed process has half a line more.
    with (folder / LOG_FILE).open("a") as file:
        file.write('{"loss": 0.1')

    after = RunLog(folder, folder / "checkpoint-2")
    trained(after, range(6, 9), state)
    assert after.entries() == [{"loss": 1 / step, "step": step} for step in range(1, 9)]

    # Without a checkpoint, it begins again.
    trained(RunLog(folder, None), range(1, 3), [])
    assert lines(folder) == [1, 2]


def test_only_the_first_process_writes_and_none_keeps_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "_KEPT", 3)
    log = RunLog(folder, None)
    assert len(trained(log, range(1, 9), [], first=False)) == 3
    log.save(folder / "checkpoint-2")
    assert log.entries() == []
    assert not [*folder.rglob("*log*")]


def test_a_log_that_has_lost_lines_goes_on_from_the_newest(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog(folder, None)
    state = trained(log, range(1, 6), [])
    log.save(folder / "checkpoint-2")
    (folder / LOG_FILE).unlink()
    with caplog.at_level(logging.WARNING, "skipwise"):
        trained(RunLog(folder, folder / "checkpoint-2"), range(6, 7), state[-2:])
    assert lines(folder) == [4, 5, 6]
    assert "has lost entries" in caplog.text


def test_what_is_no_number_is_none(folder: Path) -> None:
    log = RunLog(folder, None)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[])
    log.on_train_begin(None, state, None)
    state.log_history.append({"loss": float("inf"), "grad_norm": float("nan"), "step": 1})
    log.on_log(None, state, None)
    assert log.entries() == [{"loss": None, "grad_norm": None, "step": 1}]


def test_a_log_that_cannot_be_written_stops_the_run(folder: Path) -> None:
    (folder / LOG_FILE).mkdir()
    with pytest.raises(CheckpointError, match=LOG_FILE):
        trained(RunLog(folder, None), range(0), [])


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All entries but the last, which is about the whole run."""
    return [
        {name: entry[name] for name in entry if name not in ("step_seconds", "tokens_per_second")} for entry in log[:-1]
    ]


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_killed_run_has_the_log_of_one_that_was_not(
    earlier: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 4, after the checkpoint of step 2; also by a version that kept the log in the Trainer's state."""
    whole = run(settings, training=SAVED, output=str(tmp_path / "whole"))
    if not earlier:
        monkeypatch.setattr(run_log, "_KEPT", 1)

    with monkeypatch.context() as patch:
        own = SkipwiseTrainer.training_step

        def training_step(trainer: SkipwiseTrainer, *arguments: Any) -> Any:
            if trainer.state.global_step == STEPS - 1:
                raise KeyboardInterrupt
            return own(trainer, *arguments)

        patch.setattr(SkipwiseTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            run(settings, training=SAVED)
    folder = Path(settings["output"])
    assert lines(folder) == [0, 1, 2, 3]
    checkpoint = folder / "checkpoint-2"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"]] == ([0, 1, 2] if earlier else [2])
    if earlier:
        (folder / LOG_FILE).unlink()
        (checkpoint / "log.json").unlink()
        seal = json.loads((checkpoint / SEAL_FILE).read_text())
        del seal["log.json"]
        (checkpoint / SEAL_FILE).write_text(json.dumps(seal))

    resumed = run(settings, training=SAVED, resume=True)
    assert resumed.record["resumed_at_step"] == 2
    assert without_times(resumed.log) == without_times(whole.log)
    assert resumed.record["log"] == resumed.log
    assert lines(folder) == [entry["step"] for entry in whole.log]

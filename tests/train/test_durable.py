"""Checkpoints under failure: torn, changed, half written, on a full disk, and two runs in one folder."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from forked import start
from safetensors.torch import save_file
from tiny_runs import STEPS, run

from skipwise.errors import CheckpointError, ConfigError
from skipwise.records.runs import BEGUN_FILE
from skipwise.train.checkpoints import load_checkpoint, run_checkpoints
from skipwise.train.durable import (
    SEAL_FILE,
    STAGING,
    damage,
    forget_older,
    newest_sound,
    sealed_checkpoints,
    whole_or_not_at_all,
)


def write(folder: Path, step: int, text: str = "weights") -> Path:
    with whole_or_not_at_all(folder, step) as staged:
        (staged / "model").write_text(text * 100)
        (staged / "parts").mkdir()
        (staged / "parts" / "0").write_text(text)
    return folder / f"checkpoint-{step}"


def flip_a_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    with whole_or_not_at_all(tmp_path, 3) as staged:
        (staged / "model").write_text("weights")
        assert sealed_checkpoints(tmp_path) == {}
    assert sealed_checkpoints(tmp_path) == {3: tmp_path / "checkpoint-3"}
    assert damage(tmp_path / "checkpoint-3") is None
    assert not (tmp_path / STAGING).exists()


def test_what_a_crash_leaves_is_no_checkpoint_and_is_swept_away(tmp_path: Path) -> None:
    class CrashError(BaseException):
        """As a kill, which runs no handler."""

    def crash() -> None:
        with whole_or_not_at_all(tmp_path, 3) as staged:
            (staged / "model").write_text("wei")
            raise CrashError

    with pytest.raises(CrashError):
        crash()
    assert sealed_checkpoints(tmp_path) == {}
    write(tmp_path, 4)
    assert list(sealed_checkpoints(tmp_path)) == [4]
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: flip_a_bit(folder / "model", 350), "the bytes of model have changed"),
        (lambda folder: flip_a_bit(folder / "parts" / "0", 0), "the bytes of parts/0 have changed"),
        (lambda folder: os.truncate(folder / "model", 10), "model has 10 bytes of 700"),
        (lambda folder: (folder / "model").unlink(), "model is missing"),
        (lambda folder: os.truncate(folder / SEAL_FILE, 20), "seal.json cannot be read"),
        (lambda folder: (folder / SEAL_FILE).write_text("[]"), "seal.json cannot be read"),
    ],
)
def test_a_damaged_one_is_passed_over_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    before, last = write(tmp_path, 2), write(tmp_path, 10)
    told: list[str] = []
    assert newest_sound(tmp_path, told.append) == last
    spoil(last)
    assert newest_sound(tmp_path, told.append) == before
    assert reason in told[0]
    assert told[0].startswith("checkpoint-10 is damaged")
    spoil(before)
    assert newest_sound(tmp_path, told.append) is None


def test_the_newest_is_kept_and_the_best(tmp_path: Path) -> None:
    for step in (2, 10, 4, 6):
        write(tmp_path, step)
    forget_older(tmp_path, 10, None)
    assert list(sealed_checkpoints(tmp_path)) == [2, 4, 6, 10], "by number, not by name"
    forget_older(tmp_path, 10, 2, keep=tmp_path / "checkpoint-2")
    assert list(sealed_checkpoints(tmp_path)) == [2, 6, 10]
    forget_older(tmp_path, 10, 1)
    assert list(sealed_checkpoints(tmp_path)) == [10]


def test_a_damaged_one_does_not_outlive_the_only_good_one(tmp_path: Path) -> None:
    """A run went on from step 2, as what was written at step 6 is torn, and was asked to stop at step 3."""
    for step in (2, 6):
        write(tmp_path, step)
    flip_a_bit(tmp_path / "checkpoint-6" / "model", 7)
    write(tmp_path, 3)
    forget_older(tmp_path, 3, 1)
    assert newest_sound(tmp_path, lambda _: None) == tmp_path / "checkpoint-3"
    assert list(sealed_checkpoints(tmp_path)) == [3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_says_so_and_spoils_nothing(small_disk: Path) -> None:
    first = write(small_disk, 1)
    for save in (
        lambda file: file.write_bytes(bytes(2**21)),
        # As libraries say it: neither is an OSError.
        lambda file: torch.save(torch.zeros(2**19), file),
        lambda file: save_file({"x": torch.zeros(2**19)}, file),
    ):
        with (
            pytest.raises(CheckpointError, match=r"step 2 .*checkpoint-1 .*--resume"),
            whole_or_not_at_all(small_disk, 2) as staged,
        ):
            save(staged / "model")
        assert damage(first) is None
        assert list(sealed_checkpoints(small_disk)) == [1]
        assert not (small_disk / STAGING).exists(), "the room it took is free again"
    assert write(small_disk, 2).exists()


@pytest.mark.usefixtures("sound_model")
def test_a_run_goes_on_from_the_one_before_a_damaged_one(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(settings, output=str(tmp_path / "whole"), training={"save_strategy": "steps", "save_steps": 1})
    folder = Path(settings["output"])
    run(settings, training={"save_strategy": "steps", "save_steps": 1})
    for left in ("skipwise.json", "model.safetensors"):
        (folder / left).unlink()
    flip_a_bit(folder / f"checkpoint-{STEPS}" / "optimizer.pt", 5000)
    with caplog.at_level(logging.WARNING):
        resumed = run(settings, training={"save_strategy": "steps", "save_steps": 1}, resume=True)
    assert f"checkpoint-{STEPS} is damaged (the bytes of optimizer.pt have changed)" in caplog.text
    assert resumed.record["resumed_at_step"] == STEPS - 1
    assert (folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert damage(folder / f"checkpoint-{STEPS}") is None, "it has been written anew"


@pytest.mark.usefixtures("sound_model")
def test_a_damaged_checkpoint_is_not_evaluated(settings: dict[str, Any]) -> None:
    folder = run(settings, training={"save_strategy": "steps", "save_steps": 1}).folder
    first = run_checkpoints(folder)[0]
    flip_a_bit(first.folder / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=r"checkpoint-\d .*model\.safetensors"):
        load_checkpoint(first, folder)


@pytest.mark.usefixtures("sound_model")
def test_two_runs_do_not_share_a_folder(settings: dict[str, Any]) -> None:
    folder = Path(settings["output"])
    done = run(settings)
    (folder / "skipwise.json").unlink()
    with FileLock(folder / ".lock"), pytest.raises(ConfigError, match=str(folder)):
        run(settings, resume=True)
    shutil.rmtree(done.folder)
    folder.mkdir()
    # Both have found it empty, and the other one was quicker.
    with FileLock(folder / ".lock"), pytest.raises(ConfigError, match="another run"):
        run(settings)
    assert run(settings).finished, "what was refused has left nothing"
    assert not (folder / ".lock").exists()


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    script = "import os, sys, filelock; filelock.FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / ".lock")])
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


@pytest.mark.usefixtures("sound_model")
def test_a_process_started_anew_goes_on_unasked(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(settings).record["resumed_at_step"] is None, "killed before it had begun"
    folder = Path(settings["output"])
    (folder / "skipwise.json").unlink()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(ConfigError, match=str(folder)):
        run(settings)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert run(settings).finished
    assert json.loads((folder / "skipwise.json").read_text())["steps"] == STEPS


@pytest.mark.usefixtures("sound_model")
def test_a_run_goes_on_with_its_windows_spread_otherwise(
    settings: dict[str, Any], tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    """One at a time, four times a step, and then two at a time, twice: the same windows in the same steps."""
    four = {"gradient_accumulation_steps": 4}
    whole = run(settings, output=str(tmp_path / "whole"), training=four)
    stop_after(2)
    assert not run(settings, training=four).finished
    with pytest.raises(ConfigError, match=r"4 .* 8: .*training\.gradient_accumulation_steps"):
        run(settings, training={**four, "per_device_train_batch_size": 2}, resume=True)
    spread = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = run(settings, training=spread, resume=True)
    expected = [entry["loss"] for entry in whole.log if "loss" in entry]
    assert [entry["loss"] for entry in resumed.log if "loss" in entry] == pytest.approx(expected, rel=1e-4)
    (resumed.folder / "skipwise.json").unlink()
    with pytest.raises(ConfigError, match="of training;"):
        run(settings, training={**spread, "learning_rate": 2e-2}, resume=True)


@pytest.mark.usefixtures("sound_model")
def test_what_a_run_was_begun_with_is_read_with_care(
    settings: dict[str, Any], stop_after: Callable[[int], None]
) -> None:
    begun_file = Path(settings["output"]) / "begun.json"
    stop_after(2)
    run(settings)
    begun = json.loads(begun_file.read_text())
    for spoilt in ("{", "[1]", '{"at_a_time": "2"}'):
        begun_file.write_text(spoilt)
        with pytest.raises(CheckpointError, match=BEGUN_FILE):
            run(settings, resume=True)
    # As earlier versions left it.
    begun_file.write_text(json.dumps({name: value for name, value in begun.items() if name != "windows"}))
    assert run(settings, resume=True).finished


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("nth", [1, 2], ids=["settings", "what it was begun with"])
def test_a_run_killed_while_it_writes_its_first_files_begins_again(settings: dict[str, Any], nth: int) -> None:
    killed = start(KILLED_WRITING, json.dumps(settings), nth)
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    folder = Path(settings["output"])
    assert len(list(folder.glob(".*.new"))) == 1
    with pytest.raises(ConfigError, match="without --resume" if nth == 1 else "with --resume"):
        run(settings, resume=nth == 1)
    # What each message names works.
    done = run(settings, resume=nth == 2)
    assert (done.finished, done.steps) == (True, STEPS)
    assert not list(folder.glob(".*.new"))


KILLED_WRITING = """
import json, os, signal, sys
from pathlib import Path

import skipwise.train.extending
from skipwise import files
from skipwise.config import RunConfig
from skipwise.doctor import Verdict

opened, written = os.fdopen, []

def killed(*how, **more):
    file = opened(*how, **more)
    write = file.write

    def half(text):
        write(text[: len(text) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    file.write = half
    return file

def replace_file(path, text):
    written.append(path)
    if len(written) == int(sys.argv[2]):
        os.fdopen = killed
    own(path, text)

own, skipwise.train.folder.replace_file = files.replace_file, replace_file
skipwise.train.preparation.doctor = lambda *_, **__: [Verdict(name="reach", status="pass", detail="taken for granted")]
skipwise.train.extending.extend(RunConfig.from_mapping(json.loads(sys.argv[1])))
"""

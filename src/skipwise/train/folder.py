"""The folder of a run: who may write into it, and where a run goes on from. Imports no torch.

run.yaml             the run's settings, as it was begun
begun.json           what the settings do not say: the sampler itself and the corpus it was begun with, why settings
                     are as they are, and how much at a time was found to fit into memory
checkpoint-<step>/   model, optimizer and random state, a few of the newest, each complete and sealed (see durable.py)
skipwise.json        what was done; its presence says that the run is finished
log.jsonl            an entry for each step and validation (see log.py)
bad-items.json       steps that went wrong, their items, and skipped items (see guard.py)
launch/              with --launch: the settings, and the config of the engine
logs/rank-<n>.txt    with several processes: the log of each but the first
.lock                held by the run that writes here; .saving/, a checkpoint being written
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved
from skipwise.data.store import HeldOutEnd
from skipwise.errors import CheckpointError, ConfigError
from skipwise.files import half_written, replace_file
from skipwise.records.runs import BEGUN_FILE, SETTINGS_FILE, Run, one_or_all
from skipwise.train.durable import STAGING, newest_sound

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger("skipwise")

LAUNCH = "launch"
_LOCK_FILE, _LOGS = ".lock", "logs"
# What a run that was stopped before it had begun may leave, beside half-written first files; the last name is from
# earlier versions.
_TRACES = {_LOCK_FILE, _LOGS, LAUNCH, BEGUN_FILE, STAGING, "recipe-instead.txt"}
_FIRST_FILES = (SETTINGS_FILE, BEGUN_FILE)
# A resumed run may spread its windows over more or fewer processes; `begin` checks how many make a step.
_SPREAD = {"per_device_train_batch_size", "gradient_accumulation_steps"}


class RunFolder:
    """The output folder of a run; leaving the `with` releases it.

    Args:
        path: where it is, or will be.

    Attributes:
        path: as given.
        run: what a run has left there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, Run.open(path)
        self._lock = FileLock(self.path / _LOCK_FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock.is_locked:
            # Deleted before it is released: a waiting process then locks a file of its own.
            (self.path / _LOCK_FILE).unlink(missing_ok=True)
            self._lock.release()

    @property
    def is_to_be_resumed(self) -> bool:
        """Whether an elastic launcher has restarted this process, after a failure of a run that had begun."""
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and self.run.is_begun

    def require_ready(self, *, resume: bool) -> None:
        """Refuses a folder that cannot be used, before anything is loaded. Makes none, as the run may yet be refused.

        Args:
            resume: go on with a run that was begun there.

        Raises:
            ConfigError: a new run, and the folder holds something.
            CheckpointError: the folder cannot be made or written, or what a run was begun with cannot be read.
        """
        if resume or self.is_to_be_resumed:
            self.run.begun()
            return
        try:
            nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
            taken = writable and nearest == self.path and self._holds_something()
        except OSError as error:
            raise self._cannot_write(error.strerror) from error
        if not writable:
            raise self._cannot_write(f"{str(nearest)!r} is no folder that you may write in; give another with --output")
        if taken:
            run = self.run.is_begun
            cure = "; continue with --resume, or give" if run else ", and holds no run to continue; give"
            raise ConfigError(
                f"output folder {str(self.path)!r} is not empty{cure} another with --output", page="output-taken"
            )

    def checkpoint(self, config: RunConfig) -> Path | None:
        """Takes the folder of a run that is resumed; its newest sound checkpoint, or None if there is none.

        Args:
            config: the run that is to go on.

        Raises:
            ConfigError: there is no run, it was begun with other settings, is finished, or is still running.
            CheckpointError: the folder cannot be written.
        """
        begun = self.run.config()
        if begun is None:
            raise ConfigError(f"there is no run in {str(self.path)!r} to resume; start it without --resume")
        said = [name for name in RunConfig.model_fields if name not in ("guard", "parallel")]
        changed = [name for name in said if _of_run(begun, name) != _of_run(config, name)]
        if changed:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with other settings of {', '.join(changed)}; "
                "resume it with its own, or begin another with --output",
                page="run-changed",
            )
        if self.run.is_finished:
            raise ConfigError(f"the run in {str(self.path)!r} is finished; begin another with --output")
        self._claim()
        return newest_sound(self.path, logger.warning)

    def remember(self, limits: Mapping[str, int]) -> None:
        """Adds to `begun.json` what fits into memory at most; whichever process finds it.

        Args:
            limits: `most_at_a_time`, windows, or `widest_tokens`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        self._write(BEGUN_FILE, json.dumps({**self.run.begun(), **limits}, indent=2) + "\n")

    def begin(
        self,
        resolved: Resolved,
        *,
        sampler: str,
        corpus: str,
        windows: int,
        at_a_time: int,
        ends: Sequence[HeldOutEnd] = (),
    ) -> None:
        """Claims the folder for this run, or checks that a resumed run is the one that was begun.

        Args:
            resolved: the run, and why it is as it is.
            sampler: the position sampler as text.
            corpus: fingerprint of the training tokens.
            windows: per optimizer step, over all processes.
            at_a_time: per micro-batch, on each device.
            ends: the held-out ends of documents.

        Raises:
            ConfigError: the run was begun with another sampler, on other documents or with more or fewer windows per
                step, or another run has the folder.
            CheckpointError: the folder cannot be written.
        """
        state, now = _processes(), {"sampler": sampler, "corpus": corpus}
        # Every process has checked that the folder is free before the first one writes into it.
        state.wait_for_everyone()
        self._claim()
        state.wait_for_everyone()
        if begun := self.run.begun():
            self._check_begun(begun, now, windows)
        elif state.is_main_process:
            told = {"reasons": [*resolved.reasons, *resolved.warnings]}
            end = one_or_all([end._asdict() for end in ends])
            begun = {**now, "windows": windows, "at_a_time": at_a_time, "held_out_end": end, **told}
            self._write(SETTINGS_FILE, resolved.config.to_yaml())
            self._write(BEGUN_FILE, json.dumps(begun, indent=2) + "\n")
        state.wait_for_everyone()

    def _check_begun(self, begun: Mapping[str, Any], now: Mapping[str, str], windows: int) -> None:
        if changed := [name for name, value in now.items() if begun.get(name) != value]:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with another {' and '.join(changed)}; "
                "bring that back, or begin another with --output",
                page="run-changed",
            )
        # Runs of earlier versions do not say.
        if (before := begun.get("windows", windows)) != windows:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with {before} windows a step and would continue with "
                f"{windows}: choose training.gradient_accumulation_steps, or per_device_train_batch_size, so that "
                f"over {_processes().num_processes} processes they are {before} again",
                page="run-changed",
            )

    def _claim(self) -> None:
        """Locks the folder for this run, as long as its first process lives."""
        if not _processes().is_main_process or self._lock.is_locked:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            for left in half_written(self.path, _FIRST_FILES):
                left.unlink(missing_ok=True)
        except Timeout as error:
            raise ConfigError(
                f"another run is writing into {str(self.path)!r}: wait until it has ended, or give another folder with "
                "--output",
                page="output-taken",
            ) from error
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def _holds_something(self) -> bool:
        """Whether there is more than the traces of a run that was stopped before it had begun."""
        left = {*_TRACES, *(file.name for file in half_written(self.path, _FIRST_FILES))}
        return any(each.name not in left for each in self.path.iterdir())

    def _write(self, name: str, text: str) -> None:
        try:
            replace_file(self.path / name, text)
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def _cannot_write(self, reason: str | None) -> CheckpointError:
        return CheckpointError(f"output folder {str(self.path)!r} cannot be written: {reason}", page="cannot-write")


def log_file(folder: Path) -> Path | None:
    """The log of this process; None for the first or only one, which logs to the terminal."""
    rank = int(os.environ.get("RANK", "0"))
    return folder / _LOGS / f"rank-{rank}.txt" if rank else None


def _processes() -> "PartialState":
    from accelerate import PartialState

    return PartialState()


def _of_run(config: RunConfig, name: str) -> Any:
    """A setting, as far as it decides what is trained and not on how many processes."""
    value = getattr(config, name)
    if name == "data" and config.data.streaming:
        # A stream may come upon something unreadable at any time.
        return value.model_copy(update={"skip_unreadable": False})
    return {key: each for key, each in value.items() if key not in _SPREAD} if name == "training" else value

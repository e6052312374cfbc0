"""The folder of a run: who may write into it, and where a run goes on from.

run.yaml             the run's settings, as it was begun
begun.json           what the settings do not say: the sampler itself and the corpus it was begun with, why settings
                     are as they are, and how much at a time was found to fit into memory
checkpoint-<step>/   model, optimizer and random state, a few of the newest, each whole and sealed (see durable.py)
skipwise.json        what was done; its presence says that the run is finished
bad-items.json       steps that went wrong, their items, and those that the run does without (see guard.py)
launch/              of a run started by --launch: its settings, and the config of its engine
logs/rank-<n>.txt    of several processes, what all but the first have to say
.lock                held by the run that writes here, gone with its last process; .saving/, a checkpoint being written
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState
from filelock import FileLock, Timeout

from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved
from skipwise.data.corpus import HeldOutEnd
from skipwise.errors import CheckpointError, ConfigError
from skipwise.files import half_written, replace_file
from skipwise.records.runs import BEGUN_FILE, SETTINGS_FILE, Run, held_out_end
from skipwise.train.durable import STAGING, newest_sound

logger = logging.getLogger("skipwise")

_LOCK_FILE = ".lock"
_LOGS = "logs"
LAUNCH = "launch"
# What a run that was stopped before it had begun may leave, beside what it had half written of these two files; the
# last by earlier versions.
_TRACES = {_LOCK_FILE, _LOGS, LAUNCH, BEGUN_FILE, STAGING, "recipe-instead.txt"}
_FIRST_FILES = (SETTINGS_FILE, BEGUN_FILE)


# A run may go on with its windows spread over more processes or fewer; how many make a step is held to in `begin`.
_SPREAD = {"per_device_train_batch_size", "gradient_accumulation_steps"}


class RunFolder:
    """The output folder of a run, which the run lets go of where it leaves the `with`.

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
            # Before it is let go: whoever waits for it opens another.
            (self.path / _LOCK_FILE).unlink(missing_ok=True)
            self._lock.release()

    @property
    def is_to_be_resumed(self) -> bool:
        """Whether an elastic launcher has started this process anew, after a failure of a run that had begun."""
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and self.run.is_begun

    def require_free(self) -> None:
        """Refuses a folder that holds anything; makes none, as the run may yet be refused.

        Raises:
            ConfigError: it does.
            CheckpointError: it cannot be made, or written.
        """
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
            cure = "; go on with --resume, or give" if run else ", and holds no run to go on with; give"
            raise ConfigError(f"output folder {str(self.path)!r} is not empty{cure} another with --output")

    def begun_reasons(self) -> tuple[str, ...]:
        """Why it was resolved so; runs of earlier versions do not say.

        Raises:
            CheckpointError: what it was begun with cannot be read.
        """
        return tuple(self.run.begun().get("reasons", ()))

    def checkpoint(self, config: RunConfig) -> Path | None:
        """The newest checkpoint that is as it was written, to resume from; None where there is none.

        Args:
            config: the run that is to go on.

        Raises:
            ConfigError: there is no run, it was begun with other settings, is finished, or still goes on.
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
                "resume it with its own, or begin another with --output"
            )
        if self.run.is_finished:
            raise ConfigError(f"the run in {str(self.path)!r} is finished; begin another with --output")
        self._claim()
        return newest_sound(self.path, logger.warning)

    def at_a_time(self, now: int) -> int:
        """Windows at a time on each device when the run was begun; of a new run, those of now.

        Raises:
            CheckpointError: what it was begun with cannot be read.
        """
        # Runs of earlier versions do not say.
        return int(self.run.begun().get("at_a_time", now))

    def most_at_a_time(self) -> int | None:
        """How many windows at a time have been found to fit; None where none was found not to.

        Raises:
            CheckpointError: what the run was begun with cannot be read.
        """
        return self.run.begun().get("most_at_a_time")

    def widest_tokens(self) -> int | None:
        """Tokens of the widest window that may fit; None where none was found not to.

        Raises:
            CheckpointError: what the run was begun with cannot be read.
        """
        return self.run.begun().get("widest_tokens")

    def remember(self, less: Mapping[str, int]) -> None:
        """Keeps that no more fits than this: `most_at_a_time`, or `widest_tokens`; whichever process finds it.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            text = json.dumps({**self.run.begun(), **less}, indent=2)
            replace_file(self.path / BEGUN_FILE, text + "\n")
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def begun_held_out_end(self, choose: Callable[[], HeldOutEnd | None]) -> HeldOutEnd | None:
        """The end of a document that the run was begun without; of a new run the one that is chosen.

        Raises:
            CheckpointError: what it was begun with cannot be read.
        """
        return held_out_end(begun) if (begun := self.run.begun()) else choose()

    def begin(
        self,
        resolved: Resolved,
        *,
        sampler: str,
        corpus: str,
        windows: int,
        at_a_time: int,
        end: HeldOutEnd | None = None,
    ) -> None:
        """Claims the folder for this run, or checks that a resumed run is the one that was begun.

        Args:
            resolved: the run, and why it is as it is.
            sampler: the position sampler as text.
            corpus: fingerprint of the training tokens.
            windows: of an optimizer step, over all processes.
            at_a_time: of them, on each device.
            end: of a document that is not among the training tokens.

        Raises:
            ConfigError: the run was begun with another sampler, on other documents or with more or fewer windows a
                step, or another run has the folder.
            CheckpointError: the folder cannot be written.
        """
        state, now = PartialState(), {"sampler": sampler, "corpus": corpus}
        # Every process has looked whether the folder is free before the first of them writes into it.
        state.wait_for_everyone()
        self._claim()
        state.wait_for_everyone()
        if begun := self.run.begun():
            self._check_begun(begun, now, windows)
        elif state.is_main_process:
            told = {"reasons": [*resolved.reasons, *resolved.warnings]}
            begun = {**now, "windows": windows, "at_a_time": at_a_time, "held_out_end": end and end._asdict(), **told}
            try:
                replace_file(self.path / SETTINGS_FILE, resolved.config.to_yaml())
                replace_file(self.path / BEGUN_FILE, json.dumps(begun, indent=2) + "\n")
            except OSError as error:
                raise self._cannot_write(error.strerror) from error
        state.wait_for_everyone()

    def _check_begun(self, begun: Mapping[str, Any], now: Mapping[str, str], windows: int) -> None:
        """Refuses to go on with another sampler, on other documents, or with more or fewer windows a step."""
        if changed := [name for name, value in now.items() if begun.get(name) != value]:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with another {' and '.join(changed)}; "
                "bring that back, or begin another with --output"
            )
        # Runs of earlier versions do not say.
        if (before := begun.get("windows", windows)) != windows:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with {before} windows a step and would go on with "
                f"{windows}: choose training.gradient_accumulation_steps, or per_device_train_batch_size, so that "
                f"over {PartialState().num_processes} processes they are {before} again"
            )

    def _claim(self) -> None:
        """Takes the folder for this run, as long as its first process lives."""
        if not PartialState().is_main_process or self._lock.is_locked:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            for left in half_written(self.path, _FIRST_FILES):
                left.unlink(missing_ok=True)
        except Timeout as error:
            raise ConfigError(
                f"another run is writing into {str(self.path)!r}: wait until it has ended, or give another folder with "
                "--output"
            ) from error
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def _holds_something(self) -> bool:
        """Whether there is more than what a run leaves that was stopped before it had begun."""
        left = {*_TRACES, *(file.name for file in half_written(self.path, _FIRST_FILES))}
        return any(each.name not in left for each in self.path.iterdir())

    def _cannot_write(self, reason: str | None) -> CheckpointError:
        return CheckpointError(f"output folder {str(self.path)!r} cannot be written: {reason}")


def log_file(folder: Path) -> Path | None:
    """Where this process logs; None for the first one, or the only one, which people read."""
    rank = int(os.environ.get("RANK", "0"))
    return folder / _LOGS / f"rank-{rank}.txt" if rank else None


def _of_run(config: RunConfig, name: str) -> Any:
    """A setting, as far as it says what is trained and not on how many machines."""
    value = getattr(config, name)
    if name == "data" and config.data.streaming:
        # A stream may come upon something that cannot be read at any time.
        return value.model_copy(update={"skip_unreadable": False})
    return {key: each for key, each in value.items() if key not in _SPREAD} if name == "training" else value

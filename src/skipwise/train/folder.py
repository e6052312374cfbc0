"""The folder of a run: who may write into it, and where a run goes on from.

run.yaml             the run's settings, as it was begun
begun.json           what the settings do not say: the sampler itself and the corpus it was begun with
checkpoint-<step>/   model, optimizer and random state, a few of the newest, each whole and sealed (see durable.py)
skipwise.json        what was done; its presence says that the run is finished
bad-items.json       steps that went wrong, their items, and those that the run does without (see guard.py)
launch/              of a run started by --launch: its settings, and the config of its engine
logs/rank-<n>.txt    of several processes, what all but the first have to say
recipe-instead.txt   the recipe of a run that names none, where the one that it was begun with had no memory
.lock                held by the run that writes here, gone with its last process; .saving/, a checkpoint being written
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from skipwise.config import RunConfig
from skipwise.config.recipes import AUTO
from skipwise.data.corpus import HeldOutEnd
from skipwise.errors import CheckpointError, ConfigError
from skipwise.files import half_written, replace_file
from skipwise.train.durable import STAGING, newest_sound

logger = logging.getLogger("skipwise")

RECORD_FILE = "skipwise.json"
SETTINGS_FILE = "run.yaml"
BEGUN_FILE = "begun.json"
_COUNTS = ("windows", "at_a_time", "most_at_a_time")
_LOCK_FILE = ".lock"
_INSTEAD_FILE = "recipe-instead.txt"
_LOGS = "logs"
LAUNCH = "launch"
# What a run that was stopped before it had begun may leave, beside what it had half written of these three files.
_TRACES = {_LOCK_FILE, _LOGS, LAUNCH, BEGUN_FILE, _INSTEAD_FILE, STAGING}
_FIRST_FILES = (SETTINGS_FILE, BEGUN_FILE, _INSTEAD_FILE)


# A run may go on with its windows spread over more processes or fewer; how many make a step is held to in `begin`.
_SPREAD = {"per_device_train_batch_size", "gradient_accumulation_steps"}


class RunFolder:
    """The output folder of a run.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.path = config.output_folder
        self._config = config
        self._lock = FileLock(self.path / _LOCK_FILE)

    @property
    def is_to_be_resumed(self) -> bool:
        """Whether an elastic launcher has started this process anew, after a failure of a run that had begun."""
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and (self.path / SETTINGS_FILE).exists()

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
            run = (self.path / SETTINGS_FILE).exists()
            cure = "; go on with --resume, or give" if run else ", and holds no run to go on with; give"
            raise ConfigError(f"output folder {str(self.path)!r} is not empty{cure} another with --output")

    def checkpoint(self) -> Path | None:
        """The newest checkpoint that is as it was written, to resume from; None where there is none.

        Raises:
            ConfigError: there is no run, it was begun with other settings, is finished, or still goes on.
            CheckpointError: the folder cannot be written.
        """
        settings_file = self.path / SETTINGS_FILE
        if not settings_file.exists():
            raise ConfigError(f"there is no run in {str(self.path)!r} to resume; start it without --resume")
        begun = begun_settings(settings_file)
        said = [name for name in RunConfig.model_fields if name not in ("guard", "parallel")]
        changed = [name for name in said if _of_run(begun, name) != _of_run(self._config, name)]
        if changed:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with other settings of {', '.join(changed)}; "
                "resume it with its own, or begin another with --output"
            )
        if (self.path / RECORD_FILE).exists():
            raise ConfigError(f"the run in {str(self.path)!r} is finished; begin another with --output")
        self._claim()
        return newest_sound(self.path, logger.warning)

    def at_a_time(self, now: int) -> int:
        """Windows at a time on each device when the run was begun; of a new run, those of now.

        Raises:
            CheckpointError: what it was begun with cannot be read.
        """
        # Runs of earlier versions do not say.
        return int(self._begun().get("at_a_time", now))

    def most_at_a_time(self) -> int | None:
        """How many windows at a time have been found to fit; None where none was found not to.

        Raises:
            CheckpointError: what the run was begun with cannot be read.
        """
        return self._begun().get("most_at_a_time")

    def remember_most_at_a_time(self, windows: int) -> None:
        """Keeps that no more windows at a time fit; whichever process finds it.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            text = json.dumps({**self._begun(), "most_at_a_time": windows}, indent=2)
            replace_file(self.path / BEGUN_FILE, text + "\n")
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def recipe_instead(self) -> str | None:
        """The recipe that a run which names none was started over with; None where none was."""
        file = self.path / _INSTEAD_FILE
        return file.read_text(encoding="utf-8").strip() if file.exists() else None

    def start_over(self, recipe: str) -> None:
        """Forgets a run that has hardly begun, so that it begins again with another recipe; whichever process asks.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            replace_file(self.path / _INSTEAD_FILE, recipe + "\n")
            for checkpoint in self.path.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
            for file in (SETTINGS_FILE, BEGUN_FILE):
                (self.path / file).unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error.strerror) from error

    def keep_retrieval(self, share: float) -> None:
        """Takes note of the share of exercises, which is none where those of a recipe do not fit."""
        self._config = self._config.with_retrieval(share)

    def begun_held_out_end(self, choose: Callable[[], HeldOutEnd | None]) -> HeldOutEnd | None:
        """The end of a document that the run was begun without; of a new run the one that is chosen.

        Raises:
            CheckpointError: what it was begun with cannot be read.
        """
        return read_held_out_end(begun) if (begun := self._begun()) else choose()

    def begin(
        self, *, sampler: str, corpus: str, windows: int, at_a_time: int, held_out_end: HeldOutEnd | None = None
    ) -> None:
        """Claims the folder for this run, or checks that a resumed run is the one that was begun.

        Args:
            sampler: the position sampler as text.
            corpus: fingerprint of the training tokens.
            windows: of an optimizer step, over all processes.
            at_a_time: of them, on each device.
            held_out_end: end of a document that is not among the training tokens.

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
        if begun := self._begun():
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
                    f"over {state.num_processes} processes they are {before} again"
                )
        elif state.is_main_process:
            try:
                replace_file(self.path / SETTINGS_FILE, self._config.to_yaml())
                end = held_out_end and held_out_end._asdict()
                begun = {**now, "windows": windows, "at_a_time": at_a_time, "held_out_end": end}
                text = json.dumps(begun, indent=2)
                replace_file(self.path / BEGUN_FILE, text + "\n")
            except OSError as error:
                raise self._cannot_write(error.strerror) from error
        state.wait_for_everyone()

    def _begun(self) -> dict[str, Any]:
        """What a run was begun with; nothing where none was."""
        file = self.path / BEGUN_FILE
        try:
            begun = dict(json.loads(file.read_text(encoding="utf-8")))
            if wrong := [name for name in _COUNTS if not isinstance(begun.get(name, 1), int)]:
                raise ValueError(f"{wrong[0]} is {begun[wrong[0]]!r}")
            return begun
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{str(file)!r} cannot be read, and says what the run was begun with ({str(error).splitlines()[0]}); "
                "begin another with --output"
            ) from error

    def release(self) -> None:
        """Lets go of the folder."""
        if self._lock.is_locked:
            # Before it is let go: whoever waits for it opens another.
            (self.path / _LOCK_FILE).unlink(missing_ok=True)
            self._lock.release()

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


def read_held_out_end(begun: Mapping[str, Any]) -> HeldOutEnd | None:
    """The end of a document that a run holds out, by what it was begun with; runs of earlier versions hold out none."""
    end = begun.get("held_out_end")
    return HeldOutEnd(end["store"], end["number"], end["begin"]) if end else None


def begun_settings(file: Path) -> RunConfig:
    """The settings that a run was begun with; of an earlier version, what was done where they do not say.

    Raises:
        ConfigError: they cannot be read.
    """
    begun = RunConfig.from_yaml(file)
    if begun.recipe == AUTO:
        begun = begun.with_recipe("paper")
    if "control_tokens" not in begun.data.model_fields_set:
        begun = begun.with_data(control_tokens="tokens")
    return begun


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

"""The folder of a run: who may write into it, and where a run goes on from.

run.yaml             the run's settings, as it was begun
begun.json           what the settings do not say: the sampler itself and the corpus it was begun with
checkpoint-<step>/   model, optimizer and random state, a few of the newest
skipwise.json        what was done; its presence says that the run is finished
"""

import json
import os
from pathlib import Path

from accelerate import PartialState

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError, ConfigError

RECORD_FILE = "skipwise.json"
SETTINGS_FILE = "run.yaml"
_BEGUN_FILE = "begun.json"
# The Trainer writes this file of a checkpoint last, so a checkpoint that has it is complete.
_LAST_WRITTEN = "trainer_state.json"


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoint folders of a run by their step; one that is half written is none."""
    files = folder.glob(f"checkpoint-*/{_LAST_WRITTEN}")
    return {step_of(file.parent): file.parent for file in files}


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])


class RunFolder:
    """The output folder of a run.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.path = config.output_folder
        self._config = config

    def require_free(self) -> None:
        """Refuses a folder that holds anything; makes none, as the run may yet be refused.

        Raises:
            ConfigError: it does.
            CheckpointError: it cannot be made, or written.
        """
        try:
            nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
            taken = writable and nearest == self.path and any(self.path.iterdir())
        except OSError as error:
            raise self._cannot_write(error.strerror) from error
        if not writable:
            raise self._cannot_write(f"{str(nearest)!r} is no folder that you may write in; give another with --output")
        if taken:
            raise ConfigError(
                f"output folder {str(self.path)!r} is not empty; go on with --resume, or give another with --output"
            )

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from; None where the run was stopped before its first.

        Raises:
            ConfigError: there is no run, it was begun with other settings, or it is finished.
        """
        settings_file = self.path / SETTINGS_FILE
        if not settings_file.exists():
            raise ConfigError(f"there is no run in {str(self.path)!r} to resume; start it without --resume")
        begun = RunConfig.from_yaml(settings_file)
        changed = [name for name in RunConfig.model_fields if getattr(begun, name) != getattr(self._config, name)]
        if changed:
            raise ConfigError(
                f"the run in {str(self.path)!r} was begun with other settings of {', '.join(changed)}; "
                "resume it with its own, or begin another with --output"
            )
        if (self.path / RECORD_FILE).exists():
            raise ConfigError(f"the run in {str(self.path)!r} is finished; begin another with --output")
        complete = complete_checkpoints(self.path)
        return complete[max(complete)] if complete else None

    def begin(self, *, sampler: str, corpus: str) -> None:
        """Claims the folder for this run, or checks that a resumed run is the one that was begun.

        Args:
            sampler: the position sampler as text.
            corpus: fingerprint of the training tokens.

        Raises:
            ConfigError: the run was begun with another sampler or on other documents.
            CheckpointError: the folder cannot be written.
        """
        state, now = PartialState(), {"sampler": sampler, "corpus": corpus}
        # Every process has looked whether the folder is free before the first of them writes into it.
        state.wait_for_everyone()
        begun_file = self.path / _BEGUN_FILE
        if begun_file.exists():
            begun = json.loads(begun_file.read_text(encoding="utf-8"))
            if changed := [name for name, value in now.items() if begun[name] != value]:
                raise ConfigError(
                    f"the run in {str(self.path)!r} was begun with another {' and '.join(changed)}; "
                    "bring that back, or begin another with --output"
                )
        elif state.is_main_process:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                begun_file.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
                (self.path / SETTINGS_FILE).write_text(self._config.to_yaml(), encoding="utf-8")
            except OSError as error:
                raise self._cannot_write(error.strerror) from error
        state.wait_for_everyone()

    def _cannot_write(self, reason: str | None) -> CheckpointError:
        return CheckpointError(f"output folder {str(self.path)!r} cannot be written: {reason}")

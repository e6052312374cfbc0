"""What a run of `extend` leaves on disk beside its model, read here alone.

run.yaml        its settings, as they were resolved when it was begun
begun.json      what these do not say: the sampler itself and its documents, why settings are as they are, and how
                much at a time was found to fit into memory
skipwise.json   what was done; its presence says that the run is finished
adapter/        what was trained, where that are low-rank additions
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from skipwise.config import RunConfig
from skipwise.config.recipes import AUTO
from skipwise.data.store import HeldOutEnd
from skipwise.errors import CheckpointError

SETTINGS_FILE, BEGUN_FILE, RECORD_FILE, ADAPTER = "run.yaml", "begun.json", "skipwise.json", "adapter"

_COUNTS = ("windows", "at_a_time", "most_at_a_time", "widest_tokens")


@dataclass(frozen=True, slots=True)
class Run:
    """A folder that a run may have left something in.

    Attributes:
        folder: where.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The run in a folder; what it left is read when it is asked for."""
        return cls(Path(folder))

    @property
    def is_begun(self) -> bool:
        """Whether a run was begun here."""
        return (self.folder / SETTINGS_FILE).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / RECORD_FILE).is_file()

    @property
    def adapter(self) -> Path | None:
        """The folder of its low-rank additions; None where there are none."""
        return self.folder / ADAPTER if (self.folder / ADAPTER).is_dir() else None

    def config(self) -> RunConfig | None:
        """The run as it was resolved when it was begun; of an earlier version, what was done where it does not say.

        Raises:
            ConfigError: it cannot be read.
        """
        if not self.is_begun:
            return None
        begun = RunConfig.from_yaml(self.folder / SETTINGS_FILE)
        if begun.recipe == AUTO:
            begun = begun.over({"recipe": "paper"})
        if "control_tokens" not in begun.data.model_fields_set:
            begun = begun.with_data(control_tokens="tokens")
        return begun

    def begun(self) -> dict[str, Any]:
        """What its settings do not say; nothing where none was begun.

        Raises:
            CheckpointError: it cannot be read.
        """
        file = self.folder / BEGUN_FILE
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

    def record(self) -> dict[str, Any] | None:
        """What was done; None where it is not finished.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not self.is_finished:
            return None
        file = self.folder / RECORD_FILE
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"record {str(file)!r} cannot be read ({error!r}); copy the run again") from error


def held_out_end(told: Mapping[str, Any]) -> HeldOutEnd | None:
    """The end of a document that a run holds out, by what it was begun with, or the `corpus` of its record.

    Runs of earlier versions hold out none.
    """
    end = told.get("held_out_end")
    return HeldOutEnd(end["store"], end["number"], end["begin"]) if end else None

"""The files that a run of `extend` leaves beside its model, all read here.

run.yaml        its settings, as they were resolved at the start
begun.json      what else was decided at the start: the sampler and its documents, reasons for settings, and the batch
                size that fits into memory
skipwise.json   the record of the finished run; absent until then
adapter/        the adapter, if one was trained
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from skipwise.config import RunConfig
from skipwise.config.recipes import AUTO
from skipwise.data.store import HeldOutEnd
from skipwise.errors import CheckpointError
from skipwise.names import first_line

SETTINGS_FILE, BEGUN_FILE, RECORD_FILE, ADAPTER = "run.yaml", "begun.json", "skipwise.json", "adapter"

_COUNTS = ("windows", "at_a_time", "most_at_a_time", "widest_tokens")


@dataclass(frozen=True, slots=True)
class Run:
    """The output folder of a run, which may be unfinished or not begun."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The run in a folder; nothing is read yet."""
        return cls(Path(folder))

    @property
    def is_begun(self) -> bool:
        """Whether a run was started here."""
        return (self.folder / SETTINGS_FILE).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it is complete."""
        return (self.folder / RECORD_FILE).is_file()

    @property
    def adapter(self) -> Path | None:
        """The folder of its adapter; None if there is none."""
        return self.folder / ADAPTER if (self.folder / ADAPTER).is_dir() else None

    def config(self) -> RunConfig | None:
        """Its settings, with the defaults of its own version for those that earlier versions did not store.

        Raises:
            ConfigError: they cannot be read.
        """
        if not self.is_begun:
            return None
        begun = RunConfig.from_yaml(self.folder / SETTINGS_FILE)
        if begun.recipe == AUTO:
            begun = begun.over({"recipe": "paper"})
        if "control_tokens" not in begun.data.model_fields_set:
            begun = begun.with_data(control_tokens="tokens")
        if "format" not in begun.data.model_fields_set:
            begun = begun.with_data(format="text")
        return begun

    def begun(self) -> dict[str, Any]:
        """What else was decided at the start; empty if no run was started.

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
                f"{str(file)!r}, which a run needs to be resumed, cannot be read ({first_line(error)}); start "
                "another run with --output"
            ) from error

    def record(self) -> dict[str, Any] | None:
        """The record of the finished run; None before.

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


def held_out_ends(told: Mapping[str, Any]) -> list[HeldOutEnd]:
    """The ends of documents that a run holds out, from `Run.begun` or the `corpus` of its record.

    A single one stands there by itself. Earlier versions held out whole documents only.
    """
    ends = told.get("held_out_end") or []
    ends = [ends] if isinstance(ends, dict) else ends
    return [HeldOutEnd(end["store"], end["number"], end["begin"]) for end in ends]


def one_or_all(ends: Sequence[dict[str, Any]]) -> Any:
    """What `held_out_ends` reads: None, the only one, or all."""
    return [*ends] if len(ends) > 1 else ends[0] if ends else None

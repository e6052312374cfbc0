"""What an unfinished pilot keeps in its folder: its schedule, and how much time it has used."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipwise.errors import ConfigError
from skipwise.files import replace_file

STATE_FILE, SUITES = "schedule.json", "questions"
BESIDE = (STATE_FILE, SUITES)
"""Names of the pilot's own in the folder of its comparison."""


class PilotFolder:
    """The folder of a pilot.

    Args:
        path: of the folder.
        began: when this process began, as `time.time()`.
    """

    def __init__(self, path: Path, began: float) -> None:
        self.path, self._began = path, began
        self.kept: dict[str, Any] = {}
        self._used_before = 0.0

    def claim(self, asked: Mapping[str, Any]) -> None:
        """Takes the folder, or goes on with the pilot that was begun in it.

        Raises:
            ConfigError: it holds something else, or a pilot with other settings.
        """
        check_folder(self.path, asked)
        file = self.path / STATE_FILE
        if not file.is_file():
            # Nothing is written before there is a schedule: a time that is too short leaves nothing behind.
            self.kept = {"asked": dict(asked), "began": self._began, "used_before": 0.0}
            return
        self.kept = json.loads(file.read_text(encoding="utf-8"))
        # Samples and checkpoints were written to the end; while nothing ran, no time passed.
        last = max(found.stat().st_mtime for found in self.path.rglob("*") if found.is_file())
        self._used_before = self.kept["used_before"] + max(0.0, last - self.kept["began"])
        if not self.kept.get("finished"):
            self.keep(began=self._began, used_before=self._used_before)

    @property
    def used(self) -> float:
        """Seconds that the pilot has taken, in all processes."""
        return self._used_before + time.time() - self._began

    def keep(self, **values: Any) -> None:
        """Adds to what is kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.kept |= values
        replace_file(self.path / STATE_FILE, json.dumps(self.kept, indent=2, default=str) + "\n")


def check_folder(path: Path, asked: Mapping[str, Any] | None = None) -> None:
    """Refuses a folder that is taken.

    Raises:
        ConfigError: it holds something else than this pilot.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output is {str(path)!r}, a file; give a folder")
    file = path / STATE_FILE
    if not file.is_file():
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"folder {str(path)!r} is not empty, and holds no pilot; give another with --output",
                page="output-taken",
            )
        return
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))["asked"]
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read ({error}); give another folder with --output") from error
    if asked is not None:
        wanted = json.loads(json.dumps(asked, default=str))
        changed = [name for name in wanted if begun.get(name) != wanted[name]]
        if changed:
            names = {name: f"the {name}" for name in wanted} | {"run": "the run's settings", "seconds": "the time"}
            raise ConfigError(
                f"the pilot in {str(path)!r} was begun with another setting of {', '.join(names[c] for c in changed)}; "
                "continue it with its own, or begin another with --output",
                page="run-changed",
            )

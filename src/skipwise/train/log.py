"""The log of a run: a file with a line for each entry, written once.

The Trainer keeps its log in memory and writes all of it with every checkpoint, which over a run grows with the square
of its steps. Here its state has the newest entries alone, and a checkpoint says how many bytes the file had by then. A
resumed run cuts off what came after, so that no entry is there twice.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from skipwise.errors import CheckpointError
from skipwise.files import to_disk

logger = logging.getLogger("skipwise")

LOG_FILE = "log.jsonl"
# In a checkpoint.
_REACH_FILE = "log.json"
# Entries that the Trainer's state keeps: many times what the guard compares a loss with.
_KEPT = 500


class RunLog(TrainerCallback):
    """The file of a run's log, which the first process writes and reads.

    Args:
        folder: of the run.
        checkpoint: that the run goes on from; None for the beginning.
    """

    def __init__(self, folder: Path, checkpoint: Path | None) -> None:
        self.path, self._checkpoint = folder / LOG_FILE, checkpoint
        self._writes = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Goes back to what the file was at the checkpoint.

        Raises:
            CheckpointError: the file cannot be written.
        """
        self._writes = state.is_world_process_zero
        if self._writes:
            reach, written = self._reach(), self.path.stat().st_size if self.path.exists() else 0
            if reach is None:
                self._write(*state.log_history, after=0)
            elif reach <= written:
                self._write(after=reach)
            else:
                kept = state.log_history
                logger.warning(f"{str(self.path)!r} has lost entries; the newest {len(kept):,} are in the checkpoint")
                self._write(*kept, after=0)
        del state.log_history[:-_KEPT]

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Appends the newest entry.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._writes:
            self._write(state.log_history[-1])
        del state.log_history[:-_KEPT]

    def save(self, checkpoint: Path) -> None:
        """Writes into a checkpoint how far the file reaches, once that is on the disk; in the first process."""
        if self._writes:
            to_disk(self.path)
            (checkpoint / _REACH_FILE).write_text(json.dumps({"bytes": self.path.stat().st_size}), encoding="utf-8")

    def entries(self) -> list[dict[str, Any]]:
        """All entries, ready for JSON; none in other processes than the first."""
        if not self._writes:
            return []
        with self.path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _reach(self) -> int | None:
        """Bytes of the file at the checkpoint; None for one of an earlier version, whose state has the whole log."""
        if self._checkpoint is None:
            return 0
        file = self._checkpoint / _REACH_FILE
        return json.loads(file.read_text(encoding="utf-8"))["bytes"] if file.exists() else None

    def _write(self, *entries: dict[str, Any], after: int | None = None) -> None:
        """Appends entries at the end, or after so many bytes."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                if after is not None:
                    file.truncate(after)
                file.writelines(json.dumps(_finite(entry), default=str) + "\n" for entry in entries)
        except OSError as error:
            raise CheckpointError(
                f"{str(self.path)!r} cannot be written: {error.strerror}", page="cannot-write"
            ) from error


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with None for what is not finite (the gradient norm of a skipped step), which JSON cannot say."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }

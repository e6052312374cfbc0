"""Checkpoints that survive crashes: written to the side, sealed with sizes and hashes, renamed, verified on load.

A folder `checkpoint-<step>` is complete whenever it exists: until its last byte is on disk it is named
`.saving/checkpoint-<step>`. Its seal reveals later damage.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from skipwise.errors import CheckpointError
from skipwise.files import replace_file, to_disk

if TYPE_CHECKING:
    from accelerate import PartialState

SEAL_FILE = "seal.json"
STAGING = ".saving"
OPTIMIZER_SHARDS = "optimizer"
"""Folder of a checkpoint with the optimizer's state, a part of each process, if the model is split by FSDP2."""

# What libraries raise if a file cannot be written; the last two wrap the system's error.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])


def sealed_checkpoints(folder: Path) -> dict[int, Path]:
    """The complete checkpoint folders of a run by step, in ascending order."""
    found = {step_of(file.parent): file.parent for file in folder.glob(f"checkpoint-*/{SEAL_FILE}")}
    return dict(sorted(found.items()))


def newest_sound(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint of a run; None if there is none. The first process decides for all.

    Args:
        folder: the run's output folder.
        warn: called with a message for each damaged checkpoint.
    """
    from accelerate import PartialState

    state, found = PartialState(), [None]
    if state.is_main_process:
        for checkpoint in reversed(sealed_checkpoints(folder).values()):
            if (reason := damage(checkpoint)) is None:
                found = [checkpoint]
                break
            warn(f"{checkpoint.name} is damaged ({reason}) and skipped; the one before it is used")
    if state.num_processes > 1:
        from torch.distributed import broadcast_object_list

        broadcast_object_list(found, src=0)
    return found[0]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a sealed checkpoint, by the sizes and then the hashes of its files; None if it is sound."""
    try:
        seal: dict[str, dict[str, object]] = json.loads((checkpoint / SEAL_FILE).read_text(encoding="utf-8"))
        sizes = {name: (checkpoint / name).stat().st_size for name in seal if (checkpoint / name).exists()}
        for name, kept in seal.items():
            if sizes.get(name) != kept["bytes"]:
                return f"{name} has {sizes[name]} bytes of {kept['bytes']}" if name in sizes else f"{name} is missing"
        for name, kept in seal.items():
            if _sha256(checkpoint / name) != kept["sha256"]:
                return f"the bytes of {name} have changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL_FILE} cannot be read: {error}"
    return None


@contextmanager
def whole_or_not_at_all(run_folder: Path, step: int) -> Iterator[Path]:
    """Context in which all processes write a checkpoint into the yielded folder; then it is sealed and renamed.

    Raises:
        CheckpointError: it cannot be written, as on a full disk. Older checkpoints stay as they are.
    """
    import torch
    from accelerate import PartialState

    state, name = PartialState(), f"checkpoint-{step}"
    staged, final = run_folder / STAGING / name, run_folder / name
    try:
        if state.is_main_process:
            shutil.rmtree(staged.parent, ignore_errors=True)
            staged.mkdir(parents=True)
        state.wait_for_everyone()
        yield staged
        state.wait_for_everyone()
        _seal(staged, state)
        if state.is_main_process:
            # One of the same step is there if it was damaged.
            shutil.rmtree(final, ignore_errors=True)
            staged.rename(final)
            staged.parent.rmdir()
            to_disk(run_folder)
        state.wait_for_everyone()
    except _WRITE_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if state.is_main_process:
            shutil.rmtree(staged.parent, ignore_errors=True)
        older = sealed_checkpoints(run_folder)
        kept = f"{older[max(older)].name} is complete; continue with --resume" if older else "there is none before it"
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {str(run_folder)!r}: {reason}. Make room or repair "
            f"the disk; {kept}",
            page="cannot-write",
        ) from error


def forget_older(run_folder: Path, written: int, limit: int | None, keep: Path | None = None) -> None:
    """Keeps the `limit` newest checkpoints up to `written`, and deletes all others.

    Later ones are deleted too: they are damaged, since the run did not go on from them.

    Args:
        run_folder: of the run.
        written: step of the checkpoint just written.
        limit: how many are kept; None or 0 for all.
        keep: one that is kept whatever its age.
    """
    if not limit:
        return
    found = sealed_checkpoints(run_folder)
    kept = sorted(step for step in found if step <= written)[-limit:]
    for step, checkpoint in found.items():
        if step not in kept and checkpoint != keep:
            # Its seal first, so that a half-deleted one does not count.
            (checkpoint / SEAL_FILE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint, ignore_errors=True)


def _seal(folder: Path, state: "PartialState") -> None:
    """Writes sizes and hashes of all files, and flushes them to disk; processes divide the files among them."""
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    own = []
    for name in files[state.process_index :: state.num_processes]:
        to_disk(folder / name)
        own.append((name, {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}))
    entries = own
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        entries = gather_object(own)
    if state.is_main_process:
        replace_file(folder / SEAL_FILE, json.dumps(dict(sorted(entries)), indent=2) + "\n")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""Calibration of an extended model in its folder: on which documents, and writing the chosen attention factor."""

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from skipwise.calibrate import Calibration, calibrate
from skipwise.config import DataConfig
from skipwise.data.corpus import Corpus
from skipwise.errors import CheckpointError, SkipwiseError
from skipwise.evals import SampleCache
from skipwise.files import new_folder, replace_file
from skipwise.model import rope_state, save_attention_scale
from skipwise.records.runs import RECORD_FILE
from skipwise.report.model_card import state_attention_factor

CALIBRATION_FILE = "calibration.json"
"""The record of a calibration in a folder without a run's record, which has it as an entry."""

# Documents that the calibration chooses a few from.
_OFFERED = 64

logger = logging.getLogger("skipwise")


def calibration_documents(corpus: Corpus, target: int) -> list[np.ndarray]:
    """Documents to calibrate on: from the training split, so that evaluations read none of them.

    If a run holds nothing out, the default share is left to evaluations all the same.

    Args:
        corpus: the run's documents.
        target: minimum length of each, in tokens; if no document is as long, short ones are joined.

    Returns:
        Token ids of each, 1-D.

    Raises:
        DataError: there are none, even joined.
    """
    held_out = corpus.data.held_out or DataConfig().held_out
    return corpus.with_held_out(held_out).long_documents("train", _OFFERED, min_tokens=target, spread=True)


def calibrate_run(
    model: Any, tokenizer: Any, documents: Sequence[np.ndarray], folder: Path, *, seed: int, progress: bool
) -> tuple[dict[str, Any], str]:
    """Calibrates a run whose model is saved already: writes the chosen factor into the config in its folder.

    Every process of a parallel run calls this. If the calibration fails, even for lack of memory at the target, the
    model stays as it was trained and saved.

    Returns:
        The entry for the run's record, and a line for the model card.
    """
    began = time.monotonic()
    try:
        found = calibrate(model, tokenizer, documents, seed=seed, cache=SampleCache(), progress=progress)
    except (SkipwiseError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())
        logger.warning(f"calibration was left out, and the model is as it was trained: {reason}")
        return {"left_out": reason}, "as trained; its calibration failed, see skipwise.json"
    logger.info(f"attention factor {found.line}")
    if PartialState().is_main_process and _changes(found, model.config):
        save_attention_scale(folder, model.config, found.scale)
    return {**found.to_json(), "seconds": round(time.monotonic() - began, 1)}, found.line


def write_calibration(folder: Path, config: Any, found: Calibration, *, output: Path | None = None) -> Path:
    """Writes a calibration's choice into a checkpoint folder: its config, its record and its model card.

    The config comes first and is replaced atomically, since it alone decides what readers compute; the old one is kept
    beside it. It stays as it is if it has the chosen factor already. A copy is complete when it appears.

    Args:
        folder: the checkpoint.
        config: of its model, from `read_config`.
        found: what was chosen.
        output: a new folder for a copy with the choice; None changes the checkpoint itself.

    Returns:
        The folder that was written.

    Raises:
        CheckpointError: it cannot be written.
    """
    changes = _changes(found, config)
    if output is None:
        if changes:
            save_attention_scale(folder, config, found.scale, keep=True)
        _record(folder, found)
        return folder
    try:
        with new_folder(output) as copy:
            # The checkpoint's own files, without the folders that a run left beside them.
            for file in sorted(path for path in folder.iterdir() if path.is_file()):
                shutil.copy2(file, copy)
            if changes:
                save_attention_scale(copy, config, found.scale)
            _record(copy, found)
    except OSError as error:
        raise CheckpointError(
            f"{str(output)!r} cannot be written ({error}); choose another folder", page="cannot-write"
        ) from error
    return output


def _changes(found: Calibration, config: Any) -> bool:
    """Whether the chosen factor differs from the config's."""
    return not math.isclose(found.scale, rope_state(config).attention_scale)


def _record(folder: Path, found: Calibration) -> None:
    record_file = folder / RECORD_FILE
    try:
        if not record_file.is_file():
            replace_file(folder / CALIBRATION_FILE, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
            return
        record = json.loads(record_file.read_text(encoding="utf-8"))
        record["calibration"] = found.to_json()
        replace_file(record_file, json.dumps(record, indent=2, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the config has the factor, but the record of the choice in {str(folder)!r} cannot be written ({error}); "
            "fix that and calibrate with --again",
            page="cannot-write",
        ) from error
    state_attention_factor(folder, found.line)

"""Documents and runs of a few steps, for the tests of training and comparing."""

from pathlib import Path
from typing import Any

import numpy as np

from skipwise.config import RunConfig
from skipwise.train import ExtendResult, extend

TARGET, STEPS = 256, 4


def run(
    settings: dict[str, Any],
    *,
    resume: bool = False,
    skip_bad_items: bool = False,
    own_sampler: Any = None,
    **changes: Any,
) -> ExtendResult:
    """Extends with some settings changed; `training`, `data` and `validation` are changed entry by entry."""
    merged = dict(settings)
    for name, value in changes.items():
        merged[name] = {**settings[name], **value} if name in ("training", "data", "validation") else value
    run_config = RunConfig.from_mapping(merged)
    return extend(run_config, resume=resume, skip_bad_items=skip_bad_items, sampler=own_sampler)


def write_documents(folder: Path) -> Path:
    """Writes 24 texts of 120 words, of about 570 bytes each, drawn from 13 words."""
    words = ["the", "river", "is", "wide", "and", "low", "hills", "roll", "on", "there", "and", "home", "again"]
    rng = np.random.default_rng(0)
    for i in range(24):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, size=120)))
    return folder

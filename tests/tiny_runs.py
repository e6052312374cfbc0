"""Runs of a few steps, for the tests of training."""

from typing import Any

from skipwise.config import RunConfig
from skipwise.train import ExtendResult, extend

TARGET, STEPS = 256, 4


def run(settings: dict[str, Any], *, resume: bool = False, own_sampler: Any = None, **changes: Any) -> ExtendResult:
    """Extends with some settings changed; `training`, `data` and `validation` are changed entry by entry."""
    merged = dict(settings)
    for name, value in changes.items():
        merged[name] = {**settings[name], **value} if name in ("training", "data", "validation") else value
    return extend(RunConfig.from_mapping(merged), resume=resume, sampler=own_sampler)

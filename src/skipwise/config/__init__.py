"""What a run is: strict settings, read from YAML and flags, and recipes, which name settings that belong together."""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.config.reading import merge_settings, read_settings
    from skipwise.config.run import (
        DataConfig,
        FullTuning,
        GrowthConfig,
        GuardConfig,
        Length,
        LoraTuning,
        LowRankTuning,
        ParallelConfig,
        QloraTuning,
        RunConfig,
        StrictModel,
        Tuning,
        ValidationConfig,
    )

_HOMES = {
    "DataConfig": "run",
    "FullTuning": "run",
    "GrowthConfig": "run",
    "GuardConfig": "run",
    "Length": "run",
    "LoraTuning": "run",
    "LowRankTuning": "run",
    "ParallelConfig": "run",
    "QloraTuning": "run",
    "RunConfig": "run",
    "StrictModel": "run",
    "Tuning": "run",
    "ValidationConfig": "run",
    "merge_settings": "reading",
    "read_settings": "reading",
}

__all__ = [
    "DataConfig",
    "FullTuning",
    "GrowthConfig",
    "GuardConfig",
    "Length",
    "LoraTuning",
    "LowRankTuning",
    "ParallelConfig",
    "QloraTuning",
    "RunConfig",
    "StrictModel",
    "Tuning",
    "ValidationConfig",
    "merge_settings",
    "read_settings",
]

__getattr__ = lazily(__name__, _HOMES)

"""Settings of a run, read from YAML and flags, and recipes: named sets of settings."""

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
        LossConfig,
        LowRankTuning,
        ParallelConfig,
        QloraTuning,
        RunConfig,
        SourceConfig,
        StrictModel,
        Tuning,
        ValidationConfig,
    )

__all__ = [
    "DataConfig",
    "FullTuning",
    "GrowthConfig",
    "GuardConfig",
    "Length",
    "LoraTuning",
    "LossConfig",
    "LowRankTuning",
    "ParallelConfig",
    "QloraTuning",
    "RunConfig",
    "SourceConfig",
    "StrictModel",
    "Tuning",
    "ValidationConfig",
    "merge_settings",
    "read_settings",
]

_HOMES = {name: "reading" if name in ("merge_settings", "read_settings") else "run" for name in __all__}

__getattr__ = lazily(__name__, _HOMES)

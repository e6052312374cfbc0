"""What a run is: strict settings, read from YAML and flags, and recipes, which name settings that belong together."""

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

"""What a run is: strict settings, read from YAML and flags, and recipes, which name settings that belong together.

Names load on first use, so that the recipes can be had without the settings' own imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipwise.config.reading import merge_settings, read_settings
    from skipwise.config.run import (
        DataConfig,
        FullTuning,
        GuardConfig,
        Length,
        LoraTuning,
        QloraTuning,
        RunConfig,
        StrictModel,
        Tuning,
    )

__all__ = [
    "DataConfig",
    "FullTuning",
    "GuardConfig",
    "Length",
    "LoraTuning",
    "QloraTuning",
    "RunConfig",
    "StrictModel",
    "Tuning",
    "merge_settings",
    "read_settings",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "reading" if name.endswith("settings") else "run"
    return getattr(import_module(f"{__name__}.{home}"), name)

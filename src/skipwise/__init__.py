"""Longer context windows for RoPE language models at the training cost of short ones.

    from skipwise import PoSE, Window, coverage
    share = coverage(PoSE(), Window(train=2048, original=4096, target=32768))

Names load on first use: `import skipwise` imports neither torch nor transformers, and not even numpy.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from skipwise import errors
from skipwise.imports import lazily
from skipwise.window import Window

if TYPE_CHECKING:
    from skipwise.calibrate import calibrate
    from skipwise.config import RunConfig
    from skipwise.coverage import coverage
    from skipwise.doctor import doctor
    from skipwise.evals import evaluate
    from skipwise.inference.modes import TwoModes
    from skipwise.model import load_model, save_model
    from skipwise.pilot import pilot
    from skipwise.plan import plan
    from skipwise.positions import SAMPLERS, PoSE, PositionSample
    from skipwise.rope import INTERPOLATIONS, RopeSpec, RopeTable
    from skipwise.train import extend

__version__ = "0.1.0"

__all__ = [
    "INTERPOLATIONS",
    "SAMPLERS",
    "PoSE",
    "PositionSample",
    "RopeSpec",
    "RopeTable",
    "RunConfig",
    "TwoModes",
    "Window",
    "__version__",
    "calibrate",
    "coverage",
    "doctor",
    "errors",
    "evaluate",
    "extend",
    "load_model",
    "pilot",
    "plan",
    "save_model",
]

# Where each name that loads on first use is defined.
_HOMES = {
    "INTERPOLATIONS": "rope",
    "PoSE": "positions",
    "PositionSample": "positions",
    "RopeSpec": "rope",
    "RopeTable": "rope",
    "RunConfig": "config",
    "SAMPLERS": "positions",
    "TwoModes": "inference.modes",
    "calibrate": "calibrate",
    "coverage": "coverage",
    "doctor": "doctor",
    "evaluate": "evals",
    "extend": "train",
    "load_model": "model",
    "pilot": "pilot",
    "plan": "plan",
    "save_model": "model",
}


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps a public function from being hidden by the submodule of the same name.

    Importing the submodule `skipwise.coverage`, from anywhere, makes Python bind `coverage` on the package to the
    module. The public name `skipwise.coverage` is always the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

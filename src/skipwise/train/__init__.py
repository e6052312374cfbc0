"""Extending a model by training; `extending.py` tells it from top to bottom. Names load on first use."""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.train.arguments import training_arguments
    from skipwise.train.checks import check_run
    from skipwise.train.delivery import ExtendResult
    from skipwise.train.extending import begin_or_go_on, extend

_HOMES = {
    "ExtendResult": "delivery",
    "begin_or_go_on": "extending",
    "check_run": "checks",
    "extend": "extending",
    "training_arguments": "arguments",
}

__all__ = ["ExtendResult", "begin_or_go_on", "check_run", "extend", "training_arguments"]

__getattr__ = lazily(__name__, _HOMES)

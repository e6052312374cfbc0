"""Checks of tasks' settings that are no whole numbers."""

import math
from collections.abc import Sequence
from typing import Any

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean


def check_numbers(task: Any, *names: str) -> None:
    """Raises ConfigError when one of these settings is not a finite number."""
    for name in names:
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{task.name}.{name} is {value!r}; give a number")


def check_switches(task: Any, *names: str) -> None:
    """Raises ConfigError when one of these settings is neither true nor false."""
    for name in names:
        if not isinstance(value := getattr(task, name), bool):
            raise ConfigError(f"{task.name}.{name} is {value!r}; give true or false")


def check_choice(task: Any, name: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError when a setting is none of those allowed."""
    if (value := getattr(task, name)) not in allowed:
        raise ConfigError(
            f"{task.name}.{name} is {value!r}; {did_you_mean(value, allowed)}allowed are {', '.join(allowed)}"
        )


def check_text(task: Any, name: str, what: str) -> None:
    """Raises ConfigError when a setting is not text, or is empty; `what` says what to give."""
    value = getattr(task, name)
    if not isinstance(value, str) or not value:
        said = "not set" if value == "" else repr(value)
        raise ConfigError(f"{task.name}.{name} is {said}; give {what}")

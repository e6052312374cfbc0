"""Builds an interpolation from the settings of a run's YAML or the command line."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean
from skipwise.rope.interpolations import INTERPOLATIONS, Interpolation


def interpolation_from(settings: str | Mapping[str, Any]) -> Interpolation:
    """Builds an interpolation from its settings.

    Args:
        settings: a kind (`"yarn"`), or a mapping of `kind` and its fields (`{"kind": "yarn", "beta_fast": 16}`).
            Fields left out have their defaults.

    Raises:
        ConfigError: an unknown kind or field, with the nearest known name; or a value of the wrong type or out of
            range.
    """
    fields = {"kind": settings} if isinstance(settings, str) else dict(settings)
    kind = fields.pop("kind", None)
    if kind not in list(INTERPOLATIONS):
        raise ConfigError(
            f"interpolation kind is {kind!r}; {did_you_mean(kind, INTERPOLATIONS)}allowed: {', '.join(INTERPOLATIONS)}"
        )
    interpolation_class: Any = INTERPOLATIONS[kind]
    known = {field.name: field.type for field in dataclasses.fields(interpolation_class)}
    for name, value in fields.items():
        if name not in known:
            allowed = f"allowed: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"interpolation {kind!r} has no field {name!r}; {did_you_mean(name, known)}{allowed}")
        kinds = typing.get_args(known[name]) or (known[name],)
        if not any(_KINDS[one].holds(value) for one in kinds):
            allowed = " or ".join(_KINDS[one].words for one in kinds)
            raise ConfigError(f"interpolation.{name} is {value!r}; it must be {allowed}")
    return interpolation_class(**fields)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Kind(NamedTuple):
    """A type of value: its description in messages, and a check for it."""

    words: str
    holds: Callable[[Any], bool]


# By the type annotations of the interpolations' fields.
_KINDS: dict[Any, _Kind] = {
    bool: _Kind("true or false", lambda value: isinstance(value, bool)),
    float: _Kind("a number", _is_number),
    tuple[float, ...]: _Kind(
        "a list of numbers", lambda value: isinstance(value, list | tuple) and all(map(_is_number, value))
    ),
    types.NoneType: _Kind("null", lambda value: value is None),
}

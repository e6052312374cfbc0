"""From what people write in a run's YAML or on the command line to an interpolation."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from skipwise.errors import ConfigError
from skipwise.rope.interpolations import INTERPOLATIONS, Interpolation


def interpolation_from(settings: str | Mapping[str, Any]) -> Interpolation:
    """Builds an interpolation from its settings.

    Args:
        settings: a kind (`"yarn"`), or a mapping of `kind` and its fields (`{"kind": "yarn", "beta_fast": 16}`).

    Returns:
        The interpolation; fields left out have their defaults.

    Raises:
        ConfigError: on a kind or field that does not exist, with the nearest name, and on a value out of range.
    """
    fields = {"kind": settings} if isinstance(settings, str) else dict(settings)
    kind = fields.pop("kind", None)
    if kind not in INTERPOLATIONS:
        raise ConfigError(f"interpolation kind is {kind!r}; {_allowed(str(kind), INTERPOLATIONS)}")
    interpolation_class: Any = INTERPOLATIONS[kind]
    known = [field.name for field in dataclasses.fields(interpolation_class)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"interpolation {kind!r} has no field {name!r}; {_allowed(name, known)}")
    try:
        return interpolation_class(**fields)
    except TypeError as error:
        # A string where a number belongs fails in the range check's comparison.
        raise ConfigError(f"interpolation {kind!r} was given {fields}; its fields are numbers: {error}") from error


def _allowed(given: str, names: Iterable[str]) -> str:
    names = list(names)
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    choice = f"allowed: {', '.join(names)}" if names else "it takes none"
    return f"{choice}; did you mean {nearest[0]!r}?" if nearest else choice

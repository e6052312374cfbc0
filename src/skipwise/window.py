"""The three context lengths of an extension, and how lengths are written."""

import re
from dataclasses import dataclass

from skipwise.errors import ConfigError, PositionError

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Context lengths of one extension, in tokens.

    Attributes:
        train: length of a training example, `Lc` in the PoSE paper; it decides the cost of a step.
        original: length that the base model was pre-trained for, `Lo`.
        target: length that the extended model is to handle, `Lt`.

    Raises:
        PositionError: unless all are whole numbers, `2 <= train <= target` and `2 <= original <= target`.

    The papers train at `Lc <= Lo`; a larger `train` is allowed because the last steps of a run may grow their window.
    """

    train: int
    original: int
    target: int

    def __post_init__(self) -> None:
        for name in ("train", "original", "target"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise PositionError(f"window.{name} is {value!r}; it must be a whole number of tokens")
        if not (2 <= self.train <= self.target and 2 <= self.original <= self.target):
            raise PositionError(
                f"window has train={self.train}, original={self.original}, target={self.target}; train and original "
                "must lie between 2 and the target: lower the training window or raise the target"
            )

    @property
    def factor(self) -> float:
        """How many times longer the target is than the original window, `alpha` in the papers."""
        return self.target / self.original


def parse_length(text: str | int) -> int:
    """Parses a length in tokens.

    Args:
        text: a whole number, or a number with `k` (1024) or `m` (1024 * 1024): `131072`, `32k`, `1.5k`, `1M`.

    Returns:
        The length in tokens.

    Raises:
        ConfigError: it is not a positive whole number of tokens.
    """
    match = _LENGTH.fullmatch(str(text).strip().replace("_", "").replace(",", ""))
    value = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if value < 1 or value != int(value):
        raise ConfigError(f"length is {text!r}; give a whole number of tokens such as 131072, 32k or 1M")
    return int(value)


def length_label(length_tokens: int) -> str:
    """A length in the notation of `parse_length`: `256`, `4k`, `1.5k`, `1M`."""
    for unit, letter in ((1024 * 1024, "M"), (1024, "k")):
        if length_tokens >= unit and length_tokens % (unit // 4) == 0:
            return f"{length_tokens / unit:g}{letter}"
    return str(length_tokens)

"""What samplers draw, what a sampler is, and checks that they share."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from skipwise.errors import ConfigError, PositionError
from skipwise.names import did_you_mean
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PositionSample:
    """The tokens of one training example and their positions.

    Attributes:
        token_index: int64 (n,), index of each token in its document, strictly increasing, >= 0.
        position_ids: int64 (n,), position given to each token, strictly increasing, >= 0.

    Raises:
        PositionError: the arrays break these rules; `check_ends` compares them with document and target.
    """

    token_index: np.ndarray
    position_ids: np.ndarray

    def __post_init__(self) -> None:
        for name in ("token_index", "position_ids"):
            values = getattr(self, name)
            if values.dtype != np.int64 or values.ndim != 1 or not len(values):
                raise PositionError(
                    f"{name} is {values.dtype} of shape {values.shape}; it must be int64 of shape (n,), n >= 1"
                )
            if values[0] < 0 or np.count_nonzero(values[1:] > values[:-1]) < len(values) - 1:
                raise PositionError(
                    f"{name} must be 0 or above and strictly increasing; it starts {values[:8].tolist()}"
                )
        if len(self.token_index) != len(self.position_ids):
            raise PositionError(
                f"a sample has {len(self.token_index)} tokens and {len(self.position_ids)} positions; give one for each"
            )

    @classmethod
    def unchecked(cls, token_index: np.ndarray, position_ids: np.ndarray) -> "PositionSample":
        """Makes a sample without checks, for the samplers of this module. They keep the rules by construction, as their
        tests verify, and checks would take as long as the draws."""
        sample = object.__new__(cls)
        object.__setattr__(sample, "token_index", token_index)
        object.__setattr__(sample, "position_ids", position_ids)
        return sample

    def check_ends(self, *, num_tokens: int, target: int) -> None:
        """Checks the last token and position of a sample against its document and window.

        Raises:
            PositionError: a token lies past the document's end, or a position at or past the target.
        """
        if self.token_index[-1] >= num_tokens or self.position_ids[-1] >= target:
            raise PositionError(
                f"a sample ends at token {self.token_index[-1]} and position {self.position_ids[-1]}; the document has "
                f"{num_tokens} tokens and the target {target} positions, counted from 0"
            )


class PositionSampler(Protocol):
    """Draws the tokens and positions of training examples."""

    uses_sentence_ends: ClassVar[bool]

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        """Draws a sample.

        Args:
            num_tokens: length of the document, `Lx`.
            window: the three lengths.
            rng: source of all draws.

        Raises:
            PositionError: the document is shorter than window.train.
        """
        ...


def known_names(name: str, allowed: Collection[str]) -> str:
    """The known names, for the message about an unknown one, with the nearest first."""
    return f"{did_you_mean(name, allowed)}known: {', '.join(allowed)}" if allowed else "it has no settings"


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless a setting has one of the allowed values."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; {known_names(str(value), allowed)}")


def check_count(name: str, value: object) -> None:
    """Raises ConfigError unless a setting is a whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def check_document(num_tokens: int, window: Window) -> None:
    """Raises PositionError for a document that is shorter than a training window."""
    if num_tokens < window.train:
        raise PositionError(
            f"a document has {num_tokens} tokens and window.train is {window.train}; skip or join shorter documents, "
            "or lower the training window",
            page="no-long-documents",
        )

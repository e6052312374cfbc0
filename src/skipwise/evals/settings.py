"""Types of tasks' settings, checked by pydantic, and where a sample's key leaves a setting out."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from skipwise.config.reading import allowed_words, shortened
from skipwise.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

BosPolicy = Literal["tokenizer", "always", "never"]
"""When inputs begin with the beginning-of-sequence token: if the tokenizer itself puts one there, always, or never."""

Haystack = Literal["filler", "documents"]
"""What hides something: plain sentences, or the documents' text."""

NO_KEY: Mapping[str, Any] = {"sample_key": False}
"""Metadata of a task's setting that no single sample depends on: how many there are, or a path whose content the
samples' scope tells."""


class Settings:
    """What a task inherits whose fields are checked by their annotations, exactly: no text is a number."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_settings(self)


class AtDepths(Settings):
    """What a task inherits that hides something in equal parts of a text, the same number of times in each."""

    __slots__ = ()
    name: ClassVar[str]
    trials: int
    num_depths: int
    haystack: Haystack

    def __post_init__(self) -> None:
        check_settings(self)
        if self.trials % self.num_depths:
            raise ConfigError(
                f"{self.name} has {self.trials} trials for {self.num_depths} depths; give a multiple of the depths, "
                f"such as {max(1, self.trials // self.num_depths) * self.num_depths}"
            )

    @property
    def uses_documents(self) -> bool:
        """Whether documents are what hides it."""
        return self.haystack == "documents"

    def depth(self, trial: int, rng: np.random.Generator) -> float:
        """Where a trial hides it, 0 start to 1 end: at a random place in the part that is its turn."""
        return (trial * self.num_depths // self.trials + rng.random()) / self.num_depths


def check_settings(task: Any) -> None:
    """Holds each field of a task against its annotation.

    Raises:
        ConfigError: a value is of another type or out of its range; says what may be given.
    """
    for name, (adapter, meaning) in _checks(type(task)).items():
        try:
            adapter.validate_python(getattr(task, name))
        except ValidationError as error:
            words = allowed_words(error.errors()[0]) + (f": {meaning}" if meaning else "")
            raise ConfigError(f"{task.name}.{name} is {shortened(getattr(task, name))}; {words}") from error


@cache
def _checks(kind: type) -> dict[str, tuple[TypeAdapter[Any], str]]:
    """What checks each field of a class of tasks, and what the field is, where its annotation describes it."""
    hints = get_type_hints(kind, include_extras=True)
    exact = ConfigDict(strict=True, allow_inf_nan=False)
    return {
        field.name: (
            TypeAdapter(hints[field.name], config=exact),
            next((info.description or "" for info in get_args(hints[field.name]) if isinstance(info, FieldInfo)), ""),
        )
        for field in fields(kind)
    }

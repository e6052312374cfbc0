"""Types of tasks' settings, checked by pydantic, and where a sample's key leaves a setting out."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

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


def check_depths(task: Any) -> None:
    """Raises ConfigError when a task's trials do not divide into its depths."""
    if task.trials % task.num_depths:
        raise ConfigError(
            f"{task.name} has {task.trials} trials for {task.num_depths} depths; give a multiple of the depths, such as"
            f" {max(1, task.trials // task.num_depths) * task.num_depths}"
        )


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

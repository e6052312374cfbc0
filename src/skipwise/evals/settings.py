"""Types of the tasks' settings, and their check by pydantic."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from skipwise.config.reading import allowed_words, shortened
from skipwise.errors import ConfigError
from skipwise.evals.languages import ENGLISH, Language, language_named

if TYPE_CHECKING:
    from skipwise.evals.context import EvalContext

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

BosPolicy = Literal["tokenizer", "always", "never"]
"""When inputs begin with the beginning-of-sequence token: if the tokenizer itself adds one, always, or never."""

Haystack = Literal["filler", "documents"]
"""The text around a hidden line: plain sentences, or text of the documents."""

NO_KEY: Mapping[str, Any] = {"sample_key": False}
"""Metadata of a setting that is not part of the samples' key: a number of samples, or a path, since the file's hash
is part of the key instead."""


class Settings:
    """Base of tasks. The fields of a subclass, a dataclass, are checked against their annotations, strictly."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_settings(self)


class Spoken(Settings):
    """Base of tasks that speak one of `languages`."""

    __slots__ = ()
    language: str | None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.language is not None:
            language_named(self.language)

    @property
    def uses_documents(self) -> bool:
        """Whether the prompts have text of the documents in them."""
        return False

    def language_in(self, context: "EvalContext") -> Language:
        """The language of instruction, hidden lines and question: the chosen one, else that of the documents used."""
        if self.language is not None:
            return language_named(self.language)
        return context.language if self.uses_documents else ENGLISH

    def spoken(self, context: "EvalContext") -> dict[str, str]:
        """The language, as part of the samples' key and the results' details; nothing if it is English."""
        language = self.language_in(context)
        # Samples of earlier versions are in English and do not say it.
        return {} if language is ENGLISH else {"language": language.code}


class AtDepths(Spoken):
    """Base of tasks that hide something at stratified depths: each part of the text gets equally many trials."""

    __slots__ = ()
    name: ClassVar[str]
    trials: int
    num_depths: int
    haystack: Haystack

    def __post_init__(self) -> None:
        Spoken.__post_init__(self)
        if self.trials % self.num_depths:
            raise ConfigError(
                f"{self.name} has {self.trials} trials for {self.num_depths} depths; give a multiple of the depths, "
                f"such as {max(1, self.trials // self.num_depths) * self.num_depths}"
            )

    @property
    def uses_documents(self) -> bool:
        """Whether the haystack is text of the documents."""
        return self.haystack == "documents"

    def depth(self, trial: int, rng: np.random.Generator) -> float:
        """The depth of a trial, 0 start to 1 end: a random place in the part whose turn it is."""
        return (trial * self.num_depths // self.trials + rng.random()) / self.num_depths

    def parts(self) -> list[dict[str, float]]:
        """Where each part of the text begins and ends, as details of a result."""
        edges = [part / self.num_depths for part in range(self.num_depths + 1)]
        return [{"depth_from": begin, "depth_to": end} for begin, end in pairwise(edges)]


def check_thinking(task: Any) -> None:
    """Raises ConfigError if a task thinks about plain text."""
    if task.thinking_tokens and not task.chat:
        raise ConfigError(
            f"{task.name}.thinking_tokens is {task.thinking_tokens}, and plain text is not thought about: set "
            f"{task.name}.chat to true, or leave it out"
        )


def check_settings(task: Any) -> None:
    """Checks each field of a task against its annotation.

    Raises:
        ConfigError: a value is of another type or out of range; the message says what is allowed.
    """
    for name, (adapter, meaning) in _checks(type(task)).items():
        try:
            adapter.validate_python(getattr(task, name))
        except ValidationError as error:
            words = allowed_words(error.errors()[0]) + (f": {meaning}" if meaning else "")
            raise ConfigError(f"{task.name}.{name} is {shortened(getattr(task, name))}; {words}") from error


@cache
def _checks(kind: type) -> dict[str, tuple[TypeAdapter[Any], str]]:
    """The check of each field of a class of tasks, and the description in its annotation, if any."""
    hints = get_type_hints(kind, include_extras=True)
    exact = ConfigDict(strict=True, allow_inf_nan=False)
    return {
        field.name: (
            TypeAdapter(hints[field.name], config=exact),
            next((info.description or "" for info in get_args(hints[field.name]) if isinstance(info, FieldInfo)), ""),
        )
        for field in fields(kind)
    }

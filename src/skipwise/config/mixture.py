"""Settings of a mixture: several sources, each with its share of a run's tokens."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from skipwise.config.base import Length, StrictModel


class SourceConfig(StrictModel):
    """One entry of a mixture.

    Attributes:
        replay: trains the entry's share on windows of the original length without skips, in whole steps that are evenly
            spaced. They preserve short-context quality.
        source: as in `data`. A replay entry without a source replays the texts of the other entries.
        weight: part of the run's tokens that comes from this source, relative to the weights of the other entries.
            Tokens without labels count too. A step's loss is the mean over its labels, so a source with few of them
            weighs less in the loss.
        format, field, skip_unreadable, min_tokens, join, skips_at, control_tokens: as in `data`. By default
            the value given there.
    """

    replay: bool = False
    source: str | list[str] | None = Field(
        default=None,
        validate_default=True,
        description="a file, a folder, a pattern, a hub data set or stdlib, or several of them",
    )
    weight: float = Field(gt=0.0)
    format: Literal["auto", "text", "conversations"] | None = None
    field: str | None = None
    skip_unreadable: bool | None = None
    min_tokens: Length | None = None
    join: bool | None = None
    skips_at: Literal["turns", "anywhere"] | None = None
    control_tokens: Literal["text", "tokens"] | None = None

    @field_validator("source")
    @classmethod
    def _require_source(cls, source: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if not source and info.data.get("replay") is False:
            raise PydanticCustomError("missing", "only a replay entry may be without")
        return source

    @property
    def name(self) -> str:
        """What logs and records call the entry."""
        if self.source is None:
            return "replay of the others"
        return ", ".join(sources_of(self)) + (" (replay)" if self.replay else "")

    @property
    def exact_weight(self) -> Fraction:
        """The weight as it is written: 0.3 is 3/10."""
        return Fraction(repr(self.weight))

    def settings(self) -> dict[str, Any]:
        """What it sets of its own for `DataConfig`."""
        return self.model_dump(exclude={"replay", "weight"}, exclude_none=True)


def sources_of(entry: Any) -> list[str]:
    """The sources of an entry, also of one that is not validated yet, as far as they are text."""
    source = entry.get("source") if isinstance(entry, Mapping) else getattr(entry, "source", None)
    return [one for one in (source if isinstance(source, list) else [source]) if isinstance(one, str)]


def places_of(source: str | list[str]) -> set[str]:
    """The sources, each in one form: a path as an absolute one."""
    return {_place(one) for one in ([source] if isinstance(source, str) else source)}


def check_mixture(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validates a mixture: each entry, and the entries together. All faults are in one error."""
    entries, faults = None, [*_faults_between(value)] if isinstance(value, list) else []
    try:
        entries = validate(value)
    except ValidationError as error:
        faults = [_as_details(found) for found in error.errors(include_url=False)] + faults
    if faults:
        raise ValidationError.from_exception_data("mixture", faults)
    return entries


def _faults_between(entries: list[Any]) -> Iterator[InitErrorDetails]:
    """What is wrong with entries beside each other: a source given twice, nothing but replay."""
    first: dict[tuple[str, bool], int] = {}
    for number, entry in enumerate(entries):
        is_replay = _is_replay(entry)
        found = sources_of(entry) or ([""] if is_replay else [])
        for source in found:
            place = _place(source) if source else "", is_replay
            if (before := first.setdefault(place, number)) != number:
                what = "has it too" if source else "replays the texts of the others already"
                said = f"data.mixture.{before} {what}; give each source once, with the sum of the weights"
                kind = PydanticCustomError("repeated", said)  # pyright: ignore[reportArgumentType]
                yield InitErrorDetails(type=kind, loc=(number, "source"), input=source or None)
    if entries and all(map(_is_replay, entries)):
        kind = PydanticCustomError("only_replay", "give an entry without replay: its texts are what is extended with")
        yield InitErrorDetails(type=kind, loc=(), input=entries)


def _place(source: str) -> str:
    return str(Path(source).expanduser().absolute())


def _is_replay(entry: Any) -> bool:
    return (entry.get("replay") if isinstance(entry, Mapping) else getattr(entry, "replay", False)) is True


def _as_details(found: Any) -> InitErrorDetails:
    kind = PydanticCustomError("missing", found["msg"]) if found["type"] == "missing" else found["type"]
    return InitErrorDetails(type=kind, loc=found["loc"], input=found["input"], ctx=found.get("ctx", {}))

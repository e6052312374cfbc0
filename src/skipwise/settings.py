"""Settings as people write them: YAML, one tree over another, and what is wrong with one, in a line."""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from skipwise.errors import ConfigError


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of settings, not yet checked.

    Raises:
        ConfigError: when it is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        settings = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config is {str(path)!r}; it cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(
            f"config {str(path)!r} is not YAML{line}; mend it: one setting a line, such as `target: 32k`"
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config {str(path)!r} holds no settings; write at least `model: ...` and `target: 32k`")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML 1.1 that reads `2e-5` as a number, as YAML 1.2 and everybody does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Reads a value as a run's YAML file means it; raises `yaml.YAMLError` where it is not YAML."""
    return yaml.load(text, _Loader)


def merge_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one tree of a run's settings over another; a kind that changes takes its fields with it."""
    merged = with_kinds(below)
    for name, value in above.items():
        old = merged.get(name)
        if name in _DEFAULT_KINDS and isinstance(value, str):
            value = {"kind": value}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            merged[name] = merge_settings(old, value)
        else:
            merged[name] = value
    return merged


_DEFAULT_KINDS = {"interpolation": "yarn", "sampler": "pose", "tuning": "full"}


def with_kinds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every variant spelled out, its kind and fields, where they give a name or fields alone."""
    spelled = dict(settings)
    for name, default in _DEFAULT_KINDS.items():
        value = spelled.get(name)
        if isinstance(value, str):
            spelled[name] = {"kind": value}
        elif isinstance(value, Mapping):
            spelled[name] = {"kind": default, **value}
    return spelled


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """One line for the first setting that is wrong: what was given, and what is allowed or near it."""
    named = [(_setting_name(model, found["loc"]), found) for found in error.errors()]
    # A setting that is missing may be one that is there, misspelt.
    named.sort(key=lambda one: one[1]["type"] == "missing")
    name = named[0][0]
    # A value that may be of several types has an error for each of them, the one that it is of further in.
    inside = [(longer, found) for longer, found in named if longer.startswith(f"{name}.")]
    name, first = (inside or named)[0]
    if first["type"] == "extra_forbidden":
        *path, unknown = (str(part) for part in first["loc"])
        known = [field for found in _models_at(model, path) for field in found.model_fields]
        nearest = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"setting {name!r} is unknown; {hint}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing; give it in the config or as a flag"
    more = [found["msg"].removeprefix("Input should be ") for other, found in named if other == name][1:]
    allowed = " or ".join([first["msg"], *more])
    return f"setting {name!r} is {first['input']!r}; {allowed[0].lower()}{allowed[1:]}"


def _setting_name(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """The setting as people write it: a path of pydantic without the tags that tell the types of a union apart."""
    *above, last = (str(part) for part in path)
    parts = [
        part
        for i, part in enumerate(above)
        if part.isdecimal() or any(part in found.model_fields for found in _models_at(model, above[:i]))
    ]
    holders = _models_at(model, above)
    # What stands last in a model is one of its fields, or is meant for one; in a union of plain types it is a tag.
    return ".".join([*parts, last] if holders or last.isdecimal() else parts)


def _models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """The models that a path of field names leads to; the tag of a union of models leads to one of them."""
    models = [model]
    for part in path:
        if part.isdecimal():
            continue
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if inner:
            models = [found for annotation in inner for found in _models_in(annotation)]
        else:
            models = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, list):
        for part in typing.get_args(annotation):
            yield from _models_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation

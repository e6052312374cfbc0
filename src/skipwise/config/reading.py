"""Reads settings from YAML, merges trees of settings, and explains validation errors in one line."""

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean


def read_settings(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of settings, without validating them.

    Raises:
        ConfigError: the file is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        settings = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config is {str(path)!r}; it cannot be read: {error.strerror}", page="not-found") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(
            f"config {str(path)!r} is not YAML{line}; fix it: one setting per line, such as `target: 32k`"
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"config {str(path)!r} holds no settings; write at least `model: ...` and `target: 32k`")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that `2e-5` is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parses YAML as in a run's config file; raises `yaml.YAMLError` if it is not YAML."""
    return yaml.load(text, _Loader)


def merge_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges a run's settings; `above` wins. A variant of another kind replaces the one below, fields included."""
    merged = with_kinds(below)
    for name, value in above.items():
        old = merged.get(name)
        if name in _DEFAULT_KINDS and isinstance(value, str):
            value = {"kind": value}
        value = _spelled_data(name, value)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            merged[name] = merge_settings(old, value)
        else:
            merged[name] = value
    return merged


_DEFAULT_KINDS = {"interpolation": "yarn", "sampler": "pose", "tuning": "full"}


def with_kinds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every variant as a mapping of `kind` and fields, and a mixture as one of `data`."""
    spelled = dict(settings)
    for name, default in _DEFAULT_KINDS.items():
        value = spelled.get(name)
        if isinstance(value, str):
            spelled[name] = {"kind": value}
        elif isinstance(value, Mapping):
            spelled[name] = {"kind": default, **value}
    return {name: _spelled_data(name, value) for name, value in spelled.items()}


def _spelled_data(name: str, value: Any) -> Any:
    """A list for `data` is a mixture."""
    return {"mixture": value} if name == "data" and isinstance(value, list) and value else value


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """One line about all invalid settings: what was given, and what is allowed or similar."""
    named: dict[str, list[Any]] = {}
    # Missing settings come last, since one that is present but misspelt may be meant.
    for found in sorted(error.errors(), key=lambda one: one["type"] == "missing"):
        named.setdefault(_setting_name(model, found["loc"]), []).append(found)
    # For a union of types, pydantic reports an error for each type. Keep the deepest, which is of the type meant.
    return "; ".join(
        _explain_one(model, name, found)
        for name, found in named.items()
        if not any(longer.startswith(f"{name}.") for longer in named)
    )


def _explain_one(model: type[BaseModel], name: str, found: Sequence[Any]) -> str:
    first = found[0]
    *path, last = (str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [field for one in _models_at(model, path) for field in one.model_fields]
        hint = did_you_mean(last, known).strip() or f"known here: {', '.join(known)}"
        return f"setting {name!r} is unknown; {hint}"
    if first["type"] == "missing":
        return f"setting {name!r} is missing; give it in the config or as a flag"
    given = first["input"]
    if first["type"] == "union_tag_invalid":
        name, given = f"{name}.kind", first["ctx"]["tag"]
    words, *others = dict.fromkeys(map(allowed_words, found))
    allowed = " or ".join([words, *(other.removeprefix("give ") for other in others)])
    if first["type"] in _ALLOWED and (meant := _description(model, name.split("."))):
        allowed = f"{allowed}: {meant}"
    return f"setting {name!r} is {shortened(given)}; {allowed}"


_ALLOWED = {
    "string_type": "text",
    "string_unicode": "text without lone surrogates (\\ud800 to \\udfff)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "settings, each with its name",
    "model_type": "settings, each with its name",
    "model_attributes_type": "settings, each with its name",
    "none_required": "null",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
    "union_tag_invalid": "{expected_tags}",
}


def allowed_words(found: Mapping[str, Any]) -> str:
    """What a pydantic error allows, in plain words: `give a whole number`, `give 1 or more`."""
    context = {name: f"{it:g}" if isinstance(it, float) else it for name, it in found.get("ctx", {}).items()}
    if found["type"] not in _ALLOWED:
        return found["msg"][:1].lower() + found["msg"][1:]
    names = re.findall("'([^']*)'", context.get("expected_tags") or context.get("expected") or "")
    hint = did_you_mean(context.get("tag", found["input"]), names)
    return f"{hint}give {_ALLOWED[found['type']].format(**context)}"


def shortened(value: Any) -> str:
    """The repr of a value, shortened to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _description(model: type[BaseModel], path: Sequence[str]) -> str:
    """The description of a setting in its model; for an entry of a list, the description of the list."""
    while path and path[-1].isdecimal():
        path = path[:-1]
    fields = [one.model_fields[path[-1]] for one in _models_at(model, path[:-1]) if path[-1] in one.model_fields]
    return next((field.description for field in fields if field.description), "")


def _setting_name(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """The setting as a dotted name: pydantic's path without the tags of unions."""
    *above, last = (str(part) for part in path)
    parts = [
        part
        for i, part in enumerate(above)
        if part.isdecimal() or any(part in found.model_fields for found in _models_at(model, above[:i]))
    ]
    holders = _models_at(model, above)
    # Inside a model the last part is a field, or a misspelt one; in a union of plain types it is a tag.
    return ".".join([*parts, last] if holders or last.isdecimal() else parts)


def _models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """The models at a path of field names; the tag of a union selects one of its models."""
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

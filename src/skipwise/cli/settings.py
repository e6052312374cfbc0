"""Settings on the command line: flags that were given, and `--set NAME=VALUE`."""

from typing import Any

from skipwise.errors import ConfigError


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Only the flags that were given."""
    return {name: value for name, value in flags.items() if value is not None and value != {}}


def assigned(assignment: str) -> dict[str, Any]:
    """`data.join=true` as `{"data": {"join": True}}`; the value is read as YAML.

    Raises:
        ConfigError: when it is no assignment, or its value no YAML.
    """
    import yaml

    from skipwise.config.reading import parse_yaml

    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set is {assignment!r}; write NAME=VALUE, such as data.join=true")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set is {assignment!r}; its value is not YAML") from error
    for name in reversed(path.split(".")):
        value = {name: value}
    return value

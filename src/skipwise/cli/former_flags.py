"""Flags of earlier versions that repeat a setting: they are read as `--set NAME=VALUE`, with a note on stderr."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from skipwise.cli.help import VerbHelp
from skipwise.cli.options import read_length, read_lengths


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


# Flag -> setting, and how the flag's value is read; of a flag without a value, the value of the setting.
Former = Mapping[str, tuple[str, Callable[[str], Any] | bool]]

# A kind comes before the fields of its variant, since a change of kind drops the fields below.
_PROBED: Former = {
    "--window": ("window", read_length),
    "--original": ("original", read_length),
    "--interpolation": ("interpolation", str),
    "--attention": ("attention", str),
    "--seed": ("seed", int),
}
FORMER: Mapping[str, Former] = {
    "extend": {
        **_PROBED,
        "--sampler": ("sampler", str),
        "--skips": ("sampler.skips", str),
        "--chunks": ("sampler.chunks", int),
        "--steps": ("training.max_steps", int),
        "--learning-rate": ("training.learning_rate", float),
        "--batch": ("training.per_device_train_batch_size", int),
        "--calibrate": ("calibrate", True),
        "--skip-unreadable": ("data.skip_unreadable", True),
    },
    "doctor": {
        **_PROBED,
        "--train": ("window", read_length),
        "--dtype": ("dtype", str),
        "--checkpointing": ("training.gradient_checkpointing", True),
        "--no-checkpointing": ("training.gradient_checkpointing", False),
        "--dilution": ("dilution", True),
        "--no-dilution": ("dilution", False),
    },
    "compare": {
        "--reference": ("reference", str),
        "--seeds": ("seeds", _numbers),
        "--steps": ("training.max_steps", int),
        "--learning-rate": ("training.learning_rate", float),
        "--length": ("evaluation.lengths", read_lengths),
        "--costs": ("costs.targets", read_lengths),
    },
    "eval": {
        "--num-documents": ("num_documents", int),
        "--trials": ("trials", int),
        "--depths": ("num_depths", int),
        "--haystack": ("haystack", str),
    },
}
"""For each verb with former flags: flag -> setting, and how its value is read."""

_EXPECTED = {int: "a whole number", float: "a number", _numbers: "whole numbers separated by commas, such as 0,1,2"}


def command_class(verb: str) -> type[VerbHelp]:
    """The class of a verb's command, which reads its former flags too."""
    former = FORMER.get(verb, {})

    class Command(VerbHelp):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, as_settings(args, former))

    return Command


def as_settings(arguments: Sequence[str], former: Former) -> list[str]:
    """Arguments with `--set NAME=VALUE` for every former flag, before the others, so that a `--set` still overrides it.

    Raises:
        typer.BadParameter: a flag has no value or not one of its type.
    """
    flags, found, others = [], {}, []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        if argument == "--":
            others += [argument, *rest]
        elif flag in former:
            setting, read = former[flag]
            if not equals:
                text = None if isinstance(read, bool) else next(rest, None)
            flags.append(flag)
            found[setting] = _value(flag, read, text)  # The last one holds, also of --x and --no-x.
        else:
            others.append(argument)
    settings = dict.fromkeys(setting for setting, _ in former.values() if setting in found)
    words = [word for setting in settings for word in ("--set", f"{setting}={_yaml(found[setting])}")]
    if words and os.environ.get("RANK", "0") == "0":
        print(f"skipwise: {', '.join(flags)} can be written as {shlex.join(words)}", file=sys.stderr)
    return [*words, *others]


def _value(flag: str, read: Callable[[str], Any] | bool, text: str | None) -> Any:
    if isinstance(read, bool):
        if text is not None:
            raise typer.BadParameter("this flag takes no value", param_hint=f"'{flag}'")
        return read
    if text is None:
        raise typer.BadParameter("no value is given", param_hint=f"'{flag}'")
    try:
        return read(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint=f"'{flag}'") from error
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not {_EXPECTED[read]}", param_hint=f"'{flag}'") from error


def _yaml(value: Any) -> str:
    """A value as `--set` reads it; plain where YAML reads the same from it, as for `flat`."""
    import yaml

    from skipwise.config.reading import parse_yaml

    try:
        plain = isinstance(value, str) and parse_yaml(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False)

"""docs/reference/commands.md and exit-codes.md: every verb with its arguments and flags, as the command itself has them."""

import inspect
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.core
import typer.main

from reference_pages.text import code, table
from skipwise.cli import VERBS, build_app, options

_HEADINGS = ("flag", "meaning", "default")


def page() -> str:
    """The page of commands."""
    app: Any = typer.main.get_command(build_app())
    text = _INTRODUCTION + _flags(app)
    # A verb with two names, such as `keys` for `keys list`, is described once, by the longer one.
    names = {verb: name for name, verb in sorted(VERBS.items(), key=lambda entry: len(entry[0]))}
    return text + "".join(_verb(name, app.commands[name]) for name, verb in VERBS.items() if names[verb] == name)


_INTRODUCTION = """# Commands

`skipwise VERB --help` prints the same in a terminal. Lengths are numbers of tokens: `32768`, `32k` (1k is 1024) or `1M`.
`--set` and `--config` take [settings](settings.md). [Exit codes](exit-codes.md) tell a script how a command ended.

"""


_NOT_HERE = "not (%s)"
_RUN = (
    ("skipwise doctor", ("setup extended",)),
    (
        "skipwise extend",
        (
            "with extend --set training.max_steps=1 --set training.gradient_accumulation_steps=1",
            "with extend --set validation.num_documents=1 --set validation.every_steps=0 --set data.retrieval=0",
        ),
    ),
    ("skipwise calibrate rope", (_NOT_HERE % "takes minutes; it has tests of its own",)),
    ("skipwise calibrate", ("with calibrate --factors 1.1 --trials 1 --num-documents 1",)),
    ("skipwise eval ./my-model-32k --task ruler", (_NOT_HERE % "thirteen tasks at 32k take minutes",)),
    ("skipwise eval benchmarks", (_NOT_HERE % "needs the benchmarks' data sets",)),
    ("skipwise eval build-suite", ()),
    ("skipwise eval", ("with eval --set num_documents=2",)),
    ("skipwise compare", (_NOT_HERE % "takes minutes; guides/measure.md runs one",)),
    ("skipwise pilot", (_NOT_HERE % "takes minutes; it has tests of its own",)),
    ("skipwise report base=", (_NOT_HERE % "needs the results of a comparison",)),
    ("skipwise export ./my-model-32k --to gguf --push", (_NOT_HERE % "needs the hub",)),
    ("skipwise generate", ("with generate --max-new-tokens 2",)),
    ("skipwise serve", (_NOT_HERE % "listens until it is stopped; the server has its own tests",)),
    ("skipwise keys revoke", (_NOT_HERE % "needs the id of a key",)),
    ("skipwise demo", (_NOT_HERE % "takes minutes; it has tests of its own",)),
)
"""By the first words of an example, how the test of the page runs it; the first that fits."""


def _verb(name: str, command: Any) -> str:
    arguments = [one for one in command.params if isinstance(one, typer.core.TyperArgument)]
    usage = " ".join(["skipwise", name, *(_usage(one) for one in arguments), "[FLAGS]"])
    text, examples = _help(command.help)
    made = f"## {name}\n\n{text}\n\n    {usage}\n\n"
    blocks: dict[tuple[str, ...], list[str]] = {}
    for example in examples:
        blocks.setdefault(next((how for start, how in _RUN if example.startswith(start)), ()), []).append(example)
    for how, of_block in blocks.items():
        comments = "".join(f"<!-- run: {line} -->\n" for line in how)
        lines = "\n".join(f"$ {example}" for example in of_block)
        made += f"{comments}```console\n{lines}\n```\n\n"
    if arguments:
        made += table(("argument", "meaning"), [[code(_usage(one)), one.help or ""] for one in arguments])
    return made + _flags(command)


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = f"{name}..." if argument.nargs == -1 and "..." not in name else name
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _help(text: str | None) -> tuple[str, list[str]]:
    """A verb's help without its examples, and the examples. What the help does not wrap becomes a block of text."""
    parts = [_unwrapped(part) for part in inspect.cleandoc(text or "").split("\n\n")]
    examples = [" ".join(part.removeprefix("Example:").split()) for part in parts if part.startswith("Example:")]
    return "\n\n".join(part for part in parts if not part.startswith("Example:")), examples


def _unwrapped(part: str) -> str:
    if not part.startswith("\b\n"):
        return part
    head, *lines = part.removeprefix("\b\n").splitlines()
    return f"{head}\n\n```text\n{inspect.cleandoc(chr(10).join(lines))}\n```" if lines else head


def _flags(command: Any) -> str:
    """Tables of the options, one for each group that the help has."""
    groups: dict[str, list[list[str]]] = {}
    for option in command.params:
        if isinstance(option, typer.core.TyperArgument) or option.hidden or option.name in ("help", "version"):
            continue
        group = getattr(option, "rich_help_panel", None) or ""
        groups.setdefault(group, []).append([_name(option), _meaning(option), _default(option)])
    return "".join((f"**{group}**\n\n" if group else "") + table(_HEADINGS, rows) for group, rows in groups.items())


def _name(option: Any) -> str:
    flags = [*option.opts, *option.secondary_opts]
    if option.is_flag:
        return ", ".join(map(code, flags))
    return ", ".join(code(f"{flag} {_metavar(option)}") for flag in flags)


def _choices(option: Any) -> list[str]:
    """The words that an option takes, if these are all."""
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(one.value) for one in kind]
    return [str(one) for one in get_args(kind)] if get_origin(kind) is Literal else []


def _metavar(option: Any) -> str:
    kinds = {int: "N", float: "NUMBER", Path: "PATH"}
    return option.metavar or ("NAME" if _choices(option) else kinds.get(option.type_descriptor.annotation, "TEXT"))


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.required:
        return "required"
    value = option.default() if callable(option.default) else option.default
    if value in (None, (), "") or (option.is_flag and value is False):
        return ""
    if option.is_flag:
        return code(option.opts[0])
    return code(getattr(value, "value", value))


def _meaning(option: Any) -> str:
    choices = _choices(option)
    one_of = f" One of {', '.join(map(code, choices))}." if choices else ""
    variable = f" Also set by the variable `{option.envvar}`." if option.envvar else ""
    return (option.help or "") + one_of + variable


_CODES = {
    options.DONE: ("done", "The command did what was asked."),
    options.NEGATIVE: (
        "negative",
        "A verdict is negative: `doctor` has a verdict that fails; `eval --verdict` has a length that falls short; the "
        "claims of `demo` do not hold; all arms of `compare` failed; `pilot` says no. What was measured is kept.",
    ),
    options.BAD_INPUT: (
        "bad input",
        "A flag, setting, file or model cannot be used. One line on stderr says what was given, what is allowed and what to "
        "do.",
    ),
    options.BUG: ("bug", "An error in skipwise itself, with its traceback. Please report it."),
    options.INTERRUPTED: (
        "interrupted",
        "Ctrl-C or SIGTERM. What was finished is saved; the last line says how to continue.",
    ),
    options.BROKEN_PIPE: ("broken pipe", "The program that reads the output, such as `head`, ended first."),
}


def exit_codes() -> str:
    """The page of exit codes."""
    rows = [[code(number), *told] for number, told in sorted(_CODES.items())]
    return (
        "# Exit codes\n\nEvery verb ends with one of these. Results go to stdout, notes, progress and refusals to stderr.\n\n"
        + table(["code", "name", "when"], rows)
        + "With several processes (`extend --launch`) the code is that of the first process that failed. If a signal ended it, the "
        "code is 128 plus the number of the signal, such as 137 for a process that the system killed because memory ran out.\n"
    )

"""Help as plain text of at most 80 columns: usage, what a verb does, examples, and flags in groups.

typer's own boxes put flags, types and texts into so many columns that 80 characters cut words.
"""

import shlex
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.core

_INDENT = 2
# Flags with their value that are longer stand on a line of their own.
_FLAGS_WIDTH = 26
_MAX_WIDTH = 80
_UNBROKEN = 28
_NO_BREAK = "\u00a0"
_EXAMPLE, _AS_IT_IS = "Example: ", "\b\n"

GROUPS: dict[str, tuple[str, ...]] = {
    "Prepare": ("plan", "doctor", "coverage", "pilot"),
    "Train": ("extend", "calibrate", "calibrate rope"),
    "Measure": ("eval", "eval build-suite", "eval benchmarks", "compare", "report"),
    "Use": ("generate", "serve", "export", "keys role", "keys create", "keys list", "keys revoke"),
    "Try": ("demo",),
}
"""The verbs by the order of work."""


class VerbHelp(typer.core.TyperCommand):
    """A command whose help is its docstring, and its flags by `rich_help_panel`.

    Paragraphs `Example: ...` come together. A paragraph after a line of one backspace, click's sign, keeps its lines
    and comes last.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        width = _width(formatter)
        paragraphs = (self.help or "").split("\n\n")
        examples = [text.removeprefix(_EXAMPLE) for text in paragraphs if text.startswith(_EXAMPLE)]
        tables = [text.removeprefix(_AS_IT_IS) for text in paragraphs if text.startswith(_AS_IT_IS)]
        blocks = [_filled(_usage(self, ctx), width, "    ")]
        blocks += [_filled(text, width) for text in paragraphs if not text.startswith((_EXAMPLE, _AS_IT_IS))]
        if examples:
            heading = "Example" if len(examples) == 1 else "Examples"
            blocks.append("\n".join([f"{heading}:", *(_command(text, width) for text in examples)]))
        blocks += [*_tables(_flags(self, ctx), width), *tables]
        formatter.write("\n\n".join(blocks) + "\n")


class RootHelp(typer.core.TyperGroup):
    """A group whose help lists its commands by `GROUPS`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        width = _width(formatter)
        blocks = [f"Usage: {ctx.command_path} COMMAND [OPTIONS]", _filled(self.help or "", width)]
        groups = {
            heading: [(name, self.commands[name].get_short_help_str(width)) for name in names if name in self.commands]
            for heading, names in GROUPS.items()
        }
        blocks += [*_tables(groups | _flags(self, ctx), width), _filled(self.epilog or "", width)]
        formatter.write("\n\n".join(blocks) + "\n")


def _width(formatter: Any) -> int:
    """That of the terminal, from 50 to 80; a formatter leaves two columns free."""
    return min(formatter.width + 2, _MAX_WIDTH)


def _usage(command: Any, context: Any) -> str:
    """All that has to be given, then the rest."""
    words = ["Usage:", context.command_path]
    for param in command.params:
        if param.param_type_name == "argument":
            words.append(param.metavar if param.required else f"[{param.metavar}]")
        elif param.required:
            words.append(f"{param.opts[0]}{_NO_BREAK}{param.metavar}")
    return " ".join([*words, "[OPTIONS]"])


def _flags(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and texts by heading, in the order of the parameters; `--help` is in the last one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        is_help = "--help" in param.opts
        heading = [*groups][-1] if is_help and groups else getattr(param, "rich_help_panel", None) or "Options"
        groups.setdefault(heading, []).append((_name(param), "Show this help." if is_help else _text(param)))
    return groups


def _name(param: Any) -> str:
    """An argument or option with its value, such as `--target TOKENS`."""
    if param.param_type_name == "argument":
        return param.metavar
    flags = ", ".join(sorted(param.opts, key=len, reverse=True)) + "".join(f"/{flag}" for flag in param.secondary_opts)
    return flags if param.is_flag else f"{flags} {param.metavar}"


def _text(param: Any) -> str:
    """What a parameter means, and what holds if it is not given."""
    remarks = [f"env: {param.envvar}"] if param.envvar else []
    if isinstance(param.show_default, str):
        remarks.append(f"default: {param.show_default}")
    elif param.required:
        remarks.append("required")
    elif param.show_default and (default := _default(param)):
        remarks.append(f"default: {default}")
    return " ".join([param.help or "", *(_unbroken(f"[{remark}]") for remark in remarks)])


def _unbroken(remark: str) -> str:
    """A short remark stays on one line; see `_table`."""
    return remark.replace(" ", _NO_BREAK) if len(remark) <= _UNBROKEN else remark


def _default(param: Any) -> str:
    default = param.default
    if isinstance(default, bool):
        return ("on" if default else "off") if param.secondary_opts else ""
    return "" if default is None else str(default.value if isinstance(default, Enum) else default)


def _tables(groups: dict[str, list[tuple[str, str]]], width: int) -> list[str]:
    """A table of names and texts under each heading, all with the same columns."""
    names = [name for rows in groups.values() for name, _ in rows if len(name) <= _FLAGS_WIDTH]
    column = max(map(len, names)) + 2 * _INDENT
    return [
        "\n".join([f"{heading}:", *(line for name, text in rows for line in _row(name, text, width, column))])
        for heading, rows in groups.items()
    ]


def _row(name: str, text: str, width: int, column: int) -> list[str]:
    """A name, and from `column` on its text; a name that is too long for it has a line of its own."""
    first = f"{' ' * _INDENT}{name}"
    above = [first] if len(first) > column - _INDENT else []
    how = {"initial_indent": ("" if above else first).ljust(column), "subsequent_indent": " " * column}
    lines = textwrap.wrap(text, width, **how, **_WHOLE_WORDS)
    return [*above, *(line.replace(_NO_BREAK, " ") for line in lines)]


_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def _filled(text: str, width: int, indent: str = "") -> str:
    lines = textwrap.fill(text, width, subsequent_indent=indent, **_WHOLE_WORDS)
    return lines.replace(_NO_BREAK, " ")


def _command(text: str, width: int) -> str:
    """A command line that can be copied; a long one is continued before a flag."""
    lines = [" " * _INDENT]
    for word in _words_with_values(text):
        room = width - 2  # For " \" at the end.
        if len(lines[-1]) + 1 + len(word) > room and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(" " * 3 * _INDENT)
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return "\n".join(lines)


def _words_with_values(text: str) -> Iterator[str]:
    """The words of a command, a flag together with its value."""
    words = [shlex.quote(word) for word in shlex.split(text)]
    while words:
        word = words.pop(0)
        has_value = word.startswith("--") and words and not words[0].startswith("--")
        yield f"{word} {words.pop(0)}" if has_value else word

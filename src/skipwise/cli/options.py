"""What verbs share: arguments and options, how settings are read from them, and how results are printed."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from skipwise.errors import ConfigError
from skipwise.pages import read_on
from skipwise.window import parse_length

if TYPE_CHECKING:
    from rich.text import Text

    from skipwise.records.verdict import Verdict

DONE, NEGATIVE, BAD_INPUT, BUG, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141
"""Exit codes of the command."""


def read_length(text: str | int) -> int:
    """A length in tokens, for `typer.Option(parser=read_length)`; errors name the option."""
    try:
        return parse_length(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def read_lengths(text: str) -> list[int]:
    """Lengths separated by commas; otherwise as `read_length`."""
    return [read_length(part) for part in text.split(",")]


def read_names(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


_PARSERS = {"TOKENS": read_length, "TOKENS,...": read_lengths, "NAME,...": read_names}


def option(form: str, text: str, *, shown: str | bool = True, group: str | None = None, **how: Any) -> Any:
    """An option of a verb: `option("--window TOKENS", "Training window.", shown="the model's own")`.

    Args:
        form: the flag, others with commas, and what its value is called in help; values called `TOKENS`, `TOKENS,...`
            and `NAME,...` are read as a length, lengths and names.
        text: help.
        shown: what help says of the default; True for the default itself.
        group: the heading in help under which it stands; None for those that people need first.
        how: further arguments of `typer.Option`.
    """
    flags, _, metavar = form.partition(" ")
    how = {"parser": _PARSERS.get(metavar), "rich_help_panel": group, **how}
    return typer.Option(*flags.split(","), metavar=metavar or None, help=text, show_default=shown, **how)


DOCUMENTS, LOADING, OUTPUT = "Documents", "Loading the model", "Output"
"""Headings of flags that several verbs have."""

_MODEL = "A folder, a Hugging Face name, a .gguf file, or 'embedded'."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
RunModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
RunFile = Annotated[Path | None, option("--config FILE", "Read settings from this YAML file; flags override it.")]
Setting = Annotated[
    list[str] | None, option("--set NAME=VALUE", "Override any setting, such as data.join=true. Repeatable.")
]
Target = Annotated[int | None, option("--target TOKENS", "Context window to extend to, such as 32k.")]
Data = Annotated[
    list[str] | None,
    option(
        "--data SOURCE",
        "File, folder, glob pattern or Hugging Face data set to train on. Repeatable.",
        shown="stdlib, Python's own source files",
    ),
]
Base = Annotated[
    str | None, option("--base MODEL", "Base model, where the run's record is missing or wrong.", group=LOADING)
]
Dtype = Annotated[
    str | None,
    option(
        "--dtype NAME",
        "float32, bfloat16, float16, or auto (as stored).",
        shown="auto on an accelerator, else float32",
        group=LOADING,
    ),
]
Attention = Annotated[
    str | None,
    option(
        "--attention NAME",
        "Attention implementation: eager, sdpa, flash_attention_2, ...",
        shown="chosen by transformers",
        group=LOADING,
    ),
]
Weights = Annotated[
    Literal["full", "int8"],
    option(
        "--weights KIND",
        "full: as loaded; int8: linear layers in 8 bits, which write about twice as fast on a CPU and differ slightly.",
        group=LOADING,
    ),
]
Trust = Annotated[
    bool,
    option("--trust-remote-code", "Run Python code that comes with the model. Read that code first.", group=LOADING),
]
Field = Annotated[str, option("--field NAME", "Field of a record that holds the text.", group=DOCUMENTS)]
SkipUnreadable = Annotated[
    bool, option("--skip-unreadable", "Skip unreadable files and records instead of stopping.", group=DOCUMENTS)
]
SampleCache = Annotated[
    bool, option("--cache/--no-cache", "Reuse samples measured earlier, and store new ones.", group=OUTPUT)
]
KV_CACHE = "KV cache: dynamic, static, quantized-8, quantized-4 or offloaded."
Seed = Annotated[int, option("--seed N", "Random seed.", min=0)]
Out = Annotated[Path | None, option("--out FILE", "Append each result to this file, as JSON lines.", group=OUTPUT)]
Samples = Annotated[
    Path | None, option("--samples FILE", "Append each sample, with its hash and output, to this file.", group=OUTPUT)
]
Verbose = Annotated[bool, option("--verbose", "Print each check of the preflight.", group=OUTPUT)]
Json = Annotated[bool, option("--json", "Print JSON lines.", group=OUTPUT)]


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Only the flags that were given."""
    return {name: value for name, value in flags.items() if value is not None and value != {}}


def data_setting(sources: list[str] | None) -> dict[str, Any] | None:
    """The setting `data` for the sources given by `--data`."""
    return {"source": sources if len(sources) > 1 else sources[0]} if sources else None


def assigned(assignment: str) -> dict[str, Any]:
    """`data.join=true` as `{"data": {"join": True}}`; the value is read as YAML.

    Raises:
        ConfigError: it is not an assignment, or its value is not YAML.
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


def settings_over(
    below: Mapping[str, Any], flags: Mapping[str, Any], assignments: Iterable[str] | None
) -> dict[str, Any]:
    """The settings of a file, overridden by flags, overridden by `--set`."""
    from skipwise.config import merge_settings

    tree = merge_settings(below, given(flags))
    for assignment in assignments or ():
        tree = merge_settings(tree, assigned(assignment))
    return tree


def check_writable(option: str, path: Path | None) -> None:
    """Refuses a file that cannot be written, before the work whose result it is for.

    Raises:
        ConfigError: it is a folder, its folder is missing, or permissions are.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            reason = "it is a folder; give the name of a file"
        elif not path.parent.is_dir():
            reason = f"there is no folder {str(path.parent)!r}; make it first"
        elif not os.access(path if path.exists() else path.parent, os.W_OK):
            reason = "permission denied; give another name"
        else:
            return
    except OSError as error:  # For example, a name that is too long.
        reason = f"{error.strerror}; give another name"
    raise ConfigError(f"{option} is {str(path)!r}, which cannot be written: {reason}", page="cannot-write")


def check_new(option: str, folder: Path | None) -> None:
    """Refuses a result folder that exists already.

    Raises:
        ConfigError: it exists and is not an empty folder.
    """
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{option} is {str(folder)!r}, which exists already; give a new folder", page="output-taken")


def print_json(record: Mapping[str, Any]) -> None:
    """Prints one record as one line of JSON on stdout."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    # Lone surrogates, as in a path that is not UTF-8, are escaped.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def print_read_on(verdicts: Iterable["Verdict"]) -> None:
    """Prints where to read about the verdicts that did not pass, a line for each name."""
    for name in dict.fromkeys(verdict.name for verdict in verdicts if verdict.status != "pass"):
        print(read_on(name))


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence["str | Text"]], *, title: str = "", numbers: bool = False
) -> None:
    """Prints a table without rules, a line for each row. Wider than the terminal, it wraps there and is never cut.

    With `numbers`, all columns but the first are aligned right.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(title) if title else None, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if numbers and number > 0 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.width = max(console.width, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)

"""Arguments and options that several verbs share, and how verbs print for machines."""

import json
import sys
from typing import Annotated, Any

import typer

from skipwise.errors import ConfigError
from skipwise.window import parse_length


def read_length(text: str | int) -> int:
    """A length as people write it, for `typer.Option(parser=read_length)`, so that the error names the option."""
    try:
        return parse_length(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub name, a .gguf file, or 'embedded'.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16, float16, or auto: as the checkpoint says.",
        show_default="auto with an accelerator, else float32",
    ),
]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="NAME",
        help="Attention of transformers: eager, sdpa, flash_attention_2, ...",
        show_default="what transformers chooses",
    ),
]
OriginalOption = Annotated[
    int | None,
    typer.Option(
        "--original",
        parser=read_length,
        metavar="TOKENS",
        help="Window that the base model was pre-trained for, where its config does not tell.",
        show_default="as its config says",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model. Read it first.")
]
SkipUnreadableOption = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Go on without files and records that cannot be read; else all of them are listed."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines, one object a line.")]


def print_json(record: dict[str, Any]) -> None:
    """Prints one record as one line of JSON on stdout."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    # What is no character, as in a path that is not UTF-8, is escaped as JSON has it.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

"""`skipwise demo`: the whole method on a small model that ships with the package, in minutes on a CPU."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import JsonOption, print_json

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise demo --output runs/demo")(demo)


def demo(
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Where model, records and page go; a demo that was stopped there goes on.",
        ),
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of training and evaluation.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Extend the embedded model from 256 to 4096 tokens, measured before and after.

    Exit 1 if perplexity does not fall with every doubling of the context, or more than a tenth of the passkeys is lost
    at any length. After Ctrl-C the same command goes on where it was.
    """
    with loading("making the demonstration ready"):
        from skipwise.demo import Claims, run_demo

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("skipwise").setLevel(logging.INFO)
    try:
        arms = run_demo(output, seed=seed)
    except KeyboardInterrupt:
        json_flag = ["--json"] if as_json else []
        again = shlex.join(["skipwise", "demo", "--output", str(output), "--seed", str(seed), *json_flag])
        print(f"stopped; what was finished or saved is kept, go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    claims = Claims.of(arms[-1].results)
    if as_json:
        print_json(
            {"folder": str(output), "perplexity_falls": claims.perplexity_falls, "passkeys": claims.worst_passkeys}
        )
    if not claims.hold:
        raise typer.Exit(1)

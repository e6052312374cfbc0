"""`skipwise demo`: the whole method on a small model that ships with the package, in minutes on a CPU."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import INTERRUPTED, NEGATIVE, option, print_json
from skipwise.errors import ConfigError


def demo(
    output: Annotated[
        Path, option("--output FOLDER", "Folder for model, records and page. A stopped demo continues there.")
    ] = Path("runs/demo"),
    seed: Annotated[int, option("--seed N", "Random seed of training and evaluation.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Extend the embedded model, in minutes on a CPU.

    Its window grows from 256 to 4096 tokens, measured before and after. Exits with 1 if perplexity does not fall with
    every doubling of the context, or if more than a tenth of the passkeys is lost at any length. After Ctrl-C, the same
    command continues.

    Example: skipwise demo --output runs/demo
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output is {str(output)!r}, a file; give a folder")
    with loading("preparing the demonstration"):
        from skipwise.demo import Claims, run_demo

    logging.getLogger("skipwise").setLevel(logging.INFO)
    try:
        arms = run_demo(output, seed=seed)
    except KeyboardInterrupt:
        json_flag = ["--json"] if as_json else []
        again = shlex.join(["skipwise", "demo", "--output", str(output), "--seed", str(seed), *json_flag])
        print(f"stopped; what is done is kept. Continue with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    claims = Claims.of(arms[-1].results)
    if as_json:
        print_json(
            {"folder": str(output), "perplexity_falls": claims.perplexity_falls, "passkeys": claims.worst_passkeys}
        )
    if not claims.hold:
        raise typer.Exit(NEGATIVE)

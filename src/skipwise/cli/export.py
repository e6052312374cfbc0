"""`skipwise export`: an extended model as safetensors, a GGUF file or an adapter, compared with what was trained."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import JsonOption, TrustOption, print_json, read_length
from skipwise.model.place import find_place

EPILOG = """Example: skipwise export my-model-32k --to gguf --dtype q8_0

Example: skipwise export my-lora-run --to hf --dtype bfloat16 --out my-model-32k-merged

Example: skipwise export my-full-run --to adapter --rank 64
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Output folder of extend, or any checkpoint folder.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="hf: safetensors; gguf: for llama.cpp; adapter: low-rank alone."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="A new folder.", show_default="RUN-FORMAT")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="hf: float32, bfloat16, float16; gguf: f32, f16, bf16, q8_0.",
            show_default="the run's; gguf: f16",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Where the base of a run is now.", show_default="as in the run"),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Compares a GGUF file: llama.cpp or transformers.",
            show_default="llama.cpp where installed",
        ),
    ] = None,
    long_tokens: Annotated[
        int | None,
        typer.Option(
            "--long-tokens",
            parser=read_length,
            metavar="TOKENS",
            help="Of the long prompt that is compared.",
            show_default="the window up to 8k, else 256 beyond the original one",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            min=1,
            help="Adapter after full tuning: the difference to the base, cut to this rank; says what that loses.",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a model, load the export again, and compare: tables, lengths, tokens, logits, greedy text.

    A difference beyond the number format's own error refuses the export, and nothing is left of it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from skipwise.export import check_format

    check_format(to)
    find_place(run)
    with loading(f"reading the model {run}"):
        from skipwise.export import export as make

    made = make(
        run,
        to=to,
        output=out,
        dtype=dtype,
        base=base,
        engine=engine,
        long_tokens=long_tokens,
        rank=rank,
        trust_remote_code=trust_remote_code,
        progress=not as_json,
    )
    if as_json:
        print_json({**asdict(made), "folder": str(made.folder)})
        return
    print(f"{made.folder}: loaded again by {made.engine}, compared with the trained model")
    for verdict in made.verdicts:
        print(verdict.line)
    for name, command in made.commands.items():
        print(f"{name}:\n    {command}")
    for note in made.notes:
        print(f"note: {note}")

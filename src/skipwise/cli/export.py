"""`skipwise export`: an extended model as safetensors, a GGUF file or an adapter, compared with what was trained."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import check_new, option, print_json
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.export import Exported

DtypeOption = Annotated[
    str | None,
    option(
        "--dtype NAME",
        "hf: float32, bfloat16, float16; gguf: f32, f16, bf16, q8_0.",
        shown="the run's; gguf: f16",
    ),
]
EngineOption = Annotated[
    str | None,
    option("--engine NAME", "Loads a GGUF file: llama.cpp or transformers.", shown="llama.cpp if installed"),
]
LongTokensOption = Annotated[
    int | None,
    option(
        "--long-tokens TOKENS",
        "Length of the long prompt that is compared.",
        shown="the window up to 8k, else 256 beyond the original one",
    ),
]
BaseWeightOption = Annotated[
    float | None,
    option(
        "--merge-with-base WEIGHT",
        "Average with the base's weights: WEIGHT is the base's share. 0: the extended model; 0.5: the plain mean; 1: "
        "the base's weights, interpolated.",
        shown="the extended model",
    ),
]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Output folder of extend, or any checkpoint folder.")],
    to: Annotated[str, option("--to FORMAT", "hf: safetensors; gguf: for llama.cpp; adapter: low-rank alone.")],
    out: Annotated[Path | None, option("--out FOLDER", "A new folder.", shown="RUN-FORMAT")] = None,
    dtype: DtypeOption = None,
    base: options.Base = None,
    engine: EngineOption = None,
    long_tokens: LongTokensOption = None,
    rank: Annotated[
        int | None, option("--rank N", "Adapter after full tuning: the difference to the base at this rank.", min=1)
    ] = None,
    merge_with_base: BaseWeightOption = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Export a model, load the export again, and compare: tables, lengths, tokens, logits, greedy text.

    A difference beyond the number format's own error refuses the export, and nothing is left of it.

    Example: skipwise export my-model-32k --to gguf --dtype q8_0

    Example: skipwise export my-lora-run --to hf --dtype bfloat16 --out my-model-32k-merged

    Example: skipwise export my-full-run --to adapter --rank 64

    Example: skipwise export my-model-32k --to hf --merge-with-base 0.5
    """
    from skipwise.export import check_base_weight, check_format

    check_format(to)
    if merge_with_base is not None:
        check_base_weight(merge_with_base)
    check_new("--out", out)
    for place in (run, base):
        if place is not None:
            find_place(place)
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
        base_weight=merge_with_base,
        trust_remote_code=trust_remote_code,
        progress=not as_json,
    )
    if as_json:
        print_json({**asdict(made), "folder": str(made.folder)})
    else:
        _print(made)


def _print(made: "Exported") -> None:
    print(f"{made.folder}: loaded again by {made.engine}, compared with the {made.reference}")
    for verdict in made.verdicts:
        print(verdict.line)
    for name, command in made.commands.items():
        print(f"{name}:\n    {command}")
    for note in made.notes:
        print(f"note: {note}")

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

VERIFYING = "Verifying the export"

DtypeOption = Annotated[
    str | None,
    option(
        "--dtype NAME",
        "Number format. hf: float32, bfloat16, float16; gguf: f32, f16, bf16, q8_0.",
        shown="the run's; gguf: f16",
    ),
]
RankOption = Annotated[
    int | None,
    option("--rank N", "LoRA rank of an adapter after full tuning: the difference to the base model.", min=1),
]
EngineOption = Annotated[
    str | None,
    option(
        "--engine NAME",
        "What loads the GGUF file: llama.cpp or transformers.",
        shown="llama.cpp if installed",
        group=VERIFYING,
    ),
]
LongTokensOption = Annotated[
    int | None,
    option(
        "--long-tokens TOKENS",
        "Length of the long prompt.",
        shown="the window up to 8k, else the original window + 256",
        group=VERIFYING,
    ),
]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Output folder of extend, or any checkpoint folder.")],
    to: Annotated[str, option("--to FORMAT", "hf (safetensors), gguf (llama.cpp) or adapter (LoRA alone).")],
    out: Annotated[Path | None, option("--out FOLDER", "New folder for the export.", shown="RUN-FORMAT")] = None,
    dtype: DtypeOption = None,
    rank: RankOption = None,
    engine: EngineOption = None,
    long_tokens: LongTokensOption = None,
    base: options.Base = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Convert an extended model, and verify the result.

    The export is loaded again and compared with the trained model: rotary tables, lengths, tokens, logits and greedy
    text. If it differs by more than the number format explains, it is deleted.

    Example: skipwise export runs/embedded-1k --to gguf

    Example: skipwise export ./my-lora-run --to hf --dtype bfloat16 --out my-model-32k-merged
    """
    from skipwise.export import check_format

    check_format(to)
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
        trust_remote_code=trust_remote_code,
        progress=not as_json,
    )
    if as_json:
        print_json({**asdict(made), "folder": str(made.folder)})
    else:
        _print(made)


def _print(made: "Exported") -> None:
    print(f"{made.folder}: loaded again by {made.engine}, compared with the trained model")
    for verdict in made.verdicts:
        print(verdict.line)
    for name, command in made.commands.items():
        print(f"{name}:\n    {command}")
    for note in made.notes:
        print(f"note: {note}")

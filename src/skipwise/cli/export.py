"""`skipwise export`: an extended model as safetensors, a GGUF file or an adapter, compared with what was trained."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import check_new, option, print_json
from skipwise.errors import ConfigError
from skipwise.model.place import find_place, path_beside

if TYPE_CHECKING:
    from skipwise.export import Destination, Exported

VERIFYING, UPLOADING = "Verifying the export", "Uploading it"

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
    option("--rank N", "For an adapter after full tuning: LoRA rank of the difference from the base model.", min=1),
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
        "Length of the long prompt of the comparison.",
        shown="the window up to 8k, else the original window + 256",
        group=VERIFYING,
    ),
]
BaseWeightOption = Annotated[
    float | None,
    option(
        "--merge-with-base WEIGHT",
        "Mean of base and extended weights. WEIGHT is the base's share, 0 to 1.",
        shown="the extended weights",
    ),
]
PushOption = Annotated[
    str | None, option("--push OWNER/NAME", "Upload it to the Hugging Face hub, with card and record.", group=UPLOADING)
]
PublicOption = Annotated[
    bool, option("--public", "With --push: a public repository.", shown="private", group=UPLOADING)
]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Output folder of extend, or any checkpoint folder.")],
    to: Annotated[str, option("--to FORMAT", "hf (safetensors), gguf (llama.cpp) or adapter (LoRA alone).")],
    out: Annotated[Path | None, option("--out FOLDER", "New folder for the export.", shown="RUN-FORMAT")] = None,
    dtype: DtypeOption = None,
    rank: RankOption = None,
    engine: EngineOption = None,
    long_tokens: LongTokensOption = None,
    merge_with_base: BaseWeightOption = None,
    push: PushOption = None,
    public: PublicOption = False,
    base: options.Base = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Convert an extended model, and verify the result.

    The export is loaded again and compared with the trained model: rotary tables, lengths, tokens, logits and greedy
    text. If it differs by more than the number format explains, it is deleted.

    Nothing is sent without --push. With it, paths and names of documents are removed from card and records, all files
    go to a private repository in one commit, and the hub's hashes are compared with the files'.

    Example: skipwise export runs/embedded-1k --to gguf

    Example: skipwise export ./my-model-32k --to hf --dtype bfloat16 --out my-model-32k-bf16

    Example: skipwise export ./my-model-32k --to gguf --push me/my-model-32k-gguf
    """
    from skipwise.export import check_format, default_ending
    from skipwise.export.earlier import is_export_of

    check_format(to)
    folder = out or path_beside(run, default_ending(to, merge_with_base))
    # After a push that was interrupted, the export is there already.
    is_there = push is not None and is_export_of(
        folder, run, to=to, dtype=dtype, rank=rank, base_weight=merge_with_base
    )
    _check(run, base, None if is_there else out, merge_with_base)
    destination = _destination(push, to, public=public)
    if is_there and destination is not None:
        _push(folder, destination, as_json=as_json)
        return
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
    if destination is not None:
        _push(made.folder, destination, as_json=as_json)
    elif as_json:
        print_json({**asdict(made), "folder": str(made.folder)})
    else:
        _print(made)


def _check(run: str, base: str | None, out: Path | None, base_weight: float | None) -> None:
    from skipwise.export import check_base_weight

    if base_weight is not None:
        check_base_weight(base_weight)
    check_new("--out", out)
    for place in (run, base):
        if place is not None:
            find_place(place)


def _destination(push: str | None, to: str, *, public: bool) -> "Destination | None":
    """Where to push, checked before anything is loaded; None without a push."""
    if push is None:
        if public:
            raise ConfigError("--public is for --push OWNER/NAME; give both, or neither")
        return None
    from skipwise.export import find_destination

    return find_destination(push, to, public=public)


def _push(folder: Path, destination: "Destination", *, as_json: bool) -> None:
    from huggingface_hub.utils import disable_progress_bars

    from skipwise.export import Exported, push

    if as_json:
        disable_progress_bars()
    address = push(folder, destination)
    made = Exported.read(folder)
    if as_json:
        print_json({**asdict(made), "folder": str(folder), "pushed": address, "private": destination.private})
        return
    _print(made)
    seen = "private" if destination.private else "public"
    print(f"pushed to {address} ({seen}); the hub's hashes are those of the files in {folder}")


def _print(made: "Exported") -> None:
    print(f"{made.folder}: loaded again by {made.engine}, compared with the {made.reference}")
    for verdict in made.verdicts:
        print(verdict.line)
    for name, command in made.commands.items():
        print(f"{name}:\n    {command}")
    for note in made.notes:
        print(f"note: {note}")

"""`skipwise eval build-suite`: a private benchmark from a folder of documents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import JsonOption, SkipUnreadableOption, TrustOption, print_json
from skipwise.cli.tokenizer import load_tokenizer
from skipwise.window import parse_length

if TYPE_CHECKING:
    from skipwise.evals.suite import SuiteFolder

_EXAMPLE = "skipwise eval build-suite reports/ --out suite --tokenizer ./my-model --length 2k,8k,32k"


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(name="eval build-suite", epilog=f"Example: {_EXAMPLE}")(build_suite)


def build_suite(
    documents: Annotated[
        str, typer.Argument(metavar="DOCS", help="A folder of documents, a file, a hub data set, or stdlib.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the suite goes; must not be there yet.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="MODEL", help="Whose tokens lengths are counted in.")
    ],
    length: Annotated[
        str,
        typer.Option("--length", metavar="TOKENS,...", help="Prompt lengths, such as 2k,8k; answers are counted in."),
    ],
    kinds: Annotated[
        str,
        typer.Option(
            "--kinds",
            metavar="NAME,...",
            help="fact, continue (with a control), order, which_document, in any number.",
        ),
    ] = "fact,continue,order,which_document",
    items: Annotated[int, typer.Option("--items", metavar="N", min=1, help="Questions of each kind and length.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")] = 0,
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Entry with the text.")] = "text",
    skip_unreadable: SkipUnreadableOption = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Use only the documents that skipwise keeps out of training.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a private benchmark of documents: no network, no second model, the same bytes for the same seed."""
    lengths = [parse_length(part) for part in length.split(",")]

    with loading(f"reading {documents}"):
        from skipwise.data.documents import look_through
        from skipwise.evals import suite

    built = suite.build_suite(
        look_through(documents, field=field, skip_unreadable=skip_unreadable),
        load_tokenizer(tokenizer, trust_remote_code=trust_remote_code),
        out,
        lengths=lengths,
        num_items=items,
        kinds=[kind.strip() for kind in kinds.split(",")],
        seed=seed,
        held_out=held_out,
        tokenizer_name=Path(tokenizer).name,
        progress=not as_json,
    )
    if as_json:
        print_json({"folder": str(built.folder), **built.index})
    else:
        _print_summary(built)


def _print_summary(built: "SuiteFolder") -> None:
    """One row a kind and length."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "tokens", "items", "of these joined", "chance", box=None, padding=(0, 2, 0, 0))
    for length in built.lengths:
        for kind, about in built.kinds.items():
            items = built.items(length, kind)
            counts = [item.num_tokens for item in items]
            joined = built.index["documents"]["items_with_joined"][f"{length}-{kind}"]
            table.add_row(kind, f"{min(counts)} to {max(counts)}", str(len(items)), str(joined), f"{about['chance']:g}")
    console = Console()
    console.print(table)
    console.print(
        f"\n{built.folder} holds text of {built.index['documents']['number']} documents; its README.md says how to "
        "run it",
        soft_wrap=True,
    )

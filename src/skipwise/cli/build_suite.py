"""`skipwise eval build-suite`: a private benchmark from a folder of documents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.loading import load_tokenizer, loading
from skipwise.cli.options import check_new, option, print_json, print_table
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.evals.suite import SuiteFolder


LanguageOption = Annotated[
    str | None,
    option(
        "--language CODE",
        "Language of questions and planted lines: en, de, fr, es, ja, zh or ko.",
        shown="the documents' own",
    ),
]
HeldOutOption = Annotated[
    bool, option("--held-out", "Use only documents that are held out from training.", group=options.DOCUMENTS)
]


def build_suite(
    documents: Annotated[
        str,
        typer.Argument(metavar="DOCS", help="A folder of documents, a file, a Hugging Face data set, or stdlib."),
    ],
    out: Annotated[Path, option("--out FOLDER", "New folder for the suite.")],
    tokenizer: Annotated[str, option("--tokenizer MODEL", "Model whose tokenizer counts the tokens.")],
    length: Annotated[Any, option("--length TOKENS,...", "Prompt lengths, answers included, such as 2k,8k.")],
    kinds: Annotated[
        Any, option("--kinds NAME,...", "Kinds of questions: fact, continue, order, which_document.")
    ] = "fact,continue,order,which_document",
    items: Annotated[int, option("--items N", "Questions of each kind and length.", min=1)] = 50,
    language: LanguageOption = None,
    seed: options.Seed = 0,
    held_out: HeldOutOption = False,
    field: options.Field = "text",
    skip_unreadable: options.SkipUnreadable = False,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Build a benchmark from your own documents.

    Needs no network and no second model. The same seed gives the same files.

    Example: skipwise eval build-suite stdlib --out suite --tokenizer embedded --length 1k,4k --items 10
    """
    from skipwise.data.documents import require_there
    from skipwise.evals.catalogue import SUITE_KINDS, check_known
    from skipwise.evals.languages import language_named

    for kind in kinds:
        check_known("kind", kind, SUITE_KINDS)
    if language is not None:
        language_named(language)
    check_new("--out", out)
    find_place(tokenizer)
    require_there(documents)
    with loading(f"reading {documents}"):
        from skipwise.data.documents import look_through
        from skipwise.evals import suite

    built = suite.build_suite(
        look_through(documents, field=field, skip_unreadable=skip_unreadable),
        load_tokenizer(tokenizer, trust_remote_code=trust_remote_code),
        out,
        lengths=length,
        num_items=items,
        kinds=kinds,
        seed=seed,
        held_out=held_out,
        language=language,
        tokenizer_name=Path(tokenizer).name,
        progress=not as_json,
    )
    if as_json:
        print_json({"folder": str(built.folder), **built.index})
    else:
        _print_summary(built)


def _print_summary(built: "SuiteFolder") -> None:
    """One row for each kind and length."""
    rows = []
    for length in built.lengths:
        for kind, about in built.kinds.items():
            items = built.items(length, kind)
            counts = [item.num_tokens for item in items]
            joined = built.index["documents"]["items_with_joined"][f"{length}-{kind}"]
            rows.append((kind, f"{min(counts)} to {max(counts)}", str(len(items)), str(joined), f"{about['chance']:g}"))
    print_table(("kind", "tokens", "items", "of these joined", "chance"), rows)
    number = built.index["documents"]["number"]
    print(f"\n{built.folder} holds text of {number} documents; its README.md says how to run it")

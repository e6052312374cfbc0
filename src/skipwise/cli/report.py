"""`skipwise report`: from results to one page for people, and to Markdown, CSV and a model card."""

import os
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli.options import JsonOption, print_json, read_length
from skipwise.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise report base=base.jsonl runs/comparison my-model-32k")(report)


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDS...",
            help="Results of skipwise eval (FILE.jsonl, NAME=FILE.jsonl), folders of comparisons, extended models.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page; an older one is replaced.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Title of the page.", show_default="the windows")
    ] = None,
    original: Annotated[
        int | None,
        typer.Option(
            "--original",
            parser=read_length,
            metavar="TOKENS",
            help="Window of the base model.",
            show_default="what the records say",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write verdict and tables as Markdown, too.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one row for each record, too.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", metavar="FOLDER", help="Put the results into this extended model's card, too."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            metavar="FILE",
            help="Show a few outputs from this samples file; no text of documents or outputs is shown otherwise.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """One page on what an extension bought: the verdict in words, then every measurement with its interval."""
    for name, path in (("--out", out), ("--markdown", markdown), ("--csv", csv)):
        if path is not None:
            _check_writable(name, path)

    from skipwise.report.model_card import state_results
    from skipwise.report.reading import read_evidence
    from skipwise.report.report import Report

    made = Report.of(read_evidence(sources, original_tokens=original, samples=samples), title=title)
    if card is not None:
        # What may be refused comes first.
        state_results(card, made.evidence.arms)
    made.write_page(out)
    if markdown is not None:
        markdown.write_text(made.markdown(), encoding="utf-8", errors="backslashreplace")
    if csv is not None:
        made.write_csv(csv)
    if as_json:
        print_json({"out": str(out), **made.to_json()})
        return
    for sentence in made.verdict:
        print(sentence)
    print(f"page: {out}")


def _check_writable(name: str, path: Path) -> None:
    """Drawing takes a while: what cannot be written is refused before it."""
    if path.is_dir():
        raise ConfigError(f"{name} is {str(path)!r}, a folder; give a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{name} is {str(path)!r}, which cannot be written; give a path in a folder that can be")

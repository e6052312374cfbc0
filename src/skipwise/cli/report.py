"""`skipwise report`: from results to one page for people, and to Markdown, CSV and a model card."""

from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli import options
from skipwise.cli.options import check_writable, option, print_json


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDS...",
            help="Results of skipwise eval (FILE.jsonl, NAME=FILE.jsonl), folders of comparisons, extended models.",
        ),
    ],
    out: Annotated[Path, option("--out FILE", "The page; an older one is replaced.")] = Path("report.html"),
    title: Annotated[str | None, option("--title TEXT", "Title of the page.", shown="the windows")] = None,
    original: Annotated[
        int | None, option("--original TOKENS", "Window of the base model.", shown="what the records say")
    ] = None,
    markdown: Annotated[Path | None, option("--markdown FILE", "Also write verdict and tables as Markdown.")] = None,
    csv: Annotated[Path | None, option("--csv FILE", "Also write one row for each record.")] = None,
    card: Annotated[Path | None, option("--card FOLDER", "Also put the results into this model's card.")] = None,
    samples: Annotated[
        Path | None, option("--samples FILE", "Show a few outputs of this file; otherwise no text is shown.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """One page on what an extension bought: what to do and why, then every measurement with its interval.

    Example: skipwise report base=base.jsonl runs/comparison my-model-32k
    """
    for flag, path in (("--out", out), ("--markdown", markdown), ("--csv", csv)):
        check_writable(flag, path)

    from skipwise.report.model_card import state_results
    from skipwise.report.reading import read_evidence
    from skipwise.report.report import Report

    made = Report.of(read_evidence(sources, original_tokens=original, samples=samples), title=title)
    if card is not None:
        # First, since this may be refused.
        state_results(card, made.evidence.arms)
    made.write_page(out)
    if markdown is not None:
        markdown.write_text(made.markdown(), encoding="utf-8", errors="backslashreplace")
    if csv is not None:
        made.write_csv(csv)
    if as_json:
        print_json({"out": str(out), **made.to_json()})
        return
    for line in made.lines:
        print(line)
    print(f"page: {out}")

"""`skipwise report`: from results to one page for people, and to Markdown, CSV and a model card."""

from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli import options
from skipwise.cli.options import OUTPUT, check_writable, option, print_json


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDS...",
            help="Results of eval (FILE.jsonl or NAME=FILE.jsonl), folders of comparisons, extended models.",
        ),
    ],
    out: Annotated[Path, option("--out FILE", "The page. An existing one is replaced.")] = Path("report.html"),
    title: Annotated[str | None, option("--title TEXT", "Title of the page.", shown="made from the windows")] = None,
    original: Annotated[
        int | None, option("--original TOKENS", "Context window of the base model.", shown="as recorded")
    ] = None,
    samples: Annotated[
        Path | None, option("--samples FILE", "Show a few outputs from this file. Otherwise no text is shown.")
    ] = None,
    markdown: Annotated[
        Path | None, option("--markdown FILE", "Also write verdict and tables as Markdown.", group=OUTPUT)
    ] = None,
    csv: Annotated[Path | None, option("--csv FILE", "Also write a row for each record.", group=OUTPUT)] = None,
    card: Annotated[
        Path | None, option("--card FOLDER", "Also write the results into this model's card.", group=OUTPUT)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make one page from measurements.

    The verdict in words comes first, then every measurement with its interval.

    Example: skipwise report results.jsonl

    Example: skipwise report base=base.jsonl extended=extended.jsonl runs/my-model-32k-compared
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
    for sentence in made.verdict:
        print(sentence)
    print(f"page: {out}")

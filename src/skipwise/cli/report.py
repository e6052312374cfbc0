"""`skipwise report`: from results, or from a server's audit log, to one page for people."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli import options
from skipwise.cli.options import OUTPUT, check_writable, option, print_json, print_table
from skipwise.errors import ConfigError

# Of logs, this takes a few seconds.
_SLOW_BYTES = 64 << 20


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDS...",
            help="Results of eval (FILE.jsonl or NAME=FILE.jsonl), folders of comparisons, extended models. With "
            "--operations: audit logs of serve, also gzipped ones.",
        ),
    ],
    operations: Annotated[
        bool, option("--operations", "Report on a server's audit logs: requests, tokens, waiting times, limits.")
    ] = False,
    out: Annotated[
        Path | None,
        option("--out FILE", "The page. An existing one is replaced.", shown="report.html or operations.html"),
    ] = None,
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
    out = out or Path("operations.html" if operations else "report.html")
    for flag, path in (("--out", out), ("--markdown", markdown), ("--csv", csv)):
        check_writable(flag, path)
    if operations:
        refused = {"--title": title, "--markdown": markdown, "--csv": csv, "--card": card, "--samples": samples}
        for flag, value in refused.items():
            if value is not None:
                raise ConfigError(f"{flag} is {str(value)!r}; it is of results, and --operations reads audit logs")
        _report_operations([Path(source) for source in sources], out, original=original, as_json=as_json)
        return

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


def _report_operations(files: list[Path], out: Path, *, original: int | None, as_json: bool) -> None:
    """A page on audit logs, and its tables in the terminal."""
    from skipwise.report.quantities import bytes_text
    from skipwise.serve.operations import Operations
    from skipwise.serve.operations_page import in_short, operations_json, sections, write_operations_page

    size = sum(file.stat().st_size for file in files if file.is_file())
    if size >= _SLOW_BYTES:
        print(f"reading {bytes_text(size)} of logs", file=sys.stderr)
    found = Operations.read(files, original_tokens=original)
    write_operations_page(found, out, files)
    if as_json:
        print_json({"out": str(out), **operations_json(found)})
        return
    for sentence in in_short(found):
        print(sentence)
    for section in sections(found):
        for table in section.tables:
            print()
            print_table(table.header, table.rows, title=table.title, numbers=not table.wraps)
        if not section.tables:
            print(f"\n{section.title}:", *section.words, sep="\n")
    print(f"\npage: {out}")

"""`skipwise compare`: arms over one model on equal tokens, from a YAML file, flags, or both."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import JsonOption, print_json, read_length
from skipwise.cli.settings import assigned, given
from skipwise.config.defaults import LEARNING_RATE, STEPS
from skipwise.window import parse_length

INTERRUPTED = 130
NEGATIVE = 1

EPILOG = """Example: skipwise compare ./my-model --target 32k --data docs/ --arms base,plain,pose,full --seeds 0,1

Example: skipwise compare comparison.yaml --resume
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(compare)


def compare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.yaml|MODEL",
            help="The comparison as YAML, flags lie over it; or the base model: a folder, a hub name, a .gguf file or "
            "'embedded'.",
        ),
    ],
    target: Annotated[
        int | None, typer.Option(parser=read_length, metavar="TOKENS", help="Window to extend to, such as 32k.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Of base, interpolation-only, plain, randpos, cream, sentences, pose, recipe, full, full-equal-time.",
            show_default="base,interpolation-only,plain,randpos,pose",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="NAME", help="The arm the others are held to.", show_default="pose")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,...", help="Seeds of training.", show_default="0")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="File, folder, pattern, hub data set or stdlib; may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each arm.", show_default=str(STEPS))] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=str(LEARNING_RATE))
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Lengths to measure at.",
            show_default="the original window doubled to the target",
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A suite of 'skipwise eval build-suite', measured too.")
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(metavar="TOKENS,...", help="Targets at which a step's time and memory are measured too."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where all goes.", show_default="runs/<model>-<target>-compared"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the YAML file, such as training.bf16=true."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped; arms may be added.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: failed arms once more.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare ways to extend a model on the same tokens, seeds and evaluation, and write a report."""
    from skipwise.config import merge_settings, read_settings

    from_file = Path(source).suffix in (".yaml", ".yml")
    tree: dict[str, Any] = read_settings(source) if from_file else {"model": source}
    flags: dict[str, Any] = {
        "target": target,
        "arms": arms and [name.strip() for name in arms.split(",")],
        "reference": reference,
        "seeds": seeds and [_number(seed) for seed in seeds.split(",")],
        "data": data and {"source": data if len(data) > 1 else data[0]},
        "training": given({"max_steps": steps, "learning_rate": learning_rate}),
        "evaluation": length and {"lengths": [parse_length(part) for part in length.split(",")]},
        "costs": costs and {"targets": [parse_length(part) for part in costs.split(",")]},
        "output": output,
    }
    tree = merge_settings(tree, given(flags))
    for assignment in settings or []:
        tree = merge_settings(tree, assigned(assignment))
    tree.setdefault("arms", ["base", "interpolation-only", "plain", "randpos", "pose"])

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("skipwise").setLevel(logging.WARNING if as_json else logging.INFO)
    with loading("making the comparison ready"):
        from skipwise.compare import Comparison, ComparisonStopped
        from skipwise.compare import compare as run

    if suite is not None:
        evaluation = dict(tree.get("evaluation") or {})
        evaluation["suites"] = [*evaluation.get("suites", []), str(suite)]
        tree["evaluation"] = evaluation
    comparison = Comparison.from_mapping(tree)
    try:
        results = run(
            comparison, resume=resume, retry_failed=retry_failed, command=shlex.join(["skipwise", *sys.argv[1:]])
        )
    except ComparisonStopped:
        again = shlex.join(["skipwise", "compare", f"{comparison.output}/comparison.yaml", "--resume"])
        print(f"stopped, what is done is kept; go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    verdict = _write_report(results.folder)
    if as_json:
        print_json({"folder": str(results.folder), "verdict": verdict, **results.about})
    else:
        _show(results, verdict)
    if len(results.failed) == len(comparison.arms):
        raise typer.Exit(NEGATIVE)


def _write_report(folder: Path) -> list[str]:
    """Writes the page, the tables as Markdown and the records as CSV beside them; what it says in short."""
    from skipwise.report.reading import read_evidence
    from skipwise.report.report import Report

    report = Report.of(read_evidence([str(folder)]))
    report.write_page(folder / "report.html")
    (folder / "report.md").write_text(report.markdown(), encoding="utf-8", errors="backslashreplace")
    report.write_csv(folder / "records.csv")
    return list(report.verdict)


def _show(results: Any, verdict: list[str]) -> None:
    from rich.console import Console

    from skipwise.report.evidence import Arm
    from skipwise.report.tables import results_table

    arms = {}
    for record in results.records:
        if record.task not in ("regression", "serving"):
            arms.setdefault(record.details["compared"], []).append(record)
    if arms:
        Console().print(results_table([Arm(name=name, results=of_arm) for name, of_arm in arms.items()]))
    for name in results.failed:
        run = next(run for run in results.about["arms"][name]["runs"] if run["status"] == "failed")
        print(f"{name} failed: {run['failure']}: {run['error']}")
    for sentence in verdict:
        print(sentence)
    print(f"page: {results.folder / 'report.html'}   all that was measured: {results.folder}")


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"{text!r} is no seed; give whole numbers separated by commas, such as 0,1,2")
    return int(text)

"""`skipwise compare`: arms over one model on equal tokens, from a YAML file, flags, or both."""

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import INTERRUPTED, NEGATIVE, data_setting, option, print_json, settings_over
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.compare.results import Results
    from skipwise.evals import EvalResult


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG.yaml|MODEL",
        help="A comparison as YAML, which flags override; or the base model: a folder, a Hugging Face name, a .gguf "
        "file or 'embedded'.",
    ),
]
ArmsOption = Annotated[
    Any,
    option(
        "--arms NAME,...",
        "What to compare: base, interpolation-only, dynamic-ntk, dca, string, plain, randpos, cream, sentences, "
        "endprompt, pose, recipe, full, full-equal-time.",
        shown="base, interpolation-only, plain, randpos, pose",
    ),
]
OutputOption = Annotated[
    str | None,
    option("--output FOLDER", "Folder of runs, records and page.", shown="runs/<model>-<target>-compared"),
]


def compare(
    source: SourceArgument,
    target: options.Target = None,
    arms: ArmsOption = None,
    data: options.Data = None,
    suite: Annotated[
        Path | None, option("--suite FOLDER", "Also measure this suite, made by eval build-suite.")
    ] = None,
    output: OutputOption = None,
    settings: options.Setting = None,
    resume: Annotated[bool, option("--resume", "Continue where it stopped. Arms may be added.")] = False,
    retry_failed: Annotated[bool, option("--retry-failed", "With --resume: run failed arms again.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare ways to extend a model on equal tokens.

    All arms are trained on the same tokens and seeds and evaluated alike. Writes a page at the end.

    \b
    Arms:
      base                the unchanged model, beyond its window
      interpolation-only  the base with rescaled positions, untrained
      plain               training on short windows without skips
      pose                training with skips, as published
      recipe              training with the recipe growing, skipwise's own
      full                training on windows of the target length
      full-equal-time     the same, for as long as the reference arm trains
      randpos, cream, sentences
                          training with other position samplers

    Example: skipwise compare embedded --target 1k --set training.max_steps=20

    Example: skipwise compare ./my-model --target 32k --data docs/ --arms base,plain,pose,full --set seeds=[0,1]

    \b
    Useful with --set:
      seeds=[0,1]                  train each arm with each of these seeds
      reference=pose               the arm that the others are compared with
      training.max_steps=200       optimizer steps of each arm
      evaluation.lengths=[4k,32k]  lengths to measure
      costs.targets=[8k,32k]       also measure training cost for these targets
    """
    from skipwise.compare import Comparison
    from skipwise.config import read_settings

    below = read_settings(source) if Path(source).suffix in (".yaml", ".yml") else {"model": source}
    flags = {"target": target, "arms": arms, "data": data_setting(data), "output": output}
    tree = settings_over(below, flags, settings)
    tree.setdefault("arms", ["base", "interpolation-only", "plain", "randpos", "pose"])
    evaluation = tree.get("evaluation") or {}
    if suite is not None and isinstance(evaluation, Mapping):
        tree["evaluation"] = {**evaluation, "suites": [*evaluation.get("suites", []), str(suite)]}
    _check_there(tree)
    logging.getLogger("skipwise").setLevel(logging.WARNING if as_json else logging.INFO)
    comparison = Comparison.from_mapping(tree)
    with loading("preparing the comparison"):
        from skipwise.compare import ComparisonStopped
        from skipwise.compare import compare as run

    command = shlex.join(["skipwise", *sys.argv[1:]])
    try:
        results = run(comparison, resume=resume, retry_failed=retry_failed, command=command)
    except ComparisonStopped:
        again = shlex.join(["skipwise", "compare", f"{comparison.output}/comparison.yaml", "--resume"])
        print(f"stopped; what is done is kept. Continue with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _report(results, as_json)
    if len(results.failed) == len(comparison.arms):
        raise typer.Exit(NEGATIVE)


def _check_there(tree: Mapping[str, Any]) -> None:
    """Refuses a model and documents that do not exist; `Comparison` checks the rest."""
    from skipwise.data.documents import require_there

    if isinstance(tree.get("model"), str):
        find_place(tree["model"])
    data = tree.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    sources = [source] if isinstance(source, str) else source
    if isinstance(sources, list) and all(isinstance(one, str) for one in sources):
        require_there(sources)


def _report(results: "Results", as_json: bool) -> None:
    """Writes the page, the tables as Markdown and the records as CSV, and prints the results."""
    from skipwise.report.reading import read_evidence
    from skipwise.report.report import Report

    folder = results.folder
    report = Report.of(read_evidence([str(folder)]))
    report.write_page(folder / "report.html")
    (folder / "report.md").write_text(report.markdown(), encoding="utf-8", errors="backslashreplace")
    report.write_csv(folder / "records.csv")
    if as_json:
        decision = report.decision and report.decision.to_json()
        print_json({"folder": str(folder), "decision": decision, "verdict": list(report.verdict), **results.about})
    else:
        _print(results, report.lines)


def _print(results: "Results", lines: Sequence[str]) -> None:
    from rich.console import Console

    from skipwise.report.evidence import Arm
    from skipwise.report.tables import results_table

    arms: dict[str, list[EvalResult]] = {}
    for record in results.records:
        if record.task not in ("regression", "serving"):
            arms.setdefault(record.details["compared"], []).append(record)
    if arms:
        Console().print(results_table([Arm(name=name, results=of_arm) for name, of_arm in arms.items()]))
    for name in results.failed:
        run = next(run for run in results.about["arms"][name]["runs"] if run["status"] == "failed")
        print(f"{name} failed: {run['failure']}: {run['error']}")
    for line in lines:
        print(line)
    print(f"page: {results.folder / 'report.html'}   all measurements: {results.folder}")

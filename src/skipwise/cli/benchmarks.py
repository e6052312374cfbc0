"""`skipwise eval benchmarks`: what an extension costs on standard benchmarks of short text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import AttentionOption, DtypeOption, JsonOption, ModelArgument, TrustOption
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.evals import EvalResult

EPILOG = """Example: skipwise eval benchmarks ./my-model-32k --out benchmarks.jsonl

Example: skipwise eval benchmarks ./my-model-32k --benchmark piqa,arc_challenge --tasks-folder ./data --limit 200
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(name="eval benchmarks", epilog=EPILOG)(benchmarks)


def benchmarks(
    model: ModelArgument,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            metavar="NAME,...",
            help="boolq, piqa, winogrande, truthfulqa_mc2, arc_challenge (25 shots), hellaswag (10 shots), or any that "
            "--tasks-folder defines.",
            show_default="these six",
        ),
    ] = None,
    tasks_folder: Annotated[
        Path | None,
        typer.Option(
            "--tasks-folder",
            metavar="DIR",
            help="Local data: copies of data sets in DIR/NAME, and task definitions of lm-evaluation-harness.",
            show_default="downloaded, or from the cache",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Only so many questions of each.", show_default="all"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Inputs that are run together.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Append each result, a line of JSON.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="FILE", help="Append each question with its hash and output.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the choice of shots.")] = 0,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure standard benchmarks of short text by lm-evaluation-harness (extra: bench).

    Under torchrun or accelerate launch the questions are shared out over the processes.
    """
    find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise.distributed import process_state
        from skipwise.evals.benchmarks import BENCHMARKS, check_harness, run_benchmarks
        from skipwise.model import load_model

    check_harness()
    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    network: Any = loaded.model
    network.to(process_state().device)
    results = run_benchmarks(
        network,
        loaded.tokenizer,
        list(BENCHMARKS) if benchmark is None else [name.strip() for name in benchmark.split(",")],
        tasks_folder=tasks_folder,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        out=out,
        samples_out=samples,
        progress=not as_json,
    )
    if not process_state().is_main_process:
        return
    if as_json:
        for result in results:
            print(result.to_json())
    else:
        _print_table(results)


def _print_table(results: Sequence["EvalResult"]) -> None:
    """One row a metric."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "shots", "measure", "value", "95% interval", "questions", box=None, padding=(0, 2, 0, 0))
    for result in results:
        table.add_row(
            result.task,
            str(result.details["shots"]),
            result.metric,
            f"{result.value:.4g}",
            "-" if result.ci_low is None else f"{result.ci_low:.4g} to {result.ci_high:.4g}",
            str(result.num_samples),
        )
    Console().print(table)

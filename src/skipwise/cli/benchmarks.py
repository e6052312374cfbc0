"""`skipwise eval benchmarks`: what an extension costs on standard benchmarks of short text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import option, print_table
from skipwise.errors import ConfigError
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.evals import EvalResult

NamesOption = Annotated[
    Any,
    option(
        "--benchmark NAME,...",
        "boolq, piqa, winogrande, truthfulqa_mc2, arc_challenge (25 shots), hellaswag (10 shots), or any that "
        "--tasks-folder defines.",
        shown="these six",
    ),
]
TasksFolderOption = Annotated[
    Path | None,
    option(
        "--tasks-folder FOLDER",
        "Local copies of data sets in FOLDER/NAME, and task definitions of lm-evaluation-harness.",
        shown="downloaded or cached",
    ),
]


def benchmarks(
    model: options.Model,
    benchmark: NamesOption = None,
    tasks_folder: TasksFolderOption = None,
    limit: Annotated[int | None, option("--limit N", "Questions per benchmark, at most.", shown="all", min=1)] = None,
    batch_size: Annotated[int, option("--batch-size N", "Batch size.", min=1)] = 1,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    trust_remote_code: options.Trust = False,
    out: options.Out = None,
    samples: options.Samples = None,
    as_json: options.Json = False,
) -> None:
    """Measure standard benchmarks of short text.

    Shows what an extension costs on short text. Needs pip install 'skipwise[bench]', which brings
    lm-evaluation-harness. Under torchrun, processes share the questions.

    Example: skipwise eval benchmarks ./my-model-32k --benchmark piqa,arc_challenge --limit 200
    """
    names = _checked_names(benchmark, tasks_folder)
    find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise.distributed import process_state
        from skipwise.evals.benchmarks import check_harness, run_benchmarks
        from skipwise.model import load_model

    check_harness()
    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    network: Any = loaded.model
    results = run_benchmarks(
        network.to(process_state().device),
        loaded.tokenizer,
        names,
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
    """One row for each metric."""
    headings = ("benchmark", "shots", "measure", "value", "95% interval", "questions")
    rows = []
    for result in results:
        interval = "-" if result.ci_low is None else f"{result.ci_low:.4g} to {result.ci_high:.4g}"
        shots, value = str(result.details["shots"]), f"{result.value:.4g}"
        rows.append((result.task, shots, result.metric, value, interval, str(result.num_samples)))
    print_table(headings, rows)


def _checked_names(names: list[str] | None, tasks_folder: Path | None) -> list[str]:
    """The benchmarks to measure; what a tasks folder defines is known only to the harness."""
    from skipwise.evals.catalogue import BENCHMARK_NAMES
    from skipwise.names import did_you_mean

    if tasks_folder is not None and not tasks_folder.is_dir():
        raise ConfigError(
            f"--tasks-folder is {str(tasks_folder)!r} and no such folder exists; check its path", page="not-found"
        )
    if names is None:
        return list(BENCHMARK_NAMES)
    if not names:
        raise ConfigError(f"--benchmark names none; give some of {', '.join(BENCHMARK_NAMES)}")
    unknown = [name for name in names if name not in BENCHMARK_NAMES]
    if unknown and tasks_folder is None:
        near = did_you_mean(unknown[0], BENCHMARK_NAMES)
        raise ConfigError(
            f"the benchmark is {unknown[0]!r}; {near}give one of {', '.join(BENCHMARK_NAMES)}, or the folder that "
            "defines it with --tasks-folder"
        )
    return names

"""Standard benchmarks of short text by lm-evaluation-harness: did the longer window cost general ability?

    results = run_benchmarks(model, tokenizer, ["boolq", "arc_challenge"], tasks_folder="benchmarks/")

Prompts, scores and data are the harness's own. Without a network, data come from the `datasets` cache or from a folder:

    benchmarks/piqa/            a copy of the data set that the harness names: `hf download baber/piqa --repo-type
                                dataset --local-dir benchmarks/piqa`
    benchmarks/anything.yaml    your own task in the harness's format; paths of its data files are relative to it. It
                                may name Python functions, which are run: read it first.
"""

import contextlib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import yaml

from skipwise.errors import ConfigError, DataError
from skipwise.evals.context import EvalContext, result_files
from skipwise.names import did_you_mean
from skipwise.records.results import EvalResult, Measurement, Sample
from skipwise.records.stats import CONFIDENCE, Estimate

_INTERVAL = "normal, with the harness's standard error"
# For metrics that are not plain means.
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: its name in the harness.
        definition: path of the harness's task file, absolute or relative to the harness's own tasks.
        shots: number of solved examples in the prompt; None for the definition's own.
        metric: the metric that is usually reported; None for the definition's first.
    """

    uses_documents: ClassVar[bool] = False
    name: str
    definition: str
    shots: int | None = None
    metric: str | None = None


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(name="boolq", definition="super_glue/boolq/default.yaml", shots=0, metric="acc"),
        Benchmark(name="piqa", definition="piqa/piqa.yaml", shots=0, metric="acc"),
        Benchmark(name="winogrande", definition="winogrande/default.yaml", shots=0, metric="acc"),
        Benchmark(name="truthfulqa_mc2", definition="truthfulqa/truthfulqa_mc2.yaml", shots=0, metric="acc"),
        Benchmark(name="arc_challenge", definition="arc/arc_challenge.yaml", shots=25, metric="acc_norm"),
        Benchmark(name="hellaswag", definition="hellaswag/hellaswag.yaml", shots=10, metric="acc_norm"),
    )
}
"""The benchmarks of PoSE's table 3 (arXiv 2309.10400), with its shots."""


def check_harness() -> None:
    """Raises ConfigError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "benchmarks need lm-evaluation-harness, which is missing; run: pip install 'skipwise[bench]'",
            page="missing-extra",
        )


def run_benchmarks(
    model: Any,
    tokenizer: Any,
    names: Sequence[str] = tuple(BENCHMARKS),
    *,
    tasks_folder: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    samples_out: str | Path | None = None,
    progress: bool = True,
) -> list[EvalResult]:
    """Measures a model on standard benchmarks.

    Args:
        model: a causal language model of the transformers library, on its device.
        tokenizer: its tokenizer.
        names: names of `BENCHMARKS`, or of tasks that `tasks_folder` defines.
        tasks_folder: folder of data sets and definitions, which take precedence; see above.
        limit: maximum number of questions of each, for a quick look.
        batch_size: number of inputs run together.
        seed: seed of the choice of solved examples.
        out: file to append one line of JSON per result to.
        samples_out: the same per question, with the hash of its prompt, log-likelihoods or output, and score.
        progress: whether to show progress bars.

    Returns:
        All metrics of each benchmark, the usual one first. The length is that of the longest input. Intervals are
        `value -+ 1.96 standard errors`.

    Raises:
        ConfigError: the harness is not installed, or a name or a setting is unknown.
        DataError: the data of a benchmark are not available, or a prompt exceeds the model's window.
    """
    check_harness()
    folder = None if tasks_folder is None else Path(tasks_folder).expanduser().resolve()
    _check_arguments(tokenizer, folder, limit, batch_size)
    context = EvalContext(model=model, tokenizer=tokenizer, seed=seed, progress=progress)
    results: list[EvalResult] = []
    with _quiet_harness(progress), result_files(out, samples_out, partial(json.dumps, ensure_ascii=False)) as write:
        benchmarks = [_benchmark(name, folder) for name in names]
        # Load all data first, so that missing data is reported before anything is computed.
        tasks = [_load_task(benchmark, folder) for benchmark in benchmarks]
        for benchmark, task in zip(benchmarks, tasks, strict=True):
            measured = _measure(context, benchmark, task, limit, batch_size)
            results += measured.results
            write(measured)
    return results


def _check_arguments(tokenizer: Any, folder: Path | None, limit: int | None, batch_size: int) -> None:
    """Raises ConfigError if benchmarks cannot run with these."""
    for name, value in {"limit": limit, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise ConfigError(f"benchmarks' {name} is {value}; give a whole number of at least 1")
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            f"tasks folder is {str(folder)!r} and no such folder exists; check its path", page="not-found"
        )
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ConfigError(
            "the model's tokenizer has neither a beginning- nor an end-of-sequence token, and lm-evaluation-harness "
            "needs one of them; name one in its tokenizer_config.json",
            page="unsuitable-tokenizer",
        )


def _benchmark(name: str, folder: Path | None) -> Benchmark:
    """The benchmark of a name: the folder's, else the harness's."""
    from lm_eval.tasks import TaskManager

    own = {} if folder is None else TaskManager(include_path=str(folder), include_defaults=False).task_index
    own = {task: entry.yaml_path for task, entry in own.items() if entry.yaml_path is not None}
    if name in own:
        return Benchmark(name=name, definition=str(own[name]))
    if name not in BENCHMARKS:
        known = [*BENCHMARKS, *own]
        hint = did_you_mean(name, known).strip() or "use one of them, or define it in a tasks folder"
        raise ConfigError(f"benchmark is {name!r}; known are {', '.join(known)}: {hint}")
    return BENCHMARKS[name]


def _load_task(benchmark: Benchmark, folder: Path | None) -> Any:
    """The harness's task object with its data."""
    import lm_eval.tasks
    from datasets.exceptions import DatasetsError

    definition = Path(lm_eval.tasks.__file__).parent / benchmark.definition
    copied = None if folder is None else folder / benchmark.name
    with tempfile.TemporaryDirectory() as scratch:
        if copied is not None and copied.is_dir() and not Path(benchmark.definition).is_absolute():
            definition = _with_data_of(definition, copied, Path(scratch))
        try:
            # Relative paths of data files are relative to the definition.
            with contextlib.chdir(definition.parent):
                loaded = lm_eval.tasks.TaskManager(include_defaults=False).load([str(definition)])
        except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
            raise _data_error(benchmark, error) from error
    (task,) = loaded["tasks"].values()
    if benchmark.shots is not None:
        task.set_config(key="num_fewshot", value=benchmark.shots)
    return task


def _with_data_of(definition: Path, copied: Path, scratch: Path) -> Path:
    """A definition that differs from another only in its data."""
    changes: dict[str, Any] = {"include": str(definition), "dataset_path": str(copied)}
    if not (copied / "README.md").is_file():
        # Named configurations of a data set are declared there.
        changes["dataset_name"] = None
    path = scratch / definition.name
    path.write_text(yaml.safe_dump(changes), encoding="utf-8")
    return path


def _data_error(benchmark: Benchmark, error: Exception) -> DataError:
    import lm_eval.tasks

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if Path(benchmark.definition).is_absolute():
        return DataError(
            f"benchmark {benchmark.name} could not be loaded from {benchmark.definition} ({reason}); check the "
            "definition and where its data files lie"
        )
    entry = lm_eval.tasks.TaskManager(
        include_path=str((Path(lm_eval.tasks.__file__).parent / benchmark.definition).parent), include_defaults=False
    ).task_index[benchmark.name]
    source = (entry.cfg or {}).get("dataset_path")
    return DataError(
        f"benchmark {benchmark.name} needs the data set {source}, which could not be loaded ({reason}); where there is "
        f"a network, run: hf download {source} --repo-type dataset --local-dir DIR/{benchmark.name}, bring DIR here "
        "and give it as the tasks folder"
    )


def _measure(context: EvalContext, benchmark: Benchmark, task: Any, limit: int | None, batch_size: int) -> Measurement:
    """Runs one benchmark; every rank gets the whole result."""
    import lm_eval
    from lm_eval.evaluator import evaluate

    from skipwise.evals.harness import LoadedLM

    lm = LoadedLM(context.model, context.tokenizer, batch_size=batch_size, progress=context.progress)
    task.set_fewshot_seed(seed=context.seed)
    num_questions = min(limit or len(task.eval_docs), len(task.eval_docs))
    found: Any = evaluate(
        lm,
        {"tasks": {benchmark.name: task}},
        limit=limit,
        # The harness divides by n - 1.
        bootstrap_iters=_RESAMPLES if num_questions > 1 else 0,
    )
    details = {
        "shots": found["n-shot"][benchmark.name],
        "limit": limit,
        "harness": f"lm-eval {lm_eval.__version__}",
        "task_version": found["versions"][benchmark.name],
        "dataset": task.config.dataset_path,
    }
    estimates = _estimates(found["results"][benchmark.name], benchmark.metric)
    results = [
        context.result(
            benchmark, lm.longest_tokens, metric, estimate, num_samples=num_questions, interval=_INTERVAL, **details
        )
        for metric, estimate in estimates
    ]
    samples = [_sample(benchmark, lm.longest_tokens, question) for question in found["samples"][benchmark.name]]
    return Measurement(results, samples)


def _estimates(values: Mapping[str, Any], usual: str | None) -> Iterator[tuple[str, Estimate]]:
    """Metrics with their intervals from the harness's `{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}`."""
    names = [key for key in values if "," in key and "_stderr," not in key]
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    for key in sorted(names, key=lambda key: key.split(",")[0] != usual):
        metric, _, filter_name = key.partition(",")
        value, error = float(values[key]), values.get(f"{metric}_stderr,{filter_name}")
        name = metric if filter_name == "none" else key
        if isinstance(error, float):
            yield name, Estimate(value, value - z * error, value + z * error)
        else:
            yield name, Estimate(value, None, None)


def _sample(benchmark: Benchmark, length: int, question: Mapping[str, Any]) -> Sample:
    """The sample of one question."""
    return {
        "task": benchmark.name,
        "length_tokens": length,
        "document": question["doc_id"],
        "prompt_sha256": question["prompt_hash"],
        "target": question["target"],
        "output": question["filtered_resps"],
        "scores": {metric: question[metric] for metric in question["metrics"]},
    }


@contextlib.contextmanager
def _quiet_harness(progress: bool) -> Iterator[None]:
    """Within, the harness logs only errors, as it warns of every model that it did not load itself.

    Args:
        progress: whether to keep the bars of data sets being prepared.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    level, hide = logger.level, not progress and not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            datasets.enable_progress_bars()

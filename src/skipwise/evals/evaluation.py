"""`evaluate()`: tasks over lengths, each result written as soon as it is there."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals.cache import SampleCache
from skipwise.evals.catalogue import TASK_HOMES, check_known
from skipwise.evals.context import EvalContext, Task
from skipwise.evals.prompts import texts_of_any_length
from skipwise.records.results import EvalResult, sample_line
from skipwise.runtime.forward import check_length

logger = logging.getLogger("skipwise")

TASKS: dict[str, type] = {
    name: getattr(import_module(f"skipwise.evals.{home.rpartition('.')[0]}"), home.rpartition(".")[2])
    for name, home in TASK_HOMES.items()
}
"""The class of each task."""


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any] | Task],
    lengths: Sequence[int],
    documents: Sequence[np.ndarray] | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    samples_out: str | Path | None = None,
    cache: SampleCache | None = None,
    details: Mapping[str, Any] | None = None,
    allow_beyond: bool = False,
    progress: bool = True,
    share_out: bool = True,
    whole: Collection[str] = (),
) -> list[EvalResult]:
    """Measures a model with every task at every length that it can be measured at; what is left out is logged.

    Args:
        model: a causal language model of the transformers library.
        tokenizer: its tokenizer.
        tasks: names of `TASKS`, mappings with `kind` and the task's settings, or task objects.
        lengths: input lengths in tokens, those to be generated included.
        documents: token ids of each document, 1-D integers, for the tasks that need text; best never seen in training.
        seed: what every draw is derived from.
        out: file that gets one line of JSON for each result as soon as it is there, after what it already holds.
        samples_out: the same for each sample: its hash, its output, its score.
        cache: where samples of earlier runs are found, and new ones kept.
        details: JSON values that join the details of every result, such as the step of a checkpoint.
        allow_beyond: measure beyond the model's window on purpose.
        progress: show bars.
        share_out: each rank of a distributed run measures its share of the samples; of a model that is split over ranks
            all of them take part in each, and must measure all.
        whole: names of tasks that are refused unless they can be measured at every length.

    Returns:
        All results, in the order measured.

    Raises:
        ConfigError: when a task or setting cannot be used, or a task at no length.
        DataError: when the documents do not suffice.
        CheckpointError: when the model's logits are NaN.
    """
    made = [make_task(task) for task in tasks]
    if not made or not lengths or min(lengths) < 2:
        raise ConfigError(f"got {len(made)} tasks and lengths {list(lengths)}; give a task and lengths of 2 or more")
    if documents is None and (needing := [task.name for task in made if task.uses_documents]):
        raise DataError(f"no documents were given, and {', '.join(needing)} measure text: give token ids of documents")
    check_length(model.config, max(lengths), allow_beyond=allow_beyond)
    context = EvalContext(
        model=model,
        tokenizer=tokenizer,
        documents=() if documents is None else documents,
        seed=seed,
        cache=cache,
        details=details or {},
        progress=progress,
        share_out=share_out,
        is_recorded=out is not None,
    )
    # Every rank of a distributed run has all results; the first writes them down.
    files = (out, samples_out) if process_state().is_main_process else (None, None)
    results: list[EvalResult] = []
    with ExitStack() as stack:
        result_file, sample_file = (
            stack.enter_context(Path(path).open("a", encoding="utf-8")) if path is not None else None for path in files
        )
        stack.enter_context(_evaluation_mode(model))
        stack.enter_context(texts_of_any_length(tokenizer))
        of_tasks = _lengths_of_tasks(made, context, lengths, whole)
        # All that is asked for, by tokens of a length: it knows the time left where a single length's bar does not.
        whole = stack.enter_context(
            tqdm(
                desc="evaluation",
                total=sum(map(sum, of_tasks)),
                disable=not (progress and process_state().is_main_process and sum(map(len, of_tasks)) > 1),
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
                leave=False,
            )
        )
        for task, own in zip(made, of_tasks, strict=True):
            for measurement in task.run(context, own):
                results += measurement.results
                for file, lines in (
                    (sample_file, map(sample_line, measurement.samples)),
                    (result_file, (result.to_json() for result in measurement.results)),
                ):
                    if file is not None:
                        file.writelines(line + "\n" for line in lines)
                        file.flush()
                whole.update(max((result.length_tokens for result in measurement.results), default=0))
    return results


def make_task(spec: str | Mapping[str, Any] | Task) -> Task:
    """A task from its name, from a mapping with `kind` and settings, or as it is.

    Raises:
        ConfigError: when the kind or a setting is unknown, with the nearest name.
    """
    if not isinstance(spec, str | Mapping):
        return spec
    settings = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind: Any = settings.pop("kind", None)
    check_known("task", kind, TASKS)
    known = [field.name for field in fields(TASKS[kind])]
    for name in settings:
        check_known(f"setting of task {kind}", name, known)
    required = [entry.name for entry in fields(TASKS[kind]) if entry.default is MISSING is entry.default_factory]
    if missing := [name for name in required if name not in settings]:
        raise ConfigError(
            f"task {kind} needs {', '.join(missing)}, which is not given; on the command line, "
            f"--set {kind}.{missing[0]}=VALUE"
        )
    return TASKS[kind](**settings)


def _lengths_of_tasks(
    tasks: Sequence[Task], context: EvalContext, lengths: Sequence[int], whole: Collection[str]
) -> list[list[int]]:
    """The lengths that each task can be measured at.

    What cannot be measured is said before hours are spent on the rest, and all of it at once.

    Raises:
        ConfigError, DataError: some task can be measured at none, or not at all of them and has to.
    """
    found, problems, left_out = [], {}, []
    for task in tasks:
        try:
            task.check_lengths(context, lengths)
            found.append(list(lengths))
            continue
        except (ConfigError, DataError) as error:
            refused = error
        reasons = {length: _refusal(task, context, length) for length in lengths}
        kept = [length for length in lengths if reasons[length] is None]
        if not kept or task.name in whole:
            problems[str(refused)] = refused
            continue
        task.check_lengths(context, kept)
        found.append(kept)
        left_out += [
            f"{task.name} is not measured at {length} tokens: {reason}" for length, reason in reasons.items() if reason
        ]
    if problems:
        first = next(iter(problems.values()))
        raise type(first)("; ".join(problems)) from first
    if process_state().is_main_process:
        for line in left_out:
            logger.warning(line)
    return found


def _refusal(task: Task, context: EvalContext, length: int) -> str | None:
    """Why a task cannot be measured at one length; None where it can."""
    try:
        task.check_lengths(context, [length])
    except (ConfigError, DataError) as error:
        return str(error)
    return None


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Within, dropout is off; afterwards the model is as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

"""`evaluate()`: runs tasks over lengths and writes each result as soon as it is measured."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.bars import Bar
from skipwise.data.language import language_of
from skipwise.distributed import process_state
from skipwise.errors import ConfigError, DataError
from skipwise.evals.cache import SampleCache
from skipwise.evals.catalogue import TASK_HOMES, check_known
from skipwise.evals.context import EvalContext, Task, result_files
from skipwise.evals.prompts import texts_of_any_length
from skipwise.records.results import EvalResult, Measurement
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
    """Measures a model with every task at every length. Lengths that a task cannot measure are skipped and logged.

    Args:
        model: a causal language model of the transformers library.
        tokenizer: its tokenizer.
        tasks: names of `TASKS`, mappings with `kind` and the task's settings, or task objects.
        lengths: input lengths in tokens, including the tokens to be generated.
        documents: token ids of each document, 1-D integers, for tasks that read text; best not seen in training.
        seed: seed of all random draws.
        out: file to append one line of JSON per result to.
        samples_out: file to append one line of JSON per sample to: hash of the input, output and score.
        cache: stores samples, and finds those of earlier runs.
        details: JSON values to add to the details of every result, such as the step of a checkpoint.
        allow_beyond: whether lengths may exceed the model's window.
        progress: whether to show progress bars.
        share_out: whether the ranks of a distributed run share the samples; not if the model itself is split over them.
        whole: names of tasks that must be measurable at every length.

    Raises:
        ConfigError: a task or setting cannot be used, or a task can be measured at no length.
        DataError: the documents do not suffice.
        CheckpointError: the model's logits are NaN.
    """
    made = [make_task(task) for task in tasks]
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
    _check_request(context, made, lengths, allow_beyond, documents is not None)
    results: list[EvalResult] = []
    with result_files(out, samples_out) as write, _evaluation_mode(model), texts_of_any_length(tokenizer):
        for measurement in _measurements(context, made, _lengths_of_tasks(made, context, lengths, whole)):
            results += measurement.results
            write(measurement)
    return results


def make_task(spec: str | Mapping[str, Any] | Task) -> Task:
    """Makes a task from its name, or from a mapping with `kind` and settings; a task object is returned as it is.

    Raises:
        ConfigError: the kind or a setting is unknown, or a required setting is missing.
    """
    if not isinstance(spec, str | Mapping):
        return spec
    settings = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind: Any = settings.pop("kind", None)
    check_known("task", kind, TASKS)
    known = fields(TASKS[kind])
    for name in settings:
        check_known(f"setting of task {kind}", name, [field.name for field in known])
    required = [field.name for field in known if field.default is MISSING is field.default_factory]
    if missing := [name for name in required if name not in settings]:
        raise ConfigError(
            f"task {kind} needs {', '.join(missing)}, which is not given; on the command line, "
            f"--set {kind}.{missing[0]}=VALUE"
        )
    return TASKS[kind](**settings)


def _check_request(
    context: EvalContext, tasks: Sequence[Task], lengths: Sequence[int], allow_beyond: bool, has_documents: bool
) -> None:
    if not tasks or not lengths or min(lengths) < 2:
        raise ConfigError(f"got {len(tasks)} tasks and lengths {list(lengths)}; give a task and lengths of 2 or more")
    if not has_documents and (needing := [task.name for task in tasks if task.uses_documents]):
        raise DataError(f"no documents were given, and {', '.join(needing)} measure text: give token ids of documents")
    check_length(context.model.config, max(lengths), allow_beyond=allow_beyond)
    _say_what_asks_in_english(context, tasks)


def _say_what_asks_in_english(context: EvalContext, tasks: Sequence[Task]) -> None:
    """Warns if RULER, whose tasks are in English, hides its needles in documents of another language."""
    asking = [task.name for task in tasks if task.name.startswith("ruler_") and task.uses_documents]
    code = language_of(" ".join(context.sample_texts())) if asking else None
    if code not in (None, "en") and process_state().is_main_process:
        logger.warning(
            f"RULER asks in English, and the documents that {', '.join(asking)} hide needles in are in another "
            f"language ({code}): the task needles with haystack=documents asks in theirs"
        )


def _measurements(
    context: EvalContext, tasks: Sequence[Task], of_tasks: Sequence[Sequence[int]]
) -> Iterator[Measurement]:
    """Runs the tasks, each at its lengths, under one bar in tokens: only that can tell the time left of it all."""
    shown = context.progress and process_state().is_main_process and sum(map(len, of_tasks)) > 1
    with Bar(
        desc="evaluation",
        total=sum(map(sum, of_tasks)),
        disable=not shown,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
        leave=False,
    ) as bar:
        for task, lengths in zip(tasks, of_tasks, strict=True):
            for measurement in task.run(context, lengths):
                yield measurement
                bar.update(max((result.length_tokens for result in measurement.results), default=0))


def _lengths_of_tasks(
    tasks: Sequence[Task], context: EvalContext, lengths: Sequence[int], whole: Collection[str]
) -> list[list[int]]:
    """The lengths that each task can be measured at; all problems are raised at once, before hours of work.

    Raises:
        ConfigError, DataError: some task can be measured at no length, or not at all of them although it must be.
    """
    found, problems, left_out = [], {}, []
    for task in tasks:
        if (refused := _refusal(task, context, lengths)) is None:
            found.append(list(lengths))
            continue
        reasons = {length: _refusal(task, context, [length]) for length in lengths}
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
        raise type(first)("; ".join(problems), page=first.page) from first
    if process_state().is_main_process:
        for line in left_out:
            logger.warning(line)
    return found


def _refusal(task: Task, context: EvalContext, lengths: Sequence[int]) -> ConfigError | DataError | None:
    """The error of a task that cannot be measured at these lengths."""
    try:
        task.check_lengths(context, lengths)
    except (ConfigError, DataError) as error:
        return error
    return None


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Within, dropout is off; afterwards the model is in its earlier mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

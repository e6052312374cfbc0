"""Measures what an extended model can do, by length: tasks, and `evaluate()`, which runs them.

    results = evaluate(model, tokenizer, ["passkey", LastTokensPerplexity(num_documents=20)], [2048, 8192], documents)

A new task is one class and one line in `catalogue.TASK_HOMES`. Tasks that score documents extend
`tasks.nll.DocumentTask` by how one document is scored; tasks that ask questions build `prompts.Prompt`s for
`prompts.answer_prompts`; others implement `context.Task`.
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily
from skipwise.records.results import EvalResult, Measurement, Sample

if TYPE_CHECKING:
    from skipwise.evals.cache import SampleCache
    from skipwise.evals.catalogue import TASK_GROUPS
    from skipwise.evals.context import EvalContext, Task
    from skipwise.evals.evaluation import TASKS, evaluate, make_task

_HOMES = {
    "EvalContext": "context",
    "SampleCache": "cache",
    "TASKS": "evaluation",
    "TASK_GROUPS": "catalogue",
    "Task": "context",
    "evaluate": "evaluation",
    "make_task": "evaluation",
}

__all__ = [
    "TASKS",
    "TASK_GROUPS",
    "EvalContext",
    "EvalResult",
    "Measurement",
    "Sample",
    "SampleCache",
    "Task",
    "evaluate",
    "make_task",
]

__getattr__ = lazily(__name__, _HOMES)

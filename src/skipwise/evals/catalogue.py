"""The tasks by name, without their code: names can be checked before torch is imported."""

from collections.abc import Collection
from typing import Any

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

TASK_HOMES = {
    "perplexity": "tasks.perplexity.LastTokensPerplexity",
    "sliding": "tasks.sliding.SlidingWindowPerplexity",
    "truncated": "tasks.truncated.TruncatedPerplexity",
    "longppl": "tasks.longppl.LongPPL",
    "nll_by_position": "tasks.position.NLLByPosition",
    "passkey": "tasks.passkey.Passkey",
    "needles": "tasks.needles.NeedleGrid",
    "ruler_niah_single_1": "ruler.niah.NeedleSingle1",
    "ruler_niah_single_2": "ruler.niah.NeedleSingle2",
    "ruler_niah_single_3": "ruler.niah.NeedleSingle3",
    "ruler_niah_multikey_1": "ruler.niah.NeedleMultiKey1",
    "ruler_niah_multikey_2": "ruler.niah.NeedleMultiKey2",
    "ruler_niah_multikey_3": "ruler.niah.NeedleMultiKey3",
    "ruler_niah_multivalue": "ruler.niah.NeedleMultiValue",
    "ruler_niah_multiquery": "ruler.niah.NeedleMultiQuery",
    "ruler_vt": "ruler.variables.VariableTracking",
    "ruler_cwe": "ruler.words.CommonWords",
    "ruler_fwe": "ruler.words.FrequentWords",
    "ruler_qa_1": "ruler.questions.SingleHopQuestions",
    "ruler_qa_2": "ruler.questions.TwoHopQuestions",
    "reasoning_associations": "reasoning.associations.Associations",
    "reasoning_alike": "reasoning.alike.Alike",
    "reasoning_walks": "reasoning.walks.Walks",
    "reasoning_chains": "reasoning.chains.Chains",
    "reasoning_shots": "reasoning.shots.Shots",
    "regression": "tasks.regression.ShortWindowRegression",
    "suite": "suite.task.Suite",
    "serving": "tasks.serving.Serving",
}
"""Module in this package and class of each task."""

TASK_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name in TASK_HOMES if name.startswith(f"{group}_")) for group in ("ruler", "reasoning")
}
"""Names that stand for several tasks."""

READERS = ("perplexity", "sliding", "truncated", "longppl", "nll_by_position", "regression")
"""Tasks that read documents with any settings."""

SUITE_KINDS = ("fact", "continue", "order", "which_document")
"""Kinds of questions in a suite."""

BENCHMARK_NAMES = ("boolq", "piqa", "winogrande", "truthfulqa_mc2", "arc_challenge", "hellaswag")
"""Standard benchmarks that need no definition of the user's."""


def task_names(names: str) -> list[str]:
    """Names of tasks from a comma-separated list, in which a group's name stands for all its tasks.

    Raises:
        ConfigError: a name is unknown.
    """
    kinds = [kind for name in names.split(",") for kind in TASK_GROUPS.get(name.strip(), [name.strip()])]
    for kind in kinds:
        check_known("task", kind, TASK_HOMES)
    return kinds


def check_known(what: str, name: Any, known: Collection[str]) -> None:
    """Raises ConfigError, with the nearest known name, if a name is unknown."""
    if name not in list(known):
        hint = did_you_mean(name, known).strip() or "use one of them"
        raise ConfigError(f"{what} is {name!r}; known are {', '.join(known)}: {hint}")

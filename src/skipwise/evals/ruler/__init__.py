"""The 13 tasks of RULER (arXiv 2404.06654), made offline for any tokenizer and length.

    evaluate(model, tokenizer, [NeedleSingle2(trials=20), VariableTracking()], [4096, 32768], documents)

A family is one file: it makes prompts of any size from a seed. `fitting` searches for the size that fills the length.
"""

from skipwise.evals.ruler.common_words import CommonWords
from skipwise.evals.ruler.frequent_words import FrequentWords
from skipwise.evals.ruler.niah import NEEDLE_TASKS
from skipwise.evals.ruler.questions import SingleHopQuestions, TwoHopQuestions
from skipwise.evals.ruler.task import RulerTask
from skipwise.evals.ruler.variables import VariableTracking

RULER: dict[str, type[RulerTask]] = {
    task.name: task
    for task in (*NEEDLE_TASKS, VariableTracking, CommonWords, FrequentWords, SingleHopQuestions, TwoHopQuestions)
}

__all__ = ["RULER", "RulerTask"]

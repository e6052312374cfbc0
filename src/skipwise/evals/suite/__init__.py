"""A private benchmark of the user's own documents: built once, a plain folder, run on any checkpoint.

    build_suite("reports/", tokenizer, "suite", lengths=[2048, 8192])
    evaluate(model, tokenizer, [Suite(folder="suite")], [2048, 8192])

What a model may know from its training does not help: facts are invented, sections are shuffled, documents go by
letters, and what can be guessed of a sentence is measured by a control. A new kind of question is one class in one file
and one entry of `KINDS`.
"""

from skipwise.evals.suite.build import KINDS, build_suite
from skipwise.evals.suite.folder import SuiteFolder
from skipwise.evals.suite.item import Item
from skipwise.evals.suite.task import Suite

__all__ = ["KINDS", "Item", "Suite", "SuiteFolder", "build_suite"]

"""A private benchmark of the user's own documents: built once into a folder, then run on any checkpoint.

    build_suite("reports/", tokenizer, "suite", lengths=[2048, 8192])
    evaluate(model, tokenizer, [Suite(folder="suite")], [2048, 8192])

Knowledge from training does not help: facts are invented, sections are shuffled, documents are named by letters, and a
control measures how well sentences can be guessed.
"""

from skipwise.evals.suite.build import build_suite, build_suite_of, try_questions
from skipwise.evals.suite.folder import SuiteFolder
from skipwise.evals.suite.item import Item
from skipwise.evals.suite.kinds import KINDS
from skipwise.evals.suite.library import Collection
from skipwise.evals.suite.task import Suite

__all__ = ["KINDS", "Collection", "Item", "Suite", "SuiteFolder", "build_suite", "build_suite_of", "try_questions"]

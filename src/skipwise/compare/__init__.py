"""Compare ways to extend one base model (arms) with the same tokens, seeds, optimizer and evaluation.

    comparison -> jobs -> one process each: train, evaluate -> pooled over seeds, paired with the reference -> folder

    settings.py   settings of a comparison, and the kinds of arms
    running.py    run every job, each in a process of its own
    jobs.py       one arm with one seed as a run of `skipwise.extend`, on equal tokens
    worker.py     what such a process does
    pairing.py    pool seeds; pair arms sample by sample
    results.py    collect what the jobs left

An interrupted comparison resumes at the arm and step where it stopped. An arm that fails is recorded as failed, and the
others go on.
"""

from typing import TYPE_CHECKING

from skipwise.compare.settings import ARM_KINDS, Arm, Comparison
from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.compare.running import Begin, ComparisonStopped, compare

__all__ = ["ARM_KINDS", "Arm", "Begin", "Comparison", "ComparisonStopped", "compare"]

# On first use: a comparison's settings are checked without torch, and a worker is not imported before it is run.
__getattr__ = lazily(__name__, {"Begin": "running", "ComparisonStopped": "running", "compare": "running"})

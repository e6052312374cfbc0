"""Two modes and long inference, measured: the tables of docs/results/inference.md.

    python benchmarks/inference.py bits RUN            short mode against the base model, on 1,000 prompts
    python benchmarks/inference.py low-rank RUN        error of low-rank differences of a run with full tuning, by rank
    python benchmarks/inference.py caches RUN          loss and time of kinds of cache; HQQ and quanto where installed
    python benchmarks/inference.py lengths RUN         speed and memory by length and kind, a process each
"""

from typing import Any

SCORED = 192


def held_out(tokenizer: Any, length: int, number: int) -> list[list[int]]:
    """The first `length` tokens of documents that training did not see."""
    raise NotImplementedError

"""What a verb says and loads once its cheap checks have passed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from skipwise.imports import load_transformers, uncollected


@contextmanager
def loading(doing: str) -> Iterator[None]:
    """Says on stderr what takes its time from here on, and loads torch and transformers; a verb imports its own within.

    Where they are loaded already, as in a program that calls several commands, nothing is said.

    Args:
        doing: such as `reading the model ./my-model`; of several processes the first says it.
    """
    if "transformers" in sys.modules:
        yield
        return
    if os.environ.get("RANK", "0") == "0":
        print(doing, file=sys.stderr, flush=True)
    with uncollected():
        load_transformers()
        yield

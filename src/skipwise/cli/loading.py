"""What a verb says and loads once its cheap checks have passed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skipwise.imports import load_transformers, uncollected


@contextmanager
def loading(doing: str) -> Iterator[None]:
    """Prints on stderr what takes time from here on, and loads torch and transformers; a verb imports its own within.

    Prints nothing where they are loaded already, as in a program that calls several commands.

    Args:
        doing: such as `reading the model ./my-model`; of several processes only the first prints it.
    """
    if "transformers" in sys.modules:
        yield
        return
    if os.environ.get("RANK", "0") == "0":
        print(doing, file=sys.stderr, flush=True)
    with uncollected():
        load_transformers()
        yield


def load_tokenizer(model: str, *, trust_remote_code: bool) -> Any:
    """Loads the tokenizer of a model, without its weights.

    Raises:
        SkipwiseError: it cannot be loaded.
    """
    from skipwise.model.source import locate
    from skipwise.model.tokenizer import load_tokenizer as load

    loaded = load(locate(model, weights=False), trust_remote_code=trust_remote_code)
    # Otherwise it warns of texts that are longer than the window of its model, which may be meant for an extended one.
    loaded.model_max_length = 2**62
    return loaded

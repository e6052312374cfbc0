"""Asserts that something is refused in one line, and that pickles stay closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], match: str) -> Iterator[Any]:
    """`pytest.raises`, and the message must be one line."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)


class Trap:
    """A pickle that creates the file `mark` when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)

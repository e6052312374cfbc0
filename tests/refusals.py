"""Asserts that something is refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], match: str) -> Iterator[Any]:
    """As `pytest.raises`; the message is one line, and no number of lines of a library."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)

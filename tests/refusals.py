"""Asserts that something is refused in one line, runs the cure that it names, and sees that pickles stay closed."""

import re
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


def lines_of(err: str) -> list[str]:
    """The lines that the command printed on stderr, without those that say where to read on."""
    return [line for line in err.splitlines() if not line.startswith("read on: ")]


def run_cure(message: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the Python code that a message tells to run, in a folder; what it leaves there as `NEW`."""
    code = re.search(r'python -c "([^"]*)"', str(message))
    assert code, message
    monkeypatch.chdir(folder)
    exec(code[1], {})
    return folder / "NEW"


class Trap:
    """A pickle that creates the file `mark` when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)

"""A stopwatch."""

import time


class Clock:
    """Seconds of stretches that begin and end.

    Attributes:
        seconds: of every stretch that has ended.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def begin(self) -> None:
        """Begins a stretch."""
        self._begun = time.monotonic()

    def end(self) -> None:
        """Ends it."""
        self.seconds.append(time.monotonic() - self._begun)

"""A stopwatch of wall time and processor time. On a busy machine only processor time tells anything."""

import time


class Clock:
    """Laps of wall time and of processor time.

    Attributes:
        wall: seconds of each lap.
        cpu: likewise, of the processors, all threads of this process together.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._begun: tuple[float, float] | None = None

    def start(self) -> None:
        """Begins a lap."""
        self._begun = time.monotonic(), time.process_time()

    def lap(self) -> None:
        """Ends a lap, if one was begun, and begins the next."""
        now = time.monotonic(), time.process_time()
        if self._begun is not None:
            self.wall.append(now[0] - self._begun[0])
            self.cpu.append(now[1] - self._begun[1])
        self._begun = now

"""Progress bars: on a terminal those of tqdm, elsewhere a line a minute, so that the log of a job can be read."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Where there is no terminal, the time between two lines of a bar that say the same but for the numbers."""


class Bar(tqdm):
    """A bar of tqdm, with its arguments. Where stderr is no terminal (and no notebook), it is made of lines."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        self._is_lines = False
        if not how.get("disable") and "file" not in how and not _is_screen(sys.stderr):
            how["file"], self._is_lines = Lines(sys.stderr), True
        super().__init__(*arguments, **how)

    def moveto(self, n: int) -> None:
        """Moves the cursor to the bar's row; lines have none."""
        if not self._is_lines:
            super().moveto(n)


def _is_screen(stream: TextIO | None) -> bool:
    """Whether bars can move on it: a terminal or a notebook. A process may have no stderr, or a closed one."""
    try:
        return "ipykernel" in sys.modules or (stream is not None and stream.isatty())
    except (AttributeError, ValueError):
        return False


class Lines:
    """What tqdm takes for a file: writes its texts as lines, few of them.

    A bar's first text is written at once, and one with other words before its colon; others once a minute; and the
    last one of a bar that stays (`leave`).

    Args:
        out: takes the lines; None for a process without stderr.
        clock: gives seconds.
    """

    def __init__(self, out: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._last, self._about, self._held, self._printed = 0.0, "", "", ""

    def write(self, text: str) -> None:
        """Takes what a bar writes: a carriage return before a text, or a line end after the last."""
        shown = text.strip()
        about, now = shown.partition(":")[0], self._clock()
        if text == "\n":
            self._print(self._held, now)
        elif shown and (about != self._about or now - self._last >= LINE_SECONDS):
            self._about = about
            self._print(shown, now)
        elif shown:
            self._held = shown

    def isatty(self) -> bool:
        """No; tqdm hides bars that are for terminals alone (`disable=None`)."""
        return False

    def flush(self) -> None:
        """Passes it on."""
        if self._out is not None:
            self._out.flush()

    def _print(self, shown: str, now: float) -> None:
        self._held, self._last = "", now
        if shown and shown != self._printed and self._out is not None:
            self._printed = shown
            print(shown, file=self._out, flush=True)

"""A small proof of concept within a given time, before money is spent: one page to decide on.

    documents -> preflight, measured seconds -> schedule -> base, interpolation only, recipe -> plan -> page

asked.py      what is asked for, and cheap checks
documents.py  what the held-out documents carry: lengths, questions
measuring.py  preflight and seconds of passes and steps, in a process of its own
preparing.py  all that is known before the long part
measures.py   what may be measured, and its seconds: arithmetic
schedule.py   how the time is split: arithmetic
told.py       what is said before it starts
state.py      what an unfinished pilot keeps
arms.py       the comparison, each arm decided when it begins
full_run.py   the full run on named machines
result.py     pilot.json and the page
running.py    the whole
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.pilot.asked import PilotConfig, parse_duration
    from skipwise.pilot.result import PilotResult
    from skipwise.pilot.running import PilotStopped, pilot
    from skipwise.pilot.schedule import Schedule, TooShortError

_HOMES = {
    "PilotConfig": "asked",
    "PilotResult": "result",
    "PilotStopped": "running",
    "Schedule": "schedule",
    "TooShortError": "schedule",
    "parse_duration": "asked",
    "pilot": "running",
}

__all__ = ["PilotConfig", "PilotResult", "PilotStopped", "Schedule", "TooShortError", "parse_duration", "pilot"]

__getattr__ = lazily(__name__, _HOMES)

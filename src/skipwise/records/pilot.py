"""What `skipwise pilot` leaves as `pilot.json`: what fitted into the time, and the full run scaled from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import FiniteFloat

PILOT_FILE = "pilot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRun:
    """The full run on one kind of machine, scaled from what the pilot measured.

    Attributes:
        machine: a named machine, such as `a100-80`, or `cpu` for the pilot's own.
        count: accelerators of it.
        hours: of the whole run.
        cost: in the currency of the price; None without a price.
        price_per_hour: of one accelerator; None if unknown.
        total_bytes: memory that one accelerator needs.
        fits: whether it has that much.
    """

    machine: str
    count: int
    hours: FiniteFloat
    cost: FiniteFloat | None = None
    price_per_hour: FiniteFloat | None = None
    total_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """A small proof of concept: base, interpolation only and recipe, as far as a given time went.

    Evaluation records stand beside it, as `skipwise compare` leaves them.

    Attributes:
        model: the base model.
        target_tokens: window to extend to.
        original_tokens: window of the base model.
        seconds_given: time that was given.
        seconds_used: time that it took.
        steps: training steps that fitted.
        full_steps: training steps of the full run.
        left_out: one sentence each: what did not fit, or cannot be told from it.
        full_runs: the full run, by machine.
        next_command: what to run next.
        seconds_to_decide: time that a pilot needs that can decide; None if this one had it.
        kind: tells the file from others.
        made: the schedule and whatever else tells how it came about.
    """

    model: str
    target_tokens: int
    original_tokens: int
    seconds_given: FiniteFloat
    seconds_used: FiniteFloat
    steps: int
    full_steps: int
    left_out: Sequence[str] = ()
    full_runs: Sequence[FullRun] = ()
    next_command: str = ""
    seconds_to_decide: FiniteFloat | None = None
    kind: Literal["pilot"] = "pilot"
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share_trained(self) -> float:
        """Share of the full run's windows that were trained: a step of the pilot may have fewer."""
        own, full = (self.made.get(name) for name in ("windows_per_step", "full_windows_per_step"))
        return self.steps / self.full_steps * (own / full if own and full else 1.0)

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
        machine: name of a machine, such as `a100-80`, or `cpu` for the pilot's own.
        count: number of accelerators.
        hours: hours of the whole run.
        cost: cost of the whole run, in the currency of the price; None without a price.
        price_per_hour: price of one accelerator for an hour; None if unknown.
        total_bytes: memory that one accelerator needs, in bytes.
        fits: whether one accelerator has that much memory.
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
    """A small proof of concept within a time limit: base, interpolation only, and the recipe.

    Evaluation records stand beside it, as `skipwise compare` leaves them.

    Attributes:
        model: the base model.
        target_tokens: window to extend to.
        original_tokens: window of the base model.
        seconds_given: time limit of the pilot.
        seconds_used: time that the pilot took.
        steps: training steps of the pilot.
        full_steps: training steps of the full run.
        left_out: what did not fit into the time, or cannot be concluded from it, one sentence each.
        full_runs: estimates of the full run, one for each machine.
        next_command: command to run next.
        seconds_to_decide: shortest time limit of a pilot that can decide; None if this one had it.
        kind: always `pilot`, which tells the file from others.
        made: the schedule, and how the result came about.
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

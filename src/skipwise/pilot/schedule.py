"""How the time of a pilot is split: arithmetic on measured seconds, no model.

    given time = what is used already + evaluation of each arm + training + starts of processes + a reserve

The least that a decision needs comes first: questions about the documents at the original window and at the target, so
many that a perfect score can pass; perplexity there; a few tens of steps. What else fits is added in a fixed order. A
time that is too short for that may do for a small pilot, which decides nothing: perplexity, seconds, memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from skipwise.errors import ConfigError
from skipwise.pilot.measures import Costs, Measures, Option, Wanted, did_not_fit
from skipwise.window import length_label

RESERVE = 0.15
"""Share of the time that is not planned for."""

LEAST_STEPS, GOOD_STEPS = 30, 100
LEAST_BATCH = 8
"""Windows a step: with fewer, a window that has grown eightfold has more tokens than a step."""

SMALL_STEPS, SMALL_BATCH, SMALL_WINDOW = 10, 4, 512
"""The least training of a small pilot: steps, windows a step, and tokens of a window at most."""

# Evaluation beyond the least takes no more than this share of what is left.
_EVALUATED_SHARE = 0.5


TrainingSeconds = Callable[[int, int], float]
"""Seconds of a number of steps of a number of windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Training that fits into a time.

    Attributes:
        seconds_of: of a number of steps with a number of windows each.
        most_steps: of the full run.
        batches: windows a step that may be chosen, the largest first.
        least_steps: that are worth it.
    """

    seconds_of: TrainingSeconds
    most_steps: int
    batches: Sequence[int]
    least_steps: int = LEAST_STEPS

    @property
    def least(self) -> float:
        """Seconds of the least steps that are worth it."""
        return self.seconds_of(min(self.least_steps, self.most_steps), self.batches[-1])

    @property
    def most(self) -> float:
        """Seconds of the full run."""
        return self.seconds_of(self.most_steps, self.batches[0])

    def fitting(self, seconds: float) -> tuple[int, int]:
        """Steps, and windows a step, that fit: the largest batch that leaves a hundred steps, else the smallest.

        Never fewer than the least steps, whether or not they fit.
        """
        enough = min(GOOD_STEPS, self.most_steps)
        for batch in self.batches:
            if self.seconds_of(enough, batch) <= seconds:
                return self.steps(seconds, batch), batch
        return self.steps(seconds, self.batches[-1]), self.batches[-1]

    def steps(self, seconds: float, batch: int) -> int:
        """The most steps of so many windows that fit, at least the least."""
        low, high = min(self.least_steps, self.most_steps), self.most_steps
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds_of(middle, batch) <= seconds else (low, middle - 1)
        return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the time is split.

    Attributes:
        seconds_given: in all.
        seconds_used: before the first arm.
        measures: what is measured on each arm.
        steps: of training; decided again when training begins, by what the arms before it took.
        batch: windows a step.
        rows: what takes how long: name, seconds, what it is.
        left_out: one sentence each.
        to_decide: seconds that a pilot needs that can decide; None if this one can.
    """

    seconds_given: float
    seconds_used: float
    measures: Measures
    steps: int
    batch: int
    rows: Sequence[tuple[str, float, str]] = ()
    left_out: Sequence[str] = field(default=())
    to_decide: float | None = None

    @property
    def small(self) -> bool:
        """Whether it is of a small pilot, which decides nothing."""
        return self.to_decide is not None


class TooShortError(ConfigError):
    """The time given is too short; the message has the least."""


def fixed_seconds(wanted: Wanted, measures: Measures, costs: Costs) -> dict[str, float]:
    """What neither evaluates nor trains, by name."""
    validated = 2 * wanted.validated * costs.one_pass(wanted.short)
    return {
        "making the questions": sum(n * costs.making(tokens) for tokens, n in measures.num_questions().items()),
        "base": costs.start,
        "interpolation only": costs.start,
        # Two starts, preflight, saving and reading again.
        "training": 2 * costs.start + costs.preflight + costs.start / 2 + validated,
        "the page": 10.0,
    }


def least_seconds(used: float, wanted: Wanted, costs: Costs, training: Training) -> float:
    """The least time that a pilot needs, with what is used already."""
    least = wanted.least()
    need = least.seconds(*wanted.ends, costs) + sum(fixed_seconds(wanted, least, costs).values()) + training.least
    return (used + need) / (1 - RESERVE)


def schedule_within(
    given: float, used: float, wanted: Wanted, costs: Costs, training_of: Callable[[bool], Training]
) -> Schedule:
    """Splits the time: for a pilot that can decide, else for a small one.

    Args:
        given: seconds in all.
        used: seconds that have passed.
        wanted: what could be measured.
        costs: what that takes.
        training_of: what training takes, by whether the pilot is a small one.

    Raises:
        TooShortError: it is too short for either.
    """
    to_decide = least_seconds(used, wanted, costs, training_of(False))
    if given >= to_decide:
        return make_schedule(given, used, wanted, costs, training_of(False))
    small = make_schedule(given, used, replace(wanted, small=True), costs, training_of(True))
    return replace(small, to_decide=to_decide)


def make_schedule(given: float, used: float, wanted: Wanted, costs: Costs, training: Training) -> Schedule:
    """Splits the time.

    Args:
        given: seconds in all.
        used: seconds that have passed.
        wanted: what could be measured.
        costs: what that takes.
        training: what training takes.

    Raises:
        TooShortError: it is less than `least_seconds`.
    """
    least = least_seconds(used, wanted, costs, training)
    if given < least:
        raise TooShortError(f"the least is {duration_label(least)}")
    measures, missing = wanted.least(), list[Option]()

    def left_for_training(chosen: Measures) -> float:
        taken = chosen.seconds(*wanted.ends, costs) + sum(fixed_seconds(wanted, chosen, costs).values())
        return given * (1 - RESERVE) - used - taken

    kept = max(training.least, min(training.most, _EVALUATED_SHARE * left_for_training(measures)))
    for option in wanted.options():
        more = option.add(measures)
        if more == measures:
            continue
        if left_for_training(more) >= kept:
            measures = more
        else:
            missing.append(option)
    steps, batch = training.fitting(left_for_training(measures))
    return Schedule(
        seconds_given=given,
        seconds_used=used,
        measures=measures,
        steps=steps,
        batch=batch,
        rows=_rows(given, used, wanted, measures, costs, training.seconds_of(steps, batch), (steps, batch)),
        left_out=did_not_fit(missing, measures.texts),
    )


def _rows(
    given: float,
    used: float,
    wanted: Wanted,
    measures: Measures,
    costs: Costs,
    trained: float,
    of_steps: tuple[int, int],
) -> list[tuple[str, float, str]]:
    parts, fixed = list(measures.parts(*wanted.ends, costs)), fixed_seconds(wanted, measures, costs)

    def measuring(arms: int) -> tuple[float, str]:
        chosen = [part for part in parts if part.arms >= arms]
        at: dict[str, list[int]] = {}
        for part in chosen:
            at.setdefault(part.name.rpartition(" at ")[0], []).append(part.length)
        names = (f"{name} at {', '.join(map(length_label, sorted(lengths)))}" for name, lengths in at.items())
        return sum(part.seconds for part in chosen), "; ".join(names)

    rows = [("documents, preflight, measuring", used, "done")]
    rows.append(("questions", fixed["making the questions"], f"{sum(measures.num_questions().values())} are made"))
    for name, arms in (("base", 3), ("interpolation only", 2)):
        seconds, what = measuring(arms)
        rows.append((name, fixed[name] + seconds, what))
    rows.append(("training", fixed["training"] + trained, f"{of_steps[0]} steps of {of_steps[1]} windows"))
    seconds, what = measuring(1)
    rows.append(("extended", seconds, what))
    rows.append(("page", fixed["the page"], ""))
    rows.append(("reserve", given - sum(row[1] for row in rows), ""))
    return rows


def longest_target(given: float, used: float, wanted: Wanted, costs: Costs, training: Training) -> int | None:
    """The longest target below the wanted one that the time would do for, in doublings of the window; None if none."""
    for tokens in reversed(wanted.lengths[1:-1]):
        if least_seconds(used, replace(wanted, target=tokens), costs, training) <= given:
            return tokens
    return None


def duration_label(seconds: float) -> str:
    """A duration in the notation of `--time`, rounded up: `90s`, `12m`, `2h40m`."""
    if seconds <= 90:
        return f"{math.ceil(seconds)}s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")


def minutes(seconds: float) -> str:
    """A duration for people: `45 s`, `4 min 36 s`, `2 h 40 min`."""
    whole = round(max(0.0, seconds))
    if whole < 90:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"

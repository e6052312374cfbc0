"""Which windows each step of a run has: arithmetic on the places of the run, without any document."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

SHORT = -1
"""The stage of the short steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The places of a run: place `p` belongs to step `p // items_per_step`.

    Every step has the same number of tokens. So wider windows leave places empty: the last ones of a batch, so that it
    is no larger than one of short windows, and the last batches of a step, so that all processes have as many.

    The second step has the widest windows of the run, so that a lack of memory shows at once and not after hours. (At
    the first step the optimizer has not allocated its state yet.)

    Attributes:
        stages: first step and tokens per window of each stage, in order; the first begins at step 0.
        num_steps: optimizer steps of the run.
        window_tokens: of the shortest window, one per place.
        items_per_step: places per optimizer step, over all processes.
        items_at_a_time: places per batch on one device, as the run was begun.
        evenly: spreads empty places evenly over the batch, for a run resumed with batches of another size: a step
            trains on the same items, and none of its batches is fuller than it must be.
        keep_tokens: leaves whole batches empty too, if one window has more tokens than a batch of short ones.
        short_tokens: tokens per window of the short steps; None if there are none.
        short_share: share of the steps that are short, evenly spaced.
    """

    stages: Sequence[tuple[int, int]]
    num_steps: int
    window_tokens: int
    items_per_step: int
    items_at_a_time: int
    evenly: bool = False
    keep_tokens: bool = True
    short_tokens: int | None = None
    short_share: Fraction | float = 0

    def __len__(self) -> int:
        return self.num_steps * self.items_per_step

    def stage_of(self, step: int) -> int:
        """The index of a step's stage, or `SHORT`."""
        return SHORT if self._is_short(step) else self._long_stage(step)

    def tokens_of(self, stage: int) -> int:
        """Tokens per window of a stage."""
        if stage == SHORT:
            assert self.short_tokens is not None
            return self.short_tokens
        return self.stages[stage][1]

    def taken(self, place: int) -> int | None:
        """The place whose window is trained at this one: another of its batch if `evenly`; None if it is empty."""
        stage = self.stage_of(place // self.items_per_step)
        batch, within = divmod(place % self.items_per_step, self.items_at_a_time)
        fitting = self.windows_in(stage, self.items_at_a_time)
        if self.evenly:
            nth, empty = divmod(within * fitting, self.items_at_a_time)
            within, place = (nth if empty < fitting else fitting), place - within + nth
        if within >= fitting or (self.keep_tokens and batch * fitting + within >= self._in_step(stage)):
            return None
        return place

    def windows_in(self, stage: int, places: int) -> int:
        """Windows of a stage with as many tokens as this many places; at least one, at most one per place."""
        return min(places, max(1, places * self.window_tokens // self.tokens_of(stage)))

    def number(self, place: int) -> int:
        """How many windows of the same kind, in short steps or in others, come before the one trained at a place."""
        step, in_step = divmod(place, self.items_per_step)
        stage = self.stage_of(step)
        batch, within = divmod(in_step, self.items_at_a_time)
        return self._before(step, stage == SHORT) + batch * self.windows_in(stage, self.items_at_a_time) + within

    def number_in_run(self, place: int) -> int:
        """How many windows of the same kind as that at a place the run has."""
        return self._before(self.num_steps, self.stage_of(place // self.items_per_step) == SHORT)

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """Stage, first and one past the last number of consecutive windows; those of short steps are numbered apart."""
        ends = sorted({0, 1, 2, self.num_steps, *(begin for begin, _ in self.stages)})
        for begin, end in itertools.pairwise(ends):
            if end <= self.num_steps:
                yield self._long_stage(begin), self._before(begin, False), self._before(end, False)
        if self.short_tokens is not None:
            yield SHORT, 0, self._before(self.num_steps, True)

    def _before(self, step: int, short: bool) -> int:
        """How many windows the steps before one have, in short steps or in the others."""
        if short:
            return self._short_before(step) * self._trained_in(SHORT) if self.short_tokens is not None else 0
        windows = self._trained_in(self.stage_of(1)) if step > 1 else 0
        ends = [*(begin for begin, _ in self.stages[1:]), self.num_steps]
        for stage, ((begin, _), end) in enumerate(zip(self.stages, ends, strict=True)):
            if begin < (end := min(end, step)):
                steps = end - begin - (begin <= 1 < end) - self._short_before(end) + self._short_before(begin)
                windows += steps * self._trained_in(stage)
        return windows

    def _trained_in(self, stage: int) -> int:
        """Windows that are trained in a step of a stage."""
        batches, rest = divmod(self.items_per_step, self.items_at_a_time)
        fitting = self.windows_in(stage, self.items_at_a_time)
        windows = batches * fitting + min(rest, fitting)
        return min(windows, self._in_step(stage)) if self.keep_tokens else windows

    def _in_step(self, stage: int) -> int:
        return self.windows_in(stage, self.items_per_step)

    def _long_stage(self, step: int) -> int:
        """The stage of the windows of a step that is not short."""
        if step == 1:
            return max(range(len(self.stages)), key=lambda stage: self.tokens_of(stage))
        return [stage for stage, (begin, _) in enumerate(self.stages) if begin <= step][-1]

    def _is_short(self, step: int) -> bool:
        return self.short_tokens is not None and step != 1 and self._due_before(step + 1) > self._due_before(step)

    def _short_before(self, step: int) -> int:
        """How many of the first steps are short."""
        if self.short_tokens is None:
            return 0
        # The second step is none, even where one is due.
        return self._due_before(step) - (step > 1 and self._due_before(2) > self._due_before(1))

    def _due_before(self, step: int) -> int:
        share = self.short_share
        if isinstance(share, Fraction):  # The same as below, in a tenth of the time.
            return step * share.numerator // share.denominator
        return int(step * share)

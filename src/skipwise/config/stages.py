"""Stages of a run: consecutive steps with the same lengths and sampler."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from skipwise.errors import ConfigError
from skipwise.positions import PoSE, PositionSampler
from skipwise.window import Window

if TYPE_CHECKING:
    from skipwise.config.run import RunConfig


class RunStage(NamedTuple):
    """Steps with the same lengths and sampler.

    Attributes:
        begin: first step.
        window: the three lengths, in tokens.
        sampler: of positions.
    """

    begin: int
    window: Window
    sampler: PositionSampler


def run_stages(
    config: "RunConfig",
    window: Window,
    num_steps: int,
    sampler: PositionSampler | None = None,
    widest: int | None = None,
) -> list[RunStage]:
    """The stages of a run: the first, and one for each growth; stages without steps are left out.

    Args:
        config: the run.
        window: its lengths, in tokens.
        num_steps: optimizer steps of the run.
        sampler: replaces the run's own in all stages.
        widest: cap on grown windows, in tokens, if memory is short.

    Raises:
        PositionError: a grown window is longer than its target.
        ConfigError: growth changes fields of a sampler that the caller passed.
    """
    if sampler is not None and any(growth.sampler for growth in config.growth):
        raise ConfigError("setting 'growth' changes fields of the sampler, and this run has a sampler of its own")
    stages = [RunStage(0, window, sampler or config.build_sampler())]
    for growth in config.growth:
        begin = num_steps - max(1, round(num_steps * growth.share))
        lengths = growth.lengths(window)
        if widest is not None and lengths.train > max(widest, window.train):
            lengths = dataclasses.replace(lengths, train=max(widest, window.train))
        stages.append(RunStage(begin, lengths, sampler or config.build_sampler(growth)))
    begins = [*(stage.begin for stage in stages[1:]), num_steps]
    return [stage for stage, following in zip(stages, begins, strict=True) if stage.begin < following]


def short_stage(config: "RunConfig", stages: Sequence[RunStage]) -> RunStage | None:
    """The stage of the short steps: windows of the original length, at most the widest of the run; None without any."""
    if not config.short_share:
        return None
    widest = max((stage.window for stage in stages), key=lambda window: window.train)
    window = dataclasses.replace(widest, train=min(widest.original, widest.train))
    return RunStage(0, window, PoSE(chunks=1, text="contiguous", start="mixed"))

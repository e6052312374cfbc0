"""The stages of a run: steps that are drawn alike, in windows of one length."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from skipwise.errors import ConfigError
from skipwise.positions import PoSE, PositionSampler
from skipwise.window import Window

if TYPE_CHECKING:
    from skipwise.config.run import RunConfig


class RunStage(NamedTuple):
    """Steps of a run that are drawn alike.

    Attributes:
        begin: the first of them.
        window: their lengths, in tokens.
        sampler: of their positions.
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
    """The stages of a run: its own, and one for each growth; without those that have no step.

    Args:
        config: the run.
        window: its lengths, in tokens.
        num_steps: optimizer steps of the run.
        sampler: in place of its own, in all of them.
        widest: cap on windows that have grown, in tokens, where there is no memory for wider ones.

    Raises:
        PositionError: a grown window is longer than its target.
        ConfigError: growth changes fields of the sampler, and that is the caller's.
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
    """The short steps of a run: windows of the base model, as far as others are as wide; None where it has none."""
    if not config.short_steps:
        return None
    widest = max((stage.window for stage in stages), key=lambda window: window.train)
    window = dataclasses.replace(widest, train=min(widest.original, widest.train))
    return RunStage(0, window, PoSE(chunks=1, text="contiguous", start="mixed"))

"""What a recipe adds to an approach: windows that grow for a share of the steps, and masks of diluted attention."""

from dataclasses import dataclass, replace
from itertools import pairwise

from skipwise.config import RunConfig
from skipwise.plan.training import Job, TrainingEstimate, TrainingPlanner
from skipwise.train.data import stage_windows
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeEstimate:
    """What a whole run by one recipe takes.

    Attributes:
        name: of `skipwise.recipes.RECIPES`.
        widest_tokens: its widest training window.
        total_bytes: peak of one process, over all of its windows.
        limit_bytes: what a plan may fill of one accelerator.
        hours: of the whole job.
        processes: that train together.
        cost: of the job, in the currency that the price was given in; None without a price.
    """

    name: str
    widest_tokens: int
    total_bytes: int
    limit_bytes: int
    hours: float
    processes: int
    cost: float | None

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.total_bytes <= self.limit_bytes

    @property
    def processor_hours(self) -> float:
        """Hours of all accelerators together."""
        return self.hours * self.processes


def recipe_estimate(
    planner: TrainingPlanner, chosen: TrainingEstimate, window: Window, job: Job, name: str
) -> RecipeEstimate:
    """What `chosen` takes by a recipe: as many tokens at a time, in wider windows for the recipe's share of the steps.

    Args:
        planner: that made `chosen`.
        chosen: an approach at the training window, with its micro-batch.
        window: lengths of the run.
        job: how much is trained.
        name: of the recipe.
    """
    run = RunConfig.from_mapping({"model": "embedded", "target": window.target, "recipe": name})
    stages = [(begin, each.train) for begin, each in stage_windows(run, window, job.steps)]
    total, hours, widest = 0, 0.0, 0
    for (begin, tokens), (end, _) in pairwise([*stages, (job.steps, 0)]):
        if end <= begin:
            continue
        # As `skipwise.train` fills a batch: one wide window for as many short ones, down to one at a time.
        at_a_time = max(1, chosen.micro_batch * window.train // tokens)
        windows = at_a_time * chosen.accumulation * chosen.sharding.processes
        stage = planner.estimate(
            replace(chosen.approach, window_tokens=tokens, diluted=run.dilution),
            Job(steps=end - begin, global_batch=windows),
            chosen.sharding,
            at_a_time,
        )
        total = max(total, stage.total_bytes)
        hours += stage.hours
        widest = max(widest, tokens)
    processes = chosen.sharding.processes
    return RecipeEstimate(
        name=name,
        widest_tokens=widest,
        total_bytes=total,
        limit_bytes=chosen.limit_bytes,
        hours=hours,
        processes=processes,
        cost=None if planner.price is None else planner.price * hours * processes,
    )

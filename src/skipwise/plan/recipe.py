"""What a recipe adds to an approach: windows that grow for a share of the steps, and masks of diluted attention."""

from dataclasses import dataclass, replace
from typing import Any

from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved, resolve
from skipwise.config.stages import run_stages
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import Job, TrainingEstimate, TrainingPlanner
from skipwise.train.checks import model_facts
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeEstimate:
    """What a whole run by one recipe takes.

    Attributes:
        name: of `skipwise.config.recipes.RECIPES`.
        asked_tokens: its widest training window, whether or not there is memory for it.
        widest_tokens: its widest training window here.
        total_bytes: peak of one process, over all of its windows.
        limit_bytes: what a plan may fill of one accelerator.
        hours: of the whole job.
        processes: that train together.
        cost: of the job, in the currency that the price was given in; None without a price.
    """

    name: str
    asked_tokens: int
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


def planned_run(shape: ModelShape, window: Window, processes: int) -> Resolved:
    """What `extend` makes of a run that leaves recipe and interpolation to it, with documents as long as need be."""
    settings = {"model": "embedded", "target": window.target, "window": window.train}
    given = RunConfig.from_mapping(settings)
    return resolve(given, model_facts(given, shape.config, processes=processes))


def fitting_estimate(
    planner: TrainingPlanner, chosen: TrainingEstimate, window: Window, job: Job, run: RunConfig
) -> RecipeEstimate:
    """`recipe_estimate` with grown windows as wide as fit: half as wide each time, as `extend` finds it."""
    found = recipe_estimate(planner, chosen, window, job, run)
    while not found.fits and found.widest_tokens > window.train:
        found = recipe_estimate(planner, chosen, window, job, run, max(window.train, found.widest_tokens // 2))
    return found


def growth_that_fits(run: RunConfig, window: Window, found: RecipeEstimate) -> list[dict[str, Any]]:
    """Settings of `growth` by which windows grow no further than fits."""
    growth: list[dict[str, Any]] = []
    for stage in run.growth:
        tokens = min(stage.lengths(window).train, found.widest_tokens)
        if tokens > (growth[-1]["window"] if growth else window.train):
            growth.append({"window": tokens, "share": stage.share})
    return growth


def recipe_estimate(
    planner: TrainingPlanner,
    chosen: TrainingEstimate,
    window: Window,
    job: Job,
    run: RunConfig,
    widest_tokens: int | None = None,
) -> RecipeEstimate:
    """What `chosen` takes by a recipe: as many tokens at a time, in wider windows for the recipe's share of the steps.

    Args:
        planner: that made `chosen`.
        chosen: an approach at the training window, with its micro-batch.
        window: lengths of the run.
        job: how much is trained.
        run: settings of the recipe.
        widest_tokens: cap on windows that have grown.
    """
    stages = run_stages(run, window, job.steps, widest=widest_tokens)
    # As `skipwise.train.curriculum` fills a step: one wide window for as many short ones, down to one at a time; and
    # where no processes hold a model or windows together, to one a step.
    keeps_tokens = run.keep_tokens and chosen.sharding.kind == "ddp" and chosen.approach.context == 1
    batches = chosen.accumulation * chosen.sharding.processes

    def estimate(tokens: int, steps: int, windows: int) -> TrainingEstimate:
        approach = replace(chosen.approach, window_tokens=tokens, diluted=run.dilution)
        at_a_time = max(1, chosen.micro_batch * window.train // tokens)
        return planner.estimate(approach, Job(steps=steps, global_batch=windows), chosen.sharding, at_a_time)

    total, hours, widest = 0, 0.0, 0
    for stage, end in zip(stages, [*(stage.begin for stage in stages[1:]), job.steps], strict=True):
        tokens, steps = stage.window.train, end - stage.begin
        full = max(1, chosen.micro_batch * window.train // tokens) * batches
        kept = min(full, max(1, chosen.micro_batch * batches * window.train // tokens)) if keeps_tokens else full
        # Batches that are empty take no time; but gradients are summed over them, as over others.
        total = max(total, estimate(tokens, steps, full).total_bytes)
        hours += estimate(tokens, steps, kept).hours
        widest = max(widest, tokens)
    processes = chosen.sharding.processes
    return RecipeEstimate(
        name=run.recipe,
        asked_tokens=max(stage.window.train for stage in run_stages(run, window, job.steps)),
        widest_tokens=widest,
        total_bytes=total,
        limit_bytes=chosen.limit_bytes,
        hours=hours,
        processes=processes,
        cost=None if planner.price is None else planner.price * hours * processes,
    )

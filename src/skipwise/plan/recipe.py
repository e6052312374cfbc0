"""What a recipe adds to an approach: windows that grow in the last steps, and the masks of diluted attention."""

from dataclasses import dataclass, replace
from typing import Any

from skipwise.config import RunConfig
from skipwise.config.recipes import Resolved, resolve
from skipwise.config.stages import run_stages
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import Job, TrainingEstimate, TrainingPlanner
from skipwise.train.facts import model_facts
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeEstimate:
    """What a whole run with a recipe takes.

    Attributes:
        name: name of the recipe (`skipwise.config.recipes.RECIPES`).
        asked_tokens: widest training window of the recipe.
        widest_tokens: widest training window that fits.
        peak: the windows that take the most memory of one process.
        hours: the whole job.
        processes: processes that train together.
        cost: the job, in the currency of the price; None without a price.
    """

    name: str
    asked_tokens: int
    widest_tokens: int
    peak: TrainingEstimate
    hours: float
    processes: int
    cost: float | None

    @property
    def total_bytes(self) -> int:
        """Peak of one process over all windows."""
        return self.peak.total_bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.peak.fits

    @property
    def processor_hours(self) -> float:
        """Hours of all accelerators together."""
        return self.hours * self.processes


def planned_run(shape: ModelShape, window: Window, processes: int) -> Resolved:
    """The run that `extend` resolves from settings without recipe and interpolation, given long documents."""
    settings = {"model": "embedded", "target": window.target, "window": window.train}
    given = RunConfig.from_mapping(settings)
    return resolve(given, model_facts(given, shape.config, processes=processes))


def fitting_estimate(
    planner: TrainingPlanner, chosen: TrainingEstimate, window: Window, job: Job, run: RunConfig
) -> RecipeEstimate:
    """`recipe_estimate` with the widest windows that fit, halved as `extend` halves them."""
    found = recipe_estimate(planner, chosen, window, job, run)
    while not found.fits and found.widest_tokens > window.train:
        found = recipe_estimate(planner, chosen, window, job, run, max(window.train, found.widest_tokens // 2))
    return found


def growth_that_fits(run: RunConfig, window: Window, found: RecipeEstimate) -> list[dict[str, Any]]:
    """The setting `growth` with windows no wider than what fits."""
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
    """What `chosen` takes with a recipe, whose windows grow in a share of the steps.

    Args:
        planner: planner that made `chosen`.
        chosen: an approach at the training window, with its micro-batch.
        window: lengths of the run.
        job: how much is trained.
        run: settings of the recipe.
        widest_tokens: upper limit of windows that grow.
    """
    stages = run_stages(run, window, job.steps, widest=widest_tokens)
    # As `skipwise.train.curriculum` fills a step: one wide window replaces as many short ones, down to one per
    # micro-batch; and if no processes share a model or a window, down to one per step.
    keeps_tokens = run.keep_tokens and chosen.sharding.kind == "ddp" and chosen.approach.context == 1
    batches = chosen.accumulation * chosen.sharding.processes

    def estimate(tokens: int, steps: int, windows: int) -> TrainingEstimate:
        approach = replace(chosen.approach, window_tokens=tokens, diluted=run.dilution)
        micro_batch = max(1, chosen.micro_batch * window.train // tokens)
        return planner.estimate(approach, Job(steps=steps, global_batch=windows), chosen.sharding, micro_batch)

    peaks, hours, widest = [], 0.0, 0
    for stage, end in zip(stages, [*(stage.begin for stage in stages[1:]), job.steps], strict=True):
        tokens, steps = stage.window.train, end - stage.begin
        full = max(1, chosen.micro_batch * window.train // tokens) * batches
        kept = min(full, max(1, chosen.micro_batch * batches * window.train // tokens)) if keeps_tokens else full
        # Empty micro-batches take no time, but gradients are accumulated over them all the same.
        peaks.append(estimate(tokens, steps, full))
        hours += estimate(tokens, steps, kept).hours
        widest = max(widest, tokens)
    processes = chosen.sharding.processes
    return RecipeEstimate(
        name=run.recipe,
        asked_tokens=max(stage.window.train for stage in run_stages(run, window, job.steps)),
        widest_tokens=widest,
        peak=max(peaks, key=lambda one: one.total_bytes),
        hours=hours,
        processes=processes,
        cost=None if planner.price is None else planner.price * hours * processes,
    )

"""Make the jobs of a comparison: one arm with one seed, or one measurement of costs, each for its own process.

Equal tokens: every arm takes as many steps as the shared run, with as many tokens each, whatever its window.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from skipwise.compare.settings import Arm, Comparison
from skipwise.config import RunConfig
from skipwise.config.reading import merge_settings
from skipwise.config.recipes import resolve
from skipwise.errors import ConfigError, SkipwiseError
from skipwise.model import original_window
from skipwise.train.arguments import training_settings
from skipwise.train.facts import model_facts
from skipwise.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process of a comparison.

    Attributes:
        name: folder of its results, below the comparison's.
        seed: of training; None where nothing is trained.
        run: settings of the run, with `output` within the job's folder.
        measures_costs: whether it only times a few steps and evaluates nothing.
    """

    name: str
    arm: Arm
    seed: int | None
    run: RunConfig
    measures_costs: bool = False


class Planner:
    """Makes the jobs of a comparison over a base model of this config, and raises for those that cannot run."""

    def __init__(self, comparison: Comparison, base: PreTrainedConfig) -> None:
        self._comparison, self._base = comparison, base
        shared = RunConfig.from_mapping(comparison.run)
        self.window: Window = shared.resolve_window(original_window(base))
        training = training_settings(shared)
        self.steps: int = training["max_steps"]
        self._at_a_time: int = training["per_device_train_batch_size"]
        self.step_tokens: int = self.window.train * self._at_a_time * training["gradient_accumulation_steps"]

    def arm_jobs(self) -> list[Job]:
        """Every arm with every seed; arms whose steps depend on another's time come last."""
        timed_last = sorted(self._comparison.arms, key=lambda arm: arm.kind.as_long_as_reference)
        return [
            self._checked(self._arm_job(arm, seed))
            for arm in timed_last
            for seed in (self._comparison.seeds if arm.kind.trained else [None])
        ]

    def cost_jobs(self) -> list[Job]:
        """A few steps with one window at each target, for the arms whose costs are asked for."""
        costs = self._comparison.costs
        if costs is None:
            return []
        full = [arm.name for arm in self._comparison.arms if arm.kind.whole_target][:1]
        names = costs.arms or list(dict.fromkeys([self._comparison.reference, *full]))
        return [
            self.timing_job(self._comparison.arm(name), target, costs.steps)
            for name in names
            for target in sorted(costs.targets)
        ]

    def timing_job(self, arm: Arm, target: int, steps: int) -> Job:
        """Times this many steps of one window each, after one for warm-up."""
        one_window = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
        settings = {
            "target": target,
            "data": {"held_out": 0.0, "min_tokens": target},
            "training": {"max_steps": steps + 1, **one_window, "save_strategy": "no"},
            "growth": [],
        }
        seed, name = self._comparison.seeds[0], f"costs/{arm.name}-{target}"
        run = self._run(arm, seed, name, target, settings)
        return self._checked(Job(name=name, arm=arm, seed=seed, run=run, measures_costs=True))

    @staticmethod
    def name_of(arm: str, seed: int | None) -> str:
        """The name of the job of an arm with a seed."""
        return f"arms/{arm}" + ("" if seed is None else f"/seed-{seed}")

    def with_steps(self, job: Job, steps: int) -> Job:
        """The job with another number of steps."""
        return self._arm_job(job.arm, job.seed, {"training": {"max_steps": steps}})

    def _arm_job(self, arm: Arm, seed: int | None, more: dict[str, Any] | None = None) -> Job:
        name = self.name_of(arm.name, seed)
        own_window = arm.run_config(self._comparison.run).window
        train = self.window.target if arm.kind.whole_target else own_window or self.window.train
        at_a_time = max(1, self._at_a_time * self.window.train // train)
        pieces, left = divmod(self.step_tokens, at_a_time * train)
        if left or not pieces:
            raise ConfigError(
                f"arm {arm.name!r} trains on windows of {train} tokens and a step has {self.step_tokens} "
                f"({self.step_tokens // self.window.train} windows of {self.window.train}); equal tokens need whole "
                "windows: raise training.gradient_accumulation_steps or training.per_device_train_batch_size",
                page="unequal-arms",
            )
        batch = {"per_device_train_batch_size": at_a_time, "gradient_accumulation_steps": pieces}
        more = merge_settings({"training": batch}, more or {})
        run = self._run(arm, seed or 0, name, self.window.target, more)
        return Job(name=name, arm=arm, seed=seed, run=run)

    def _run(self, arm: Arm, seed: int, folder: str, target: int, more: dict[str, Any]) -> RunConfig:
        tree = arm.run_settings(self._comparison.run)
        saves = {"save_steps": max(1, math.ceil(self.steps / 4)), "save_total_limit": 1}
        tree["training"] = {**saves, **tree["training"]}
        watched = {
            "lengths": sorted({min(self.window.original, target), target}),
            "every_steps": max(1, self.steps // 5),
        }
        tree["validation"] = {**watched, **tree.get("validation", {})}
        tree = merge_settings(tree, more)
        if more.get("target"):
            tree["validation"] = {"lengths": [target]}
        if arm.kind.whole_target:
            tree |= {"window": target, "growth": [], "dilution": False}
        output = Path(self._comparison.output) / folder / "model"
        try:
            run = RunConfig.from_mapping({**tree, "target": target, "seed": seed, "output": str(output)})
            if arm.kind.whole_target or "target" in more:
                run = run.without_short_steps()
            # As in `extend`, but also for arms that are not trained.
            return resolve(run, model_facts(run, self._base)).config
        except SkipwiseError as error:
            raise ConfigError(f"arm {arm.name!r}: {error}", page=error.page) from error

    def _checked(self, job: Job) -> Job:
        """The job; raises what its run would raise for its settings alone."""
        if not job.arm.kind.trained:
            return job
        try:
            training_settings(job.run)
            window = job.run.resolve_window(self.window.original)
            job.run.build_sampler().sample(window.target, window, np.random.default_rng(0))
        except SkipwiseError as error:
            raise ConfigError(f"arm {job.arm.name!r}: {error}", page=error.page) from error
        return job

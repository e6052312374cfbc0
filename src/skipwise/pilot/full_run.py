"""The full run after a pilot: time, memory and money on named machines, and here."""

from collections.abc import Sequence
from dataclasses import replace

from skipwise.config import LoraTuning, RunConfig
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.plan.machines import TYPICAL_PRICES, Utilisation, machine_of
from skipwise.plan.profiles import Profiles
from skipwise.plan.recipe import fitting_estimate
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import Job, TrainingPlanner, approaches
from skipwise.records.pilot import FullRun
from skipwise.train.arguments import training_settings
from skipwise.window import Window


def full_job(run: RunConfig) -> Job:
    """How much the full run trains: as it says, else the paper's 1000 steps of 64 windows."""
    given = run.training
    settings = training_settings(run)
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    own = "per_device_train_batch_size" in given or "gradient_accumulation_steps" in given
    return Job(steps=given.get("max_steps", STEPS), global_batch=batch if own else GLOBAL_BATCH)


def full_runs(
    shape: ModelShape, run: RunConfig, window: Window, machines: Sequence[str], price: float | None
) -> list[FullRun]:
    """The full run on machines, by the plan's assumptions; on the fewest of each that it fits on.

    Args:
        shape: of the model.
        run: resolved.
        window: its lengths, in tokens.
        machines: names.
        price: of an hour of one accelerator; None for what is typical of each.
    """
    job, profiles = full_job(run), Profiles(shape)
    found = []
    for name in machines:
        machine = machine_of(name)
        own_price = price if price is not None else TYPICAL_PRICES.get(name.lower())
        planner = TrainingPlanner(profiles, machine, Utilisation(), price=own_price)
        ways = approaches(window.train, window.target, LoraTuning())
        way = replace(next(way for way in ways if way.tuning.kind == run.tuning.kind), tuning=run.tuning)
        best = planner.fewest(way, job)
        chosen = best or planner.fastest_split(way, job, 1)
        if chosen.sharding.processes == 1:
            chosen = planner.largest_batch(way, job, chosen.sharding)
        whole = fitting_estimate(planner, chosen, window, job, run)
        found.append(
            FullRun(
                machine=name,
                count=whole.processes,
                hours=whole.hours,
                cost=whole.cost,
                price_per_hour=own_price,
                total_bytes=whole.total_bytes,
                fits=whole.fits and best is not None,
            )
        )
    return found


def full_run_here(
    machine: str, job: Job, steps: int, batch: int, seconds: float, peak_bytes: int, price: float | None
) -> FullRun:
    """The same on this machine, scaled from the steps that were trained here.

    Memory is the pilot's peak: wider windows than it trained take more.
    """
    hours = seconds / max(1, steps * batch) * job.steps * job.global_batch / 3600
    cost = None if price is None else hours * price
    return FullRun(
        machine=machine, count=1, hours=hours, cost=cost, price_per_hour=price, total_bytes=peak_bytes, fits=True
    )

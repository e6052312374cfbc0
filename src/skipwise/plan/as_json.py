"""A plan as JSON values; bytes, seconds and tokens are plain numbers."""

from typing import Any

from skipwise.plan.machines import Machine
from skipwise.plan.planning import ByTarget, Plan
from skipwise.plan.training import TrainingEstimate


def plan_json(plan: Plan) -> dict[str, Any]:
    """The whole plan."""
    asked, counts, advice, machine = plan.asked, plan.shape.counts, plan.advice, plan.machine
    recipe = ("name", "widest_tokens", "total_bytes", "processor_hours", "cost")
    return {
        "model": plan.shape.name,
        "window": _named(plan.window, "train", "original", "target"),
        "parameters": _named(counts, *counts.__slots__, "total"),
        "stored": None if plan.shape.stored is None else plan.shape.stored._asdict(),
        "kv_bytes_a_token": plan.shape.kv_bytes_a_token,
        "machine": {"name": machine.name, "count": plan.sharding.processes, "source": machine.source},
        "utilisation": _named(asked.utilisation, *asked.utilisation.__slots__),
        "training": [_training_json(one, fitting) for one, fitting in zip(plan.training, plan.smallest, strict=True)],
        "serving": [_named(one, *one.__slots__, "fits") for one in plan.serving],
        "longest_context_tokens": {f"weights {w}, cache {kv}": n for (w, kv), n in plan.longest.items()},
        "by_target": [_by_target_json(one) for one in plan.by_target],
        "price": asked.price,
        "steps": asked.job.steps,
        "global_batch": asked.job.global_batch,
        "advice": list(advice.words),
        "recipe": None if plan.recipe is None else _named(plan.recipe, *recipe),
        "config": dict(advice.config),
        "engines": dict(advice.engines),
    }


def _by_target_json(one: ByTarget) -> dict[str, Any]:
    return {
        "target_tokens": one.target_tokens,
        "skip_wise": _training_json(one.skip_wise, None) | {"one_window_bytes": one.one_window[0]},
        "full_length": _training_json(one.full_length, None) | {"one_window_bytes": one.one_window[1]},
    }


def _training_json(one: TrainingEstimate, fitting: tuple[Machine, TrainingEstimate] | None) -> dict[str, Any]:
    sizes = ("activation_bytes", "loss_bytes", "other_bytes", "total_bytes", "limit_bytes")
    machine, smallest = fitting or (None, None)
    return {
        "approach": one.approach.name,
        "window_tokens": one.approach.window_tokens,
        "sharding": one.sharding.kind,
        "fits": one.fits,
        "parameter_bytes": one.state.parameters,
        "in_transit_bytes": one.state.in_transit,
        "gradient_bytes": one.state.gradients,
        "optimizer_bytes": one.state.optimizer,
        **_named(one, *sizes, "micro_batch", "accumulation", "step_seconds", "processor_hours", "cost"),
        "by_formula": one.formula,
        "smallest": machine
        and smallest
        and {"machine": machine.name, "count": smallest.sharding.processes, "sharding": smallest.sharding.kind},
    }


def _named(one: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}

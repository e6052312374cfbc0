"""A plan as JSON values; bytes, seconds and tokens are plain numbers."""

from typing import Any

from skipwise.plan import ByTarget, Plan
from skipwise.plan.machines import Machine
from skipwise.plan.recipe import RecipeEstimate
from skipwise.plan.serving import ServingEstimate
from skipwise.plan.training import TrainingEstimate


def plan_json(plan: Plan) -> dict[str, Any]:
    """All of a plan."""
    counts = plan.shape.counts
    return {
        "model": plan.shape.name,
        "window": _named(plan.window, "train", "original", "target"),
        "parameters": _named(counts, *counts.__slots__, "total"),
        "stored": None if plan.shape.stored is None else plan.shape.stored._asdict(),
        "kv_bytes_a_token": plan.shape.kv_bytes_a_token,
        "machine": {"name": plan.machine.name, "count": plan.sharding.processes, "source": plan.machine.source},
        "utilisation": _named(plan.utilisation, *plan.utilisation.__slots__),
        "training": [_training_json(one, fitting) for one, fitting in zip(plan.training, plan.smallest, strict=True)],
        "serving": [_serving_json(one) for one in plan.serving],
        "longest_context_tokens": {f"weights {w}, cache {kv}": n for (w, kv), n in plan.longest.items()},
        "by_target": [_by_target_json(one) for one in plan.by_target],
        "price": plan.price,
        "steps": plan.job.steps,
        "global_batch": plan.job.global_batch,
        "advice": list(plan.advice.words),
        "recipe": None if plan.advice.recipe is None else _recipe_json(plan.advice.recipe),
        "config": dict(plan.advice.config),
        "engines": dict(plan.advice.engines),
    }


def _by_target_json(one: ByTarget) -> dict[str, Any]:
    return {
        "target_tokens": one.target_tokens,
        "skip_wise": _training_json(one.skip_wise, None) | {"one_window_bytes": one.one_window[0]},
        "full_length": _training_json(one.full_length, None) | {"one_window_bytes": one.one_window[1]},
    }


def _training_json(one: TrainingEstimate, fitting: tuple[Machine, TrainingEstimate] | None) -> dict[str, Any]:
    return {
        "approach": one.approach.name,
        "window_tokens": one.approach.window_tokens,
        "sharding": one.sharding.kind,
        "fits": one.fits,
        "parameter_bytes": one.state.parameters,
        "in_transit_bytes": one.state.in_transit,
        "gradient_bytes": one.state.gradients,
        "optimizer_bytes": one.state.optimizer,
        "activation_bytes": one.activation_bytes,
        "loss_bytes": one.loss_bytes,
        "other_bytes": one.other_bytes,
        "total_bytes": one.total_bytes,
        "limit_bytes": one.limit_bytes,
        "micro_batch": one.micro_batch,
        "accumulation": one.accumulation,
        "step_seconds": one.step_seconds,
        "processor_hours": one.processor_hours,
        "cost": one.cost,
        "by_formula": one.formula,
        "smallest": None
        if fitting is None
        else {
            "machine": fitting[0].name,
            "count": fitting[1].sharding.processes,
            "sharding": fitting[1].sharding.kind,
        },
    }


def _recipe_json(one: RecipeEstimate) -> dict[str, Any]:
    return _named(one, "name", "widest_tokens", "total_bytes", "processor_hours", "cost")


def _serving_json(one: ServingEstimate) -> dict[str, Any]:
    return _named(one, *one.__slots__, "fits")


def _named(one: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}

"""Memory, time and cost of training and serving an extension, before any of it is spent.

cards.py       built-in models; machines.py, built-in accelerators
shape.py       config -> exact shapes and parameter counts, from modules on the meta device
trace.py       memory of a step or a prefill, found by running the model's own class on tensors without data
profiles.py    each trace once, and curves between them
training.py    memory and time of each approach; recipe.py, what a recipe adds
serving.py     memory and latency by length; engines.py, commands for vLLM and llama.cpp
planning.py    all of this put together
advice.py      what is recommended, in words and as a config for `skipwise extend`
measure.py     real steps on this machine, compared with the prediction
pages.py       the plan as tables and as a page; as_json.py, as JSON

    found = plan("llama-3-8b", target=131072, machine="h100", count=8, price=2.5)
    for estimate in found.training: print(estimate.approach.name, estimate.total_bytes, estimate.hours)

The arithmetic is in `skipwise.memory`.
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.plan.machines import Machine, Utilisation
    from skipwise.plan.planning import Plan, PlanConfig, check_plan, plan
    from skipwise.plan.serving import Deployment
    from skipwise.plan.training import Approach, Job, TrainingEstimate

_HOMES = {
    **dict.fromkeys(("Plan", "PlanConfig", "check_plan", "plan"), "planning"),
    **dict.fromkeys(("Approach", "Job", "TrainingEstimate"), "training"),
    **dict.fromkeys(("Machine", "Utilisation"), "machines"),
    "Deployment": "serving",
}

__all__ = [
    "Approach",
    "Deployment",
    "Job",
    "Machine",
    "Plan",
    "PlanConfig",
    "TrainingEstimate",
    "Utilisation",
    "check_plan",
    "plan",
]

__getattr__ = lazily(__name__, _HOMES)

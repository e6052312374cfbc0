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
    from skipwise.plan.advice import Advice
    from skipwise.plan.machines import MACHINES, Machine, Utilisation, this_cpu
    from skipwise.plan.planning import ByTarget, Plan, PlanConfig, check_plan, plan
    from skipwise.plan.serving import Deployment, ServingEstimate
    from skipwise.plan.shape import ModelShape
    from skipwise.plan.training import Approach, Job, TrainingEstimate

_NAMES_OF_MODULES = {
    "advice": "Advice",
    "machines": "MACHINES Machine Utilisation this_cpu",
    "planning": "ByTarget Plan PlanConfig check_plan plan",
    "serving": "Deployment ServingEstimate",
    "shape": "ModelShape",
    "training": "Approach Job TrainingEstimate",
}

__all__ = [
    "MACHINES",
    "Advice",
    "Approach",
    "ByTarget",
    "Deployment",
    "Job",
    "Machine",
    "ModelShape",
    "Plan",
    "PlanConfig",
    "ServingEstimate",
    "TrainingEstimate",
    "Utilisation",
    "check_plan",
    "plan",
    "this_cpu",
]

__getattr__ = lazily(__name__, {name: module for module, names in _NAMES_OF_MODULES.items() for name in names.split()})

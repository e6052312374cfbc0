"""What an extension costs: memory, time and money of training and of serving, before any of it is spent.

shape.py       config -> shapes and counts, exact, from modules on the meta device; cards.py, well-known models
machines.py    accelerators and the shares of their speed that are assumed
trace.py       what a step or a prefill holds, by running the model's own class on tensors without numbers; ledger.py
profiles.py    each thing of that once, and what lies between
training.py    approaches side by side; recipe.py, what a recipe adds to one
serving.py     requests by length; engines.py, settings for vLLM and llama.cpp
advice.py      what is recommended and why, in words, and as a config for `skipwise extend`
measure.py     a few real steps on this machine, held against what was predicted
pages.py       the plan as tables and as a page; as_json.py, as JSON

    found = plan("llama-3-8b", target=131072, machine="h100", count=8, price=2.5)
    for estimate in found.training: print(estimate.approach.name, estimate.total_bytes, estimate.hours)

All arithmetic is in `skipwise.memory`.
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.plan.advice import Advice
    from skipwise.plan.machines import MACHINES, Machine, Utilisation, this_cpu
    from skipwise.plan.planning import ByTarget, Plan, check_plan, plan
    from skipwise.plan.serving import Deployment, ServingEstimate
    from skipwise.plan.shape import ModelShape
    from skipwise.plan.training import Approach, Job, TrainingEstimate

_HOMES = {
    "Advice": "advice",
    "Approach": "training",
    "ByTarget": "planning",
    "Deployment": "serving",
    "Job": "training",
    "MACHINES": "machines",
    "Machine": "machines",
    "ModelShape": "shape",
    "Plan": "planning",
    "ServingEstimate": "serving",
    "TrainingEstimate": "training",
    "Utilisation": "machines",
    "check_plan": "planning",
    "plan": "planning",
    "this_cpu": "machines",
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
    "ServingEstimate",
    "TrainingEstimate",
    "Utilisation",
    "check_plan",
    "plan",
    "this_cpu",
]

__getattr__ = lazily(__name__, _HOMES)

"""What an extension costs: memory, time and money of training and of serving, before any of it is spent.

shape.py       config -> shapes and counts, exact, from modules on the meta device; cards.py, well-known models
machines.py    accelerators and the shares of their speed that are assumed
trace.py       what a step or a prefill holds, by running the model's own class on tensors without numbers; profiles.py
training.py    approaches side by side; recipe.py, what a recipe adds to one
serving.py     requests by length; engines.py, settings for vLLM and llama.cpp
advice.py      what is recommended and why, in words, and as a config for `skipwise extend`
measure.py     a few real steps on this machine, held against what was predicted
pages.py       the plan as a page

    found = plan("llama-3-8b", target=131072, machine="h100", count=8, price=2.5)
    for estimate in found.training: print(estimate.approach.name, estimate.total_bytes, estimate.hours)

All arithmetic is in `skipwise.memory`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from skipwise.config import FullTuning, LoraTuning
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.plan.advice import Advice, advise
from skipwise.plan.machines import MACHINES, Machine, Utilisation, machine_of, this_cpu
from skipwise.plan.profiles import Profiles
from skipwise.plan.recipe import RecipeEstimate
from skipwise.plan.serving import (
    SERVED_BITS,
    Deployment,
    ServingEstimate,
    fewest_accelerators,
    longest_context,
    serving_estimate,
    sharing_count,
)
from skipwise.plan.shape import ModelShape, model_shape, require_longer
from skipwise.plan.training import (
    Approach,
    Job,
    TrainingEstimate,
    TrainingPlanner,
    approaches,
    smallest_machine,
)
from skipwise.window import Window

__all__ = [
    "MACHINES",
    "Advice",
    "Approach",
    "Deployment",
    "Job",
    "Machine",
    "ModelShape",
    "Plan",
    "ServingEstimate",
    "TrainingEstimate",
    "Utilisation",
    "plan",
    "this_cpu",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an extension takes.

    Attributes:
        shape: of the model.
        window: lengths, in tokens.
        machine: one accelerator.
        sharding: over how many of them training is spread, and how where that was asked for; else each approach says.
        utilisation: the shares of speed and memory behind every figure.
        job: how much is trained.
        training: every approach, with the largest micro-batch that fits.
        smallest: for each of them, the machine with the least memory in all that it fits on; None where none does.
        deployment: how it is served.
        serving: one request, by length.
        longest: tokens of the longest text of one request that fits, by bits of weights and of the cache.
        by_target: targets up to this one, each with what full fine-tuning takes skip-wise and at full length, one
            window at a time.
        advice: what is recommended.
        price: of an hour of one accelerator; None where money was not asked about.
    """

    shape: ModelShape
    window: Window
    machine: Machine
    sharding: Sharding
    utilisation: Utilisation
    job: Job
    training: Sequence[TrainingEstimate]
    smallest: Sequence[tuple[Machine, TrainingEstimate] | None]
    deployment: Deployment
    serving: Sequence[ServingEstimate]
    longest: Mapping[tuple[int, int], int]
    by_target: Sequence[tuple[int, TrainingEstimate, TrainingEstimate]]
    advice: Advice
    price: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; bytes, seconds and tokens are whole or plain numbers."""
        counts = self.shape.counts
        return {
            "model": self.shape.name,
            "window": {"train": self.window.train, "original": self.window.original, "target": self.window.target},
            "parameters": {name: getattr(counts, name) for name in counts.__slots__} | {"total": counts.total},
            "kv_bytes_a_token": self.shape.kv_bytes_a_token,
            "machine": {"name": self.machine.name, "count": self.sharding.processes, "source": self.machine.source},
            "sharding": self.sharding.kind,
            "utilisation": {name: getattr(self.utilisation, name) for name in self.utilisation.__slots__},
            "training": [
                _training_json(one, fitting) for one, fitting in zip(self.training, self.smallest, strict=True)
            ],
            "serving": [_serving_json(one) for one in self.serving],
            "longest_context_tokens": {f"weights {w}, cache {kv}": n for (w, kv), n in self.longest.items()},
            "by_target": [
                {"target_tokens": n, "skip_wise": _training_json(one, None), "full_length": _training_json(other, None)}
                for n, one, other in self.by_target
            ],
            "price": self.price,
            "steps": self.job.steps,
            "global_batch": self.job.global_batch,
            "advice": list(self.advice.words),
            "recipe": None if self.advice.recipe is None else _recipe_json(self.advice.recipe),
            "config": self.advice.config,
            "engines": dict(self.advice.engines),
        }


def plan(
    model: str,
    *,
    target: int,
    window: int | None = None,
    machine: str | Machine = "a100-80",
    count: int = 1,
    sharding: str | None = None,
    price: float | None = None,
    job: Job | None = None,
    lora: LoraTuning | None = None,
    utilisation: Utilisation | None = None,
    checkpointing: bool = True,
    library_loss: bool = False,
    requests: int = 1,
    lengths: Sequence[int] | None = None,
    weight_bits: int = 16,
    kv_bits: int = 16,
    other_bytes: int | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Plans an extension.

    Args:
        model: a built-in card, a folder, a hub name, or a GGUF file; its config is read, never its weights.
        target: window to extend to, in tokens.
        window: training window; by default the original one, at most 2k.
        machine: name of an accelerator, `cpu` for the one here, or one of your own.
        count: accelerators, for training and for serving.
        sharding: ddp, zero1, zero2, zero3 or fsdp; by default of each approach ddp where the whole model fits and
            is no slower, else fsdp.
        price: of an hour of one accelerator, in any currency.
        job: how much is trained; by default the paper's 1000 steps of 64 windows.
        lora: low-rank additions to plan for.
        utilisation: shares of speed, bandwidth and memory; assumptions unless measured.
        checkpointing: layers are computed again in the backward pass.
        library_loss: the loss makes all logits at once, as a library's own does; skipwise's never does.
        requests: at once, in serving.
        lengths: of requests, in tokens; by default from the original window to the target.
        weight_bits: of weights in serving: 16, 8 or 4.
        kv_bits: of the cache in serving: 16, 8 or 4.
        other_bytes: what a process takes beside tensors; by default what CUDA does, or Python itself on a CPU.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: for a target that is no extension, an unknown machine, or settings that contradict one another.
        CheckpointError, UnsupportedModelError: the model cannot be read or extended.
    """
    shape = model_shape(model, trust_remote_code=trust_remote_code)
    require_longer(shape, target)
    train = window or min(shape.original_tokens, 2048)
    if train > target:
        raise ConfigError(f"the training window is {train} tokens and the target {target}; give a shorter window")
    for name, bits in (("weight_bits", weight_bits), ("kv_bits", kv_bits)):
        if bits not in SERVED_BITS:
            raise ConfigError(f"{name} is {bits}; give one of {', '.join(map(str, SERVED_BITS))}")
    if requests < 1:
        raise ConfigError(f"requests are {requests}; give 1 or more")
    if count > (windows := (job or Job()).global_batch):
        raise ConfigError(
            f"there are {count} accelerators for {windows} windows of a step; give a --global-batch of as many"
        )
    place = machine if isinstance(machine, Machine) else machine_of(machine)
    if place.bits == 32 and count > 1:
        raise ConfigError(f"the machine is the CPU here, and the count {count}; give --count 1, or an accelerator")
    if price is not None and price < 0:
        raise ConfigError(f"the price is {price}; give 0 or more for an hour of one accelerator")
    over = Sharding(processes=count, kind=sharding or ("fsdp" if count > 1 else "ddp"))
    shares, asked = utilisation or Utilisation(), job or Job()
    profiles = Profiles(shape)
    planner = TrainingPlanner(profiles, place, shares, price=price, other_bytes=other_bytes)
    ways = [
        way
        for way in approaches(
            train, target, lora or LoraTuning(), checkpointing=checkpointing, whole_logits=library_loss
        )
        if place.bits == 16 or not way.quantized
    ]
    training = [
        planner.largest_batch(way, asked, over) if sharding else planner.fastest_split(way, asked, count)
        for way in ways
    ]
    # Training may split over any number of accelerators, serving over those that get as many heads each.
    served_by = sharing_count(shape, count)
    deployment = Deployment(machine=place, count=served_by, weight_bits=weight_bits, kv_bits=kv_bits)
    at = sorted(set(lengths or _lengths(shape.original_tokens, target)))
    smallest = [smallest_machine(profiles, way, asked, shares) for way in ways]

    def full_tuning(name: str, length: int) -> TrainingEstimate:
        way = Approach(name=name, window_tokens=length, tuning=FullTuning(), checkpointing=checkpointing)
        way = replace(way, whole_logits=library_loss)
        return planner.estimate(way, asked, over)

    window_of_run = Window(train=train, original=shape.original_tokens, target=target)
    serving = [serving_estimate(profiles, deployment, shares, n, requests=requests, price=price) for n in at]
    return Plan(
        shape=shape,
        window=window_of_run,
        machine=place,
        sharding=over,
        utilisation=shares,
        job=asked,
        training=training,
        smallest=smallest,
        deployment=deployment,
        serving=serving,
        longest={
            (w, kv): longest_context(profiles, replace(deployment, weight_bits=w, kv_bits=kv), shares)
            for w, kv in product(SERVED_BITS, repeat=2)
        },
        by_target=[
            (n, full_tuning("skip-wise", train), full_tuning("full length", n))
            for n in _lengths(shape.original_tokens, target)
        ],
        advice=advise(
            profiles,
            window_of_run,
            place,
            planner,
            training,
            asked,
            deployment,
            shares,
            nearest=[planner.nearest(way, asked) or other for way, other in zip(ways, smallest, strict=True)],
            requests=requests,
            fewest_to_serve=fewest_accelerators(profiles, shares, target, deployment),
        ),
        price=price,
    )


def _lengths(original: int, target: int) -> list[int]:
    """From the original window to the target, each twice the last."""
    lengths = [original]
    while lengths[-1] * 2 < target:
        lengths.append(lengths[-1] * 2)
    return [*lengths, target]


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
    return {
        "name": one.name,
        "widest_tokens": one.widest_tokens,
        "total_bytes": one.total_bytes,
        "processor_hours": one.processor_hours,
        "cost": one.cost,
    }


def _serving_json(one: ServingEstimate) -> dict[str, Any]:
    return {
        "length_tokens": one.length_tokens,
        "requests": one.requests,
        "fits": one.fits,
        "weight_bytes": one.weight_bytes,
        "kv_bytes": one.kv_bytes,
        "work_bytes": one.work_bytes,
        "limit_bytes": one.limit_bytes,
        "first_token_seconds": one.first_token_seconds,
        "token_seconds": one.token_seconds,
        "most_requests": one.most_requests,
        "cost_per_million": one.cost_per_million,
    }

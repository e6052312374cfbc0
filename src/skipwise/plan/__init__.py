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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from skipwise.config import LoraTuning
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.model.extend import extended_config
from skipwise.plan.advice import Advice, advise, interpolation_settings
from skipwise.plan.machines import MACHINES, Machine, Utilisation, machine_of, this_cpu
from skipwise.plan.profiles import Profiles
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
from skipwise.rope import interpolation_from
from skipwise.window import Window

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


class ByTarget(NamedTuple):
    """Full fine-tuning for one target, skip-wise and at full length.

    Attributes:
        target_tokens: of the target.
        skip_wise: with the largest micro-batch that fits.
        full_length: likewise.
        one_window: memory of each, in this order, with one window at a time.
    """

    target_tokens: int
    skip_wise: TrainingEstimate
    full_length: TrainingEstimate
    one_window: tuple[int, int]


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
        by_target: full fine-tuning for each target up to this one.
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
    by_target: Sequence[ByTarget]
    advice: Advice
    price: float | None = None


def plan(
    model: str,
    *,
    target: int,
    window: int | None = None,
    original: int | None = None,
    machine: str | Machine = "a100-80",
    count: int = 1,
    sharding: str | None = None,
    price: float | None = None,
    job: Job | None = None,
    lora: LoraTuning | None = None,
    utilisation: Utilisation | None = None,
    checkpointing: bool = True,
    library_loss: bool = False,
    context: int = 1,
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
        original: window that the model was pre-trained for, in tokens; by default as its config says.
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
        context: accelerators that hold each window of full length together.
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
    shape = model_shape(model, original=original, trust_remote_code=trust_remote_code)
    place = machine if isinstance(machine, Machine) else machine_of(machine)
    asked = job or Job()
    window_of_run = check_plan(
        shape,
        place,
        target=target,
        window=window,
        count=count,
        sharding=sharding,
        price=price,
        job=asked,
        requests=requests,
        weight_bits=weight_bits,
        kv_bits=kv_bits,
        context=context,
    )
    train = window_of_run.train
    over = Sharding(processes=count, kind=sharding or ("fsdp" if count > 1 else "ddp"))
    shares = utilisation or Utilisation()
    profiles = Profiles(shape)
    planner = TrainingPlanner(profiles, place, shares, price=price, other_bytes=other_bytes)
    ways = [
        way
        for way in approaches(
            train,
            target,
            lora or LoraTuning(),
            checkpointing=checkpointing,
            whole_logits=library_loss,
            context=context,
        )
        if place.bits == 16 or not way.quantized
    ]

    def best(way: Approach) -> TrainingEstimate:
        return planner.largest_batch(way, asked, over) if sharding else planner.fastest_split(way, asked, count)

    training = [best(way) for way in ways]
    # Training may split over any number of accelerators, serving over those that get as many heads each.
    served_by = sharing_count(shape, min(count, place.node))
    deployment = Deployment(machine=place, count=served_by, weight_bits=weight_bits, kv_bits=kv_bits)
    fewest = fewest_accelerators(profiles, shares, target, deployment)
    if longest_context(profiles, deployment, shares) < target:
        deployment = replace(deployment, count=fewest if fewest and fewest <= count else sharing_count(shape, count))
    at = sorted(set(lengths or _lengths(shape.original_tokens, target)))
    smallest = [smallest_machine(profiles, way, asked, shares) for way in ways]

    def for_target(tokens: int) -> ByTarget:
        each = approaches(
            train,
            tokens,
            lora or LoraTuning(),
            checkpointing=checkpointing,
            whole_logits=library_loss,
            context=context,
        )
        found = [best(way) for way in each if way.tuning.kind == "full"]
        alone = [planner.estimate(one.approach, asked, one.sharding).total_bytes for one in found]
        return ByTarget(tokens, found[0], found[1], (alone[0], alone[1]))

    longest = {
        (w, kv): longest_context(profiles, replace(deployment, weight_bits=w, kv_bits=kv), shares)
        for w, kv in product(SERVED_BITS, repeat=2)
    }
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
        longest=longest,
        by_target=[for_target(n) for n in _lengths(shape.original_tokens, target)],
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
            longest=longest,
            fewest_to_serve=fewest,
        ),
        price=price,
    )


def _lengths(original: int, target: int) -> list[int]:
    """From the original window to the target, each twice the last."""
    lengths = [original]
    while lengths[-1] * 2 < target:
        lengths.append(lengths[-1] * 2)
    return [*lengths, target]


def check_plan(
    shape: ModelShape,
    machine: Machine,
    *,
    target: int,
    window: int | None = None,
    count: int = 1,
    sharding: str | None = None,
    price: float | None = None,
    job: Job = Job(),  # noqa: B008 - frozen
    requests: int = 1,
    weight_bits: int = 16,
    kv_bits: int = 16,
    context: int = 1,
) -> Window:
    """Refuses what cannot be planned for, before anything is estimated or measured; arguments are those of `plan`.

    Returns:
        The three lengths.

    Raises:
        ConfigError, PositionError: for a target that is no extension, or settings that contradict one another.
    """
    require_longer(shape, target)
    train = window or min(shape.original_tokens, 2048)
    if train > target:
        raise ConfigError(f"the training window is {train} tokens and the target {target}; give a shorter window")
    for name, bits in (("weight_bits", weight_bits), ("kv_bits", kv_bits)):
        if bits not in SERVED_BITS:
            raise ConfigError(f"{name} is {bits}; give one of {', '.join(map(str, SERVED_BITS))}")
    if requests < 1:
        raise ConfigError(f"requests are {requests}; give 1 or more")
    at_a_time = job.micro_batch or 1
    if at_a_time < 1 or count * at_a_time > job.global_batch:
        some = "is 1 accelerator" if count == 1 else f"are {count} accelerators"
        each = "" if job.micro_batch is None else f" with {at_a_time} windows at a time"
        raise ConfigError(
            f"there {some}{each} for {job.global_batch} windows of a step; give a --global-batch of as many"
        )
    if machine.bits == 32 and count > 1:
        raise ConfigError(f"the machine is the CPU here, and the count {count}; give --count 1, or an accelerator")
    if context < 1 or count % context or target % (2 * context):
        raise ConfigError(
            f"the context is {context}, with {count} accelerators and a target of {target} tokens; give a --context "
            "that divides their number, and the target into two pieces for each"
        )
    if context > 1 and any((layer.window_tokens or target) < target for layer in shape.layers):
        raise ConfigError(
            f"the context is {context}, and layers of this model see a part of the window alone, which PyTorch's "
            "context parallelism does not know: leave --context out"
        )
    if price is not None and price < 0:
        raise ConfigError(f"the price is {price}; give 0 or more for an hour of one accelerator")
    if sharding is not None:
        Sharding(processes=count, kind=sharding)
    lengths = Window(train=train, original=shape.original_tokens, target=target)
    extended_config(shape.config, interpolation_from(interpolation_settings(shape, target)), lengths)
    return lengths

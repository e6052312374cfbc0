"""`plan()`: what an extension takes, from a model, a machine and a target."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple, ParamSpec

from skipwise.config import LoraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.memory import Sharding
from skipwise.model import rope_state
from skipwise.model.extend import extended_config
from skipwise.plan.advice import Advice, advise
from skipwise.plan.machines import Machine, Utilisation, machine_of
from skipwise.plan.profiles import Profiles
from skipwise.plan.recipe import RecipeEstimate, fitting_estimate, planned_run
from skipwise.plan.serving import (
    BITS,
    Deployment,
    ServingEstimate,
    fewest_accelerators,
    longest_context,
    serving_estimate,
    sharing_count,
)
from skipwise.plan.shape import ModelShape, model_shape, require_longer
from skipwise.plan.training import Approach, Job, TrainingEstimate, TrainingPlanner, approaches, smallest_machine
from skipwise.window import Window

_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What is to be planned.

    Attributes:
        model: a built-in card, a folder, a hub name, or a GGUF file; only its config is read.
        target: window to extend to, in tokens.
        window: training window; by default the original one, at most 2k.
        original: window that the model was pre-trained for, in tokens; by default the one in its config.
        machine: name of an accelerator, `cpu` for this machine's, or a machine of your own.
        count: accelerators, for training and for serving.
        sharding: ddp, zero1, zero2, zero3 or fsdp; by default, for each approach, ddp if the whole model fits and
            that is no slower, else fsdp.
        price: of an hour of one accelerator, in any currency.
        job: how much is trained; by default the paper's 1000 steps of 64 windows.
        lora: low-rank adapters to plan for.
        utilisation: fractions of speed, bandwidth and memory that are reached; assumed unless measured.
        checkpointing: gradient checkpointing.
        library_loss: the loss keeps all logits, as a library's own loss does; skipwise's loss never does.
        context: accelerators that split each window of full length between them.
        requests: concurrent requests in serving.
        lengths: lengths of requests, in tokens; by default from the original window to the target.
        weight_bits: bits of weights in serving: 16, 8 or 4.
        kv_bits: bits of the cache in serving: 16, 8 or 4.
        other_bytes: memory of a process beside tensors; by default that of CUDA, or of Python on a CPU.
        trust_remote_code: run Python code that comes with the model.
    """

    model: str
    _: KW_ONLY
    target: int
    window: int | None = None
    original: int | None = None
    machine: str | Machine = "a100-80"
    count: int = 1
    sharding: str | None = None
    price: float | None = None
    job: Job = Job()  # noqa: RUF009 - frozen
    lora: LoraTuning = LoraTuning()  # noqa: RUF009 - frozen
    utilisation: Utilisation = Utilisation()  # noqa: RUF009 - frozen
    checkpointing: bool = True
    library_loss: bool = False
    context: int = 1
    requests: int = 1
    lengths: Sequence[int] | None = None
    weight_bits: int = 16
    kv_bits: int = 16
    other_bytes: int | None = None
    trust_remote_code: bool = False

    def approaches(self, train: int, target: int) -> list[Approach]:
        """Ways to train for a target, without regard to the machine."""
        options = {"checkpointing": self.checkpointing, "whole_logits": self.library_loss, "context": self.context}
        return list(approaches(train, target, self.lora, **options))


class Extension(NamedTuple):
    """A model and the extension that is planned for it.

    Attributes:
        shape: shape of the model.
        machine: one accelerator.
        window: lengths, in tokens.
        run: settings that `extend` resolves for it.
        extended: config of the extended model.
    """

    shape: ModelShape
    machine: Machine
    window: Window
    run: RunConfig
    extended: Any


class ByTarget(NamedTuple):
    """Full fine-tuning for one target, skip-wise and at full length.

    Attributes:
        target_tokens: the target.
        skip_wise: with the largest micro-batch that fits.
        full_length: likewise.
        one_window: memory of both, in this order, with micro-batches of 1.
    """

    target_tokens: int
    skip_wise: TrainingEstimate
    full_length: TrainingEstimate
    one_window: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an extension takes.

    Attributes:
        asked: what was to be planned.
        extension: the model and its extension.
        sharding: number of processes in training, and what is sharded if that was given; else see each approach.
        training: every approach, with the largest micro-batch that fits.
        smallest: for each approach, the smallest built-in machine that it fits on; None if there is none.
        nearest: for each approach, the fewest of this machine that it fits on, else `smallest`.
        recipe: the run with the recommended recipe; None if nothing fits.
        deployment: how the model is served.
        serving: requests by length.
        longest: longest single request that fits, in tokens, by bits of weights and of the cache.
        fewest_to_serve: accelerators for one request of the target's length; None if 64 are too few.
        short_gain: requests of the model's present window that fit, divided by those of the target; 0 if none fits.
        by_target: full fine-tuning for each target up to this one.
    """

    asked: PlanConfig
    extension: Extension
    sharding: Sharding
    training: Sequence[TrainingEstimate]
    smallest: Sequence[tuple[Machine, TrainingEstimate] | None]
    nearest: Sequence[tuple[Machine, TrainingEstimate] | None]
    recipe: RecipeEstimate | None
    deployment: Deployment
    serving: Sequence[ServingEstimate]
    longest: Mapping[tuple[int, int], int]
    fewest_to_serve: int | None
    short_gain: float
    by_target: Sequence[ByTarget]

    @property
    def shape(self) -> ModelShape:
        """Shape of the model."""
        return self.extension.shape

    @property
    def window(self) -> Window:
        """Lengths of the extension."""
        return self.extension.window

    @property
    def machine(self) -> Machine:
        """One accelerator."""
        return self.extension.machine

    @property
    def short(self) -> list[TrainingEstimate]:
        """The skip-wise approaches."""
        return [one for one in self.training if one.approach.window_tokens == self.window.train]

    @property
    def chosen(self) -> TrainingEstimate | None:
        """The first skip-wise approach that fits: full, LoRA, QLoRA; None if none does."""
        return next((one for one in self.short if one.fits), None)

    @cached_property
    def advice(self) -> Advice:
        """What is recommended."""
        return advise(self)


def _from_fields(make: Callable[_P, PlanConfig]) -> Callable[[Callable[[PlanConfig], Plan]], Callable[_P, Plan]]:
    """Turns a function of a `PlanConfig` into one of its fields."""

    def wrap(function: Callable[[PlanConfig], Plan]) -> Callable[_P, Plan]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> Plan:
            return function(make(*args, **kwargs))

        call.__signature__ = inspect.signature(make)  # pyright: ignore - for `help`
        return call

    return wrap


@_from_fields(PlanConfig)
def plan(asked: PlanConfig) -> Plan:
    """Plans an extension; the arguments are the fields of `PlanConfig`.

    Raises:
        ConfigError: the target is not an extension, the machine is unknown, or settings contradict each other.
        CheckpointError, UnsupportedModelError: the model cannot be read or extended.
    """
    extension = check_plan(asked)
    shape, machine, window = extension.shape, extension.machine, extension.window
    profiles, shares, target, job = Profiles(shape), asked.utilisation, window.target, asked.job
    sharding = Sharding(processes=asked.count, kind=asked.sharding or ("fsdp" if asked.count > 1 else "ddp"))
    planner = TrainingPlanner(profiles, machine, shares, price=asked.price, other_bytes=asked.other_bytes)

    def best(approach: Approach) -> TrainingEstimate:
        if asked.sharding:
            return planner.largest_batch(approach, job, sharding)
        return planner.fastest_split(approach, job, asked.count)

    def for_target(tokens: int) -> ByTarget:
        found = [best(way) for way in asked.approaches(window.train, tokens) if way.tuning.kind == "full"]
        alone = [planner.estimate(one.approach, job, one.sharding).total_bytes for one in found]
        return ByTarget(tokens, found[0], found[1], (alone[0], alone[1]))

    ways = [way for way in asked.approaches(window.train, target) if not (machine.is_cpu and way.quantized)]
    training = [best(way) for way in ways]
    smallest = [smallest_machine(profiles, way, job, shares) for way in ways]
    on_this = [None if machine.is_cpu else planner.fewest(way, job) for way in ways]
    chosen = next((one for one in training if one.approach.window_tokens == window.train and one.fits), None)
    deployment, fewest = _deployment(profiles, asked, extension)
    present = rope_state(shape.config).maximum
    at_once = [serving_estimate(profiles, deployment, shares, n).most_requests for n in (present, target)]
    lengths = _lengths(shape.original_tokens, target)
    return Plan(
        asked=asked,
        extension=extension,
        sharding=sharding,
        training=training,
        smallest=smallest,
        nearest=[(machine, one) if one else other for one, other in zip(on_this, smallest, strict=True)],
        recipe=None if chosen is None else fitting_estimate(planner, chosen, window, job, extension.run),
        deployment=deployment,
        serving=[
            serving_estimate(profiles, deployment, shares, n, requests=asked.requests, price=asked.price)
            for n in sorted(set(asked.lengths or lengths))
        ],
        longest={
            (w, kv): longest_context(profiles, replace(deployment, weight_bits=w, kv_bits=kv), shares)
            for w, kv in product(BITS, repeat=2)
        },
        fewest_to_serve=fewest,
        short_gain=at_once[0] / at_once[1] if at_once[1] else 0.0,
        by_target=[for_target(n) for n in lengths],
    )


def _deployment(profiles: Profiles, asked: PlanConfig, extension: Extension) -> tuple[Deployment, int | None]:
    """How the model is served, and how many accelerators one request of the target's length takes.

    Training may use any number of accelerators, serving only numbers that split the heads evenly. A model is shared
    within one node if it fits there.
    """
    shape, machine, target = extension.shape, extension.machine, extension.window.target
    deployment = Deployment(
        machine=machine,
        count=sharing_count(shape, min(asked.count, machine.node)),
        weight_bits=asked.weight_bits,
        kv_bits=asked.kv_bits,
    )
    fewest = fewest_accelerators(profiles, asked.utilisation, target, deployment)
    if longest_context(profiles, deployment, asked.utilisation) < target:
        enough = fewest if fewest and fewest <= asked.count else sharing_count(shape, asked.count)
        deployment = replace(deployment, count=enough)
    return deployment, fewest


def _lengths(original: int, target: int) -> list[int]:
    """From the original window to the target, doubling."""
    lengths = [original]
    while lengths[-1] * 2 < target:
        lengths.append(lengths[-1] * 2)
    return [*lengths, target]


def check_plan(asked: PlanConfig, shape: ModelShape | None = None) -> Extension:
    """Refuses what cannot be planned, before anything is estimated or measured.

    Args:
        asked: what is to be planned.
        shape: shape of the model; by default it is read.

    Raises:
        ConfigError, PositionError: the target is not an extension, or settings contradict each other.
        CheckpointError, UnsupportedModelError: the model cannot be read or extended.
    """
    if shape is None:
        shape = model_shape(asked.model, original=asked.original, trust_remote_code=asked.trust_remote_code)
    machine = asked.machine if isinstance(asked.machine, Machine) else machine_of(asked.machine)
    target, count, context, batch = asked.target, asked.count, asked.context, asked.job.global_batch
    require_longer(shape, target)
    train = asked.window or min(shape.original_tokens, 2048)
    micro_batch = asked.job.micro_batch or 1
    each = "" if asked.job.micro_batch is None else f" with {micro_batch} windows at a time"
    accelerators = "is 1 accelerator" if count == 1 else f"are {count} accelerators"
    bits = ", ".join(map(str, BITS))
    for refused, message in (
        (train > target, f"the training window is {train} tokens and the target {target}; give a shorter window"),
        (asked.weight_bits not in BITS, f"weight_bits is {asked.weight_bits}; give one of {bits}"),
        (asked.kv_bits not in BITS, f"kv_bits is {asked.kv_bits}; give one of {bits}"),
        (asked.requests < 1, f"requests are {asked.requests}; give 1 or more"),
        (
            micro_batch < 1 or count * micro_batch > batch,
            f"there {accelerators}{each} for {batch} windows of a step; give a --global-batch of as many",
        ),
        (
            machine.is_cpu and count > 1,
            f"the machine is the CPU here, and the count {count}; give --count 1, or an accelerator",
        ),
        (
            context < 1 or count % context or target % (2 * context),
            f"the context is {context}, with {count} accelerators and a target of {target} tokens; give a --context "
            "that divides their number, and the target into two pieces for each",
        ),
        (
            context > 1 and any((layer.window_tokens or target) < target for layer in shape.layers),
            f"the context is {context}, but PyTorch's context parallelism does not support the sliding windows of this "
            "model: leave --context out",
        ),
        (
            asked.price is not None and asked.price < 0,
            f"the price is {asked.price}; give 0 or more for an hour of one accelerator",
        ),
    ):
        if refused:
            raise ConfigError(message)
    if asked.sharding is not None:
        Sharding(processes=count, kind=asked.sharding)
    window = Window(train=train, original=shape.original_tokens, target=target)
    run = planned_run(shape, window, count).config
    extended = extended_config(shape.config, run.build_interpolation(), window)
    return Extension(shape, machine, window, run, extended)

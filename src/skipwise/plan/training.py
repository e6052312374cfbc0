"""Training: memory of one process, time and cost, with skip-wise windows and at full length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from skipwise.config import FullTuning, LoraTuning, QloraTuning, Tuning
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.memory import FLOAT32_BYTES, Sharding, TrainingState, training_flops
from skipwise.plan.machines import GIGA, MACHINES, TERA, Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.trace import Step

ADAM_BYTES = 2 * FLOAT32_BYTES
# Fragmentation of glibc's heap by activations: 150 to 500 MiB on SmolLM2-135M at any window (docs/results/planning.md).
# On an accelerator the share of memory that plans leave free covers it.
HEAP_HOLES_BYTES = 320 * 2**20
_AS_FAST = 1.01
PROCESS_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How much is trained.

    Attributes:
        steps: optimizer steps.
        global_batch: windows per step, over all processes.
        micro_batch: windows per micro-batch in each process; None for the most that fit.
    """

    steps: int = STEPS
    global_batch: int = GLOBAL_BATCH
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """One way to train.

    Attributes:
        name: for display.
        window_tokens: length of a training example: the short window, or the target.
        tuning: full, lora or qlora.
        checkpointing: gradient checkpointing.
        whole_logits: the loss keeps all logits, as a library's own loss does; skipwise's loss never does.
        diluted: diluted attention, with a mask of all pairs.
        context: processes that split the tokens of each window between them.
    """

    name: str
    window_tokens: int
    tuning: Tuning
    checkpointing: bool = True
    whole_logits: bool = False
    diluted: bool = False
    context: int = 1

    @property
    def quantized(self) -> bool:
        """Whether frozen linear layers are in 4 bits."""
        return self.tuning.kind == "qlora"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEstimate:
    """What one approach takes on one kind of machine.

    Attributes:
        approach: how it trains.
        sharding: number of processes, and what is sharded.
        micro_batch: windows per micro-batch in each process.
        accumulation: micro-batches per step.
        state: parameters, gradients and optimizer state in one process.
        activation_bytes: beside the state at the peak.
        loss_bytes: peak of the loss: logits, and the gradient of a trained head.
        other_bytes: memory of the process beside tensors.
        limit_bytes: what a plan may fill of one accelerator.
        step_seconds: one step of all processes.
        moving_seconds: communication in a step; it overlaps with computing.
        hours: the whole job.
        cost: the whole job, in the currency of the price; None without a price.
        formula: activations are by formula, because the model cannot be run without data.
    """

    approach: Approach
    sharding: Sharding
    micro_batch: int
    accumulation: int
    state: TrainingState
    activation_bytes: int
    loss_bytes: int
    other_bytes: int
    limit_bytes: int
    step_seconds: float
    moving_seconds: float
    hours: float
    cost: float | None
    formula: bool = False

    @property
    def total_bytes(self) -> int:
        """Peak of one process."""
        return self.state.total + self.activation_bytes + self.other_bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit."""
        return self.total_bytes <= self.limit_bytes

    @property
    def windows(self) -> int:
        """Windows per step over all processes: the job's number, rounded up to what processes can share evenly."""
        return self.micro_batch * self.accumulation * self.sharding.processes // self.approach.context

    @property
    def processor_hours(self) -> float:
        """Hours of all accelerators together."""
        return self.hours * self.sharding.processes


class TrainingPlanner:
    """Estimates approaches for one model on one kind of machine.

    Args:
        profiles: profiles of the model.
        machine: the machine.
        utilisation: fractions of speed and memory that are reached.
        price: of an hour of one accelerator; None if cost is not asked for.
        other_bytes: memory of a process beside tensors; by default the machine's `process_bytes`.
    """

    def __init__(
        self,
        profiles: Profiles,
        machine: Machine,
        utilisation: Utilisation,
        *,
        price: float | None = None,
        other_bytes: int | None = None,
    ) -> None:
        self._profiles, self._shape = profiles, profiles.shape
        self._machine = machine
        self._utilisation = utilisation
        self.price = price
        self._other_bytes = machine.process_bytes if other_bytes is None else other_bytes

    def estimate(self, approach: Approach, job: Job, sharding: Sharding, micro_batch: int = 1) -> TrainingEstimate:
        """What one approach takes."""
        groups = sharding.processes // approach.context
        accumulation = max(1, -(-job.global_batch // (micro_batch * groups)))
        state = self._sharded_state(approach, sharding)
        # A sharded model's gradients come and go in parts: they are counted throughout.
        held = accumulation > 1 or sharding.processes > 1
        profile = self._profiles.step(self._step(approach, sharding, micro_batch), gradients_held=held)
        if self._machine.is_cpu:
            # A tiny model's tensors come from the small bins of the C library, which do not fragment.
            profile = profile.with_more(min(HEAP_HOLES_BYTES, FLOAT32_BYTES * self._shape.counts.total))
        activations = profile.peak(len(self._shape.layers), state.gradients) - state.gradients
        # PyTorch's ring attention gathers keys and values of one layer at a time.
        activations += max(self._ring_bytes(approach, micro_batch), default=0)
        moving = self.moving_seconds(approach, sharding, accumulation, micro_batch)
        speed = self._machine.tflops * TERA * self._utilisation.training
        computing = micro_batch * accumulation * self._window_flops(approach) / (speed * approach.context)
        seconds = max(computing, moving) + self.optimizer_seconds(approach, sharding)
        hours = seconds * job.steps / 3600
        return TrainingEstimate(
            approach=approach,
            sharding=sharding,
            micro_batch=micro_batch,
            accumulation=accumulation,
            state=state,
            activation_bytes=activations,
            loss_bytes=profile.loss_bytes,
            other_bytes=self._other_bytes,
            limit_bytes=round(self._machine.memory_bytes * self._utilisation.memory),
            step_seconds=seconds,
            moving_seconds=moving,
            hours=hours,
            cost=None if self.price is None else self.price * hours * sharding.processes,
            formula=self._profiles.by_formula,
        )

    def largest_batch(self, approach: Approach, job: Job, sharding: Sharding) -> TrainingEstimate:
        """The estimate with the largest micro-batch that fits, or with 1 if none does.

        The micro-batch divides the windows of a process, so that a step has as many windows as with micro-batches of 1.
        A micro-batch given by the job is used as it is.
        """
        if job.micro_batch is not None:
            return self.estimate(approach, job, sharding, job.micro_batch)
        best = self.estimate(approach, job, sharding)
        for batch in range(2, best.accumulation + 1):
            if best.windows % (batch * (sharding.processes // approach.context)) or not best.fits:
                continue
            larger = self.estimate(approach, replace(job, global_batch=best.windows), sharding, batch)
            if not larger.fits:
                break
            best = larger
        return best

    def fastest_split(self, approach: Approach, job: Job, processes: int) -> TrainingEstimate:
        """The estimate by ddp if the whole model fits and that is no slower, else by fsdp."""
        if processes == 1:
            return self.largest_batch(approach, job, Sharding())
        whole, split = (
            self.largest_batch(approach, job, Sharding(processes=processes, kind=kind)) for kind in ("ddp", "fsdp")
        )
        return whole if whole.fits and whole.step_seconds <= _AS_FAST * split.step_seconds else split

    def fewest(self, approach: Approach, job: Job) -> TrainingEstimate | None:
        """The fewest processes that it fits on, sharded as little as possible; None if one window each does not fit."""
        for processes in (count for count in PROCESS_COUNTS if count % approach.context == 0):
            if processes // approach.context * (job.micro_batch or 1) > job.global_batch:
                break
            for kind in ("ddp",) if processes == 1 else ("ddp", "zero1", "zero2", "fsdp"):
                found = self.estimate(approach, job, Sharding(processes=processes, kind=kind), job.micro_batch or 1)
                if found.fits:
                    return found
        return None

    def _step(self, approach: Approach, sharding: Sharding, micro_batch: int) -> Step:
        full = approach.tuning.kind == "full"
        # With sharded parameters an engine holds 16-bit ones where they are computed with: autocast copies none.
        in_half = self._in_half(sharding) or sharding.share(3) > 1
        in_float32 = self._machine.is_cpu or (full and not in_half)
        return Step(
            window_tokens=approach.window_tokens // approach.context,
            batch=micro_batch,
            tuning=approach.tuning,
            checkpointing=approach.checkpointing,
            dtype=torch.float32 if in_float32 else torch.bfloat16,
            autocast=None if self._machine.is_cpu else torch.bfloat16,
            diluted=approach.diluted,
            library_loss=approach.whole_logits,
        )

    def state(self, approach: Approach, *, in_half: bool = False) -> TrainingState:
        """The training state before sharding.

        Each trained parameter takes 16 bytes: float32 value and gradient, two states of Adam. Frozen parameters under
        low-rank adapters are in 16 bits on an accelerator; quantized linear layers in 4 bits with their scales.

        Args:
            approach: how it trains.
            in_half: parameters and gradients are in 16 bits, and the optimizer has a float32 copy: 16 bytes as well.
        """
        trained = self._profiles.parameters(approach.tuning).trained
        size = 2 if in_half else FLOAT32_BYTES
        return TrainingState(
            parameters=self._frozen_bytes(approach) + trained * size,
            gradients=trained * size,
            optimizer=trained * (ADAM_BYTES + (FLOAT32_BYTES if in_half else 0)),
        )

    def _sharded_state(self, approach: Approach, sharding: Sharding) -> TrainingState:
        counts = self._profiles.parameters(approach.tuning)
        return self.state(approach, in_half=self._in_half(sharding)).sharded(
            sharding,
            numbers=counts.total,
            trained=counts.trained,
            whole_bytes=self._gathered_bytes(approach),
            unsplit=counts.scale_bytes,
        )

    def _frozen_bytes(self, approach: Approach) -> int:
        counts = self._profiles.parameters(approach.tuning)
        size = FLOAT32_BYTES if approach.tuning.kind == "full" or self._machine.is_cpu else 2
        plain = counts.total - counts.trained - counts.quantized
        return counts.packed_bytes + counts.scale_bytes + size * plain

    def _in_half(self, sharding: Sharding) -> bool:
        """Whether the engine holds trained parameters in 16 bits."""
        return sharding.is_deepspeed and not self._machine.is_cpu

    def _gathered_bytes(self, approach: Approach) -> int:
        """Bytes that FSDP gathers at one time, in the dtype of computing.

        The root module (parameters outside layers) stays gathered from its forward pass to the end of the backward
        pass. Two layers are gathered, because the next is fetched while one computes. Gradients of the root and of one
        layer exist whole until they are reduced.
        """
        root, layer = self._shape.outside_layers, self._shape.largest_layer
        size = FLOAT32_BYTES if self._machine.is_cpu else 2
        counts = self._profiles.parameters(approach.tuning)  # Scales of 4-bit weights are not sharded.
        inside = self._shape.counts.total - root
        layers = 2 * layer * (size * (inside - counts.quantized) + counts.packed_bytes) // inside
        return size * root + layers + (size * (root + layer) if approach.tuning.kind == "full" else 0)

    def _window_flops(self, approach: Approach) -> int:
        return training_flops(
            self._shape.counts,
            self._shape.layers,
            approach.window_tokens,
            checkpointing=approach.checkpointing,
            frozen=approach.tuning.kind != "full",
        )

    def _ring_bytes(self, approach: Approach, micro_batch: int) -> list[int]:
        """Bytes of all keys and values of each layer, which go round the ring; none if windows are not split."""
        if approach.context == 1:
            return []
        size = micro_batch * approach.window_tokens * self._machine.bits // 8
        return [size * layer.cached_values(latent=False) for layer in self._shape.layers]

    def moving_seconds(self, approach: Approach, sharding: Sharding, accumulation: int, micro_batch: int = 1) -> float:
        """Seconds of communication between processes in a step.

        Keys and values of a split window go round in the forward pass, again when layers are recomputed, and in the
        backward pass, with their float32 gradients.
        """
        counts = self._profiles.parameters(approach.tuning)
        gathered = self._frozen_bytes(approach) + 2 * counts.trained if approach.quantized else 2 * counts.total
        moved = sharding.moved_bytes(gathered_bytes=gathered, trained=counts.trained, micro_batches=accumulation)
        rounds = 2 + approach.checkpointing + 8 * FLOAT32_BYTES / self._machine.bits
        others = (approach.context - 1) / approach.context
        moved += accumulation * others * rounds * sum(self._ring_bytes(approach, micro_batch))
        return moved / (self._machine.link_between(sharding.processes) * GIGA * self._utilisation.network)

    def optimizer_seconds(self, approach: Approach, sharding: Sharding) -> float:
        """Seconds to read and write optimizer state, parameters and gradients in the optimizer's step."""
        trained = self._profiles.parameters(approach.tuning).trained
        moved = trained * (2 * ADAM_BYTES + 3 * FLOAT32_BYTES) / sharding.share(1)
        return moved / (self._machine.bandwidth_gb * GIGA * self._utilisation.decode)


def approaches(
    window_tokens: int,
    target_tokens: int,
    lora: LoraTuning,
    *,
    checkpointing: bool = True,
    whole_logits: bool = False,
    context: int = 1,
) -> Iterator[Approach]:
    """Skip-wise windows and full length, each with full, LoRA and QLoRA tuning.

    With `context`, windows of full length are split over that many processes.
    """
    qlora = QloraTuning(**lora.model_dump(exclude={"kind"}))
    over = f" over {context}" if context > 1 else ""
    for name, length, parts in (("skip-wise", window_tokens, 1), ("full length" + over, target_tokens, context)):
        for ending, tuning in (("", FullTuning()), (", LoRA", lora), (", QLoRA", qlora)):
            yield Approach(
                name=name + ending,
                window_tokens=length,
                tuning=tuning,
                checkpointing=checkpointing,
                whole_logits=whole_logits,
                context=parts,
            )


def smallest_machine(
    profiles: Profiles, approach: Approach, job: Job, utilisation: Utilisation
) -> tuple[Machine, TrainingEstimate] | None:
    """The built-in machine and estimate with the least total memory that the approach fits on; None if none does."""
    fitting = [
        (machine, found)
        for machine in MACHINES.values()
        if (found := TrainingPlanner(profiles, machine, utilisation).fewest(approach, job)) is not None
    ]

    def size(entry: tuple[Machine, TrainingEstimate]) -> tuple[int, int]:
        processes = entry[1].sharding.processes
        return processes * entry[0].memory_bytes, processes

    return min(fitting, key=size, default=None)

"""What training takes: memory of one process, time and money, skip-wise at a short window against full length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from skipwise.config import FullTuning, LoraTuning, QloraTuning, Tuning
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.memory import FLOAT32_BYTES, Sharding, TrainingState, training_flops
from skipwise.plan.machines import GIGA, MACHINES, TERA, Machine, Utilisation
from skipwise.plan.profiles import Profiles, Step

ADAM_BYTES = 2 * FLOAT32_BYTES
# What the driver, CUDA's libraries and the communication take of an accelerator beside tensors.
CONTEXT_BYTES = 600 * 2**20
# What Python, torch and the transformers library take of a process without an accelerator.
PROCESS_BYTES = 530 * 2**20
# What glibc's heap cannot use again while activations come and go: on SmolLM2-135M 150 to 500 MiB, whatever the
# window (docs/results/planning.md). An accelerator's allocator has the share of memory that is left free for it.
HEAP_HOLES_BYTES = 320 * 2**20
_AS_FAST = 1.01
PROCESS_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How much is trained.

    Attributes:
        steps: optimizer steps.
        global_batch: windows of a step, over all processes.
        micro_batch: windows at a time in each process; None for as many as fit.
    """

    steps: int = STEPS
    global_batch: int = GLOBAL_BATCH
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """One way to train.

    Attributes:
        name: for people.
        window_tokens: length of a training example: the short window, or the target.
        tuning: full, lora or qlora.
        checkpointing: layers are computed again in the backward pass.
        whole_logits: the loss makes all logits at once, as a library's own does; skipwise never does.
        diluted: attention is diluted, by a mask of all pairs.
        context: processes that hold each window together, a part of its tokens each.
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
        """Whether the frozen linear layers are in 4 bits."""
        return self.tuning.kind == "qlora"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEstimate:
    """What one approach takes on one machine.

    Attributes:
        approach: how it trains.
        sharding: over how many processes, and what is split.
        micro_batch: windows at a time in each process.
        accumulation: micro-batches of a step.
        state: of training in one process, in bytes.
        activation_bytes: beside the state, at the peak.
        loss_bytes: what the loss takes at its own peak: logits, and the gradient of a head that is trained.
        other_bytes: of the driver and its libraries, or of the program itself on a CPU.
        limit_bytes: what a plan may fill of one accelerator.
        step_seconds: of one step of all processes together.
        hours: of the whole job.
        cost: of it, in the currency that the price was given in; None without a price.
        formula: activations are by formula, as the model could not be run without numbers.
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
    hours: float
    cost: float | None
    formula: bool = False

    @property
    def total_bytes(self) -> int:
        """Peak of one process."""
        return self.state.total + self.activation_bytes + self.other_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.total_bytes <= self.limit_bytes

    @property
    def windows(self) -> int:
        """Windows of a step, over all processes: the job's, or the next number that they can share evenly."""
        return self.micro_batch * self.accumulation * self.sharding.processes // self.approach.context

    @property
    def processor_hours(self) -> float:
        """Hours of all accelerators together."""
        return self.hours * self.sharding.processes


class TrainingPlanner:
    """Estimates approaches for one model on one kind of machine.

    Args:
        profiles: of the model.
        machine: what it is trained on.
        utilisation: shares of speed and memory that are reached.
        price: of an hour of one accelerator; None where money is not asked about.
        other_bytes: what a process takes beside tensors; by default what CUDA does, or Python itself on a CPU.

    Attributes:
        price: as given.
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
        own = PROCESS_BYTES if machine.bits == 32 else CONTEXT_BYTES
        self._other_bytes = own if other_bytes is None else other_bytes

    def estimate(self, approach: Approach, job: Job, sharding: Sharding, micro_batch: int = 1) -> TrainingEstimate:
        """What one approach takes."""
        groups = sharding.processes // approach.context
        accumulation = max(1, -(-job.global_batch // (micro_batch * groups)))
        in_half = self._in_half(sharding)
        profile = self._profiles.step(
            Step(
                window_tokens=approach.window_tokens // approach.context,
                batch=micro_batch,
                tuning=approach.tuning,
                checkpointing=approach.checkpointing,
                # What is split comes and goes in parts: it is counted throughout.
                gradients_held=accumulation > 1 or sharding.processes > 1,
                bits=self._machine.bits,
                in_half=in_half or sharding.splits_parameters,
                diluted=approach.diluted,
                library_loss=approach.whole_logits,
            )
        )
        trained, numbers = self._profiles.trained(approach.tuning)
        state = self.state(approach, in_half=in_half).sharded(
            sharding,
            numbers=numbers,
            trained=trained,
            whole_bytes=self._whole_bytes(approach),
            unsplit=self._profiles.in_four_bits(approach.tuning).scale_bytes,
        )
        if self._machine.bits == 32:
            # A tiny model's tensors come from the C library's small bins.
            profile = profile.with_more(min(HEAP_HOLES_BYTES, FLOAT32_BYTES * self._shape.counts.total))
        activations = profile.peak(len(self._shape.layers), state.gradients) - state.gradients
        # PyTorch's ring gathers the keys and values of one layer at a time.
        activations += max(self._ring_bytes(approach, micro_batch), default=0)
        seconds = self._step_seconds(approach, sharding, micro_batch, accumulation)
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
            hours=hours,
            cost=None if self.price is None else self.price * hours * sharding.processes,
            formula=self._profiles.by_formula,
        )

    def largest_batch(self, approach: Approach, job: Job, sharding: Sharding) -> TrainingEstimate:
        """The same with the largest micro-batch that fits; with 1 where none does.

        It divides the windows that a process has of a step, so that a step has as many as with one at a time. Where
        the job says how many, it is those.
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
        """The whole model on each of several processes where that fits and is no slower; else everything split."""
        if processes == 1:
            return self.largest_batch(approach, job, Sharding())
        whole, split = (
            self.largest_batch(approach, job, Sharding(processes=processes, kind=kind)) for kind in ("ddp", "fsdp")
        )
        return whole if whole.fits and whole.step_seconds <= _AS_FAST * split.step_seconds else split

    def nearest(self, approach: Approach, job: Job) -> tuple[Machine, TrainingEstimate] | None:
        """The fewest of this very machine that it fits on; None where none do, and for a CPU."""
        found = self.fewest(approach, job) if self._machine.bits == 16 else None
        return None if found is None else (self._machine, found)

    def fewest(self, approach: Approach, job: Job) -> TrainingEstimate | None:
        """The fewest processes it fits on, split as little as will do; None where one a window is too few."""
        for processes in (count for count in PROCESS_COUNTS if count % approach.context == 0):
            if processes // approach.context * (job.micro_batch or 1) > job.global_batch:
                break
            for kind in ("ddp",) if processes == 1 else ("ddp", "zero1", "zero2", "fsdp"):
                found = self.estimate(approach, job, Sharding(processes=processes, kind=kind), job.micro_batch or 1)
                if found.fits:
                    return found
        return None

    def state(self, approach: Approach, *, in_half: bool = False) -> TrainingState:
        """The state of training, whole.

        Trained numbers are held in float32, with a gradient and two states of Adam: 16 bytes each, as `extend` trains
        under autocast. What low-rank additions leave frozen is in 16 bits on an accelerator, linear layers in 4 bits
        with their scales where they are quantized.

        Args:
            approach: how it trains.
            in_half: trained numbers and gradients are in 16 bits, and the optimizer has a float32 copy: 16 bytes, too.
        """
        trained, total = self._profiles.trained(approach.tuning)
        frozen = total - trained
        frozen_bytes = self._frozen_bytes(approach, frozen)
        size = 2 if in_half else FLOAT32_BYTES
        return TrainingState(
            parameters=frozen_bytes + trained * size,
            gradients=trained * size,
            optimizer=trained * (ADAM_BYTES + (FLOAT32_BYTES if in_half else 0)),
        )

    def _frozen_bytes(self, approach: Approach, frozen: int) -> int:
        size = FLOAT32_BYTES if approach.tuning.kind == "full" or self._machine.bits == 32 else 2
        four = self._profiles.in_four_bits(approach.tuning)
        return four.bytes + size * (frozen - four.numbers)

    def _in_half(self, sharding: Sharding) -> bool:
        """Whether the engine holds trained numbers in 16 bits."""
        return sharding.is_deepspeed and self._machine.bits == 16

    def _whole_bytes(self, approach: Approach) -> int:
        """Bytes that FSDP has whole at once, in what is computed in.

        What is in no layer belongs to the root, which torch's FSDP keeps whole from its forward pass to the end of the
        backward one; beside it two layers, as the next is fetched while one computes; and of what is trained, the
        gradients of the root and of one layer, until they are summed.
        """
        root, layer = self._shape.outside_layers, self._shape.largest_layer
        size = 2 if self._machine.bits == 16 else FLOAT32_BYTES
        # Scales are on every process as it is.
        four = self._profiles.in_four_bits(approach.tuning)
        inside = self._shape.counts.total - root
        layers = 2 * layer * (size * (inside - four.numbers) + four.packed_bytes) // inside
        return size * root + layers + (size * (root + layer) if approach.tuning.kind == "full" else 0)

    def _step_seconds(self, approach: Approach, sharding: Sharding, micro_batch: int, accumulation: int) -> float:
        """Operations over speed, or what moves between processes if that takes longer, and the optimizer's pass."""
        shape = self._shape
        flops = training_flops(
            shape.counts,
            shape.layers,
            approach.window_tokens,
            checkpointing=approach.checkpointing,
            frozen=approach.tuning.kind != "full",
        )
        speed = self._machine.tflops * TERA * self._utilisation.training
        computing = micro_batch * accumulation * flops / (speed * approach.context)
        moving = self.moving_seconds(approach, sharding, accumulation, micro_batch)
        return max(computing, moving) + self.optimizer_seconds(approach, sharding)

    def _ring_bytes(self, approach: Approach, micro_batch: int) -> list[int]:
        """Of each layer, bytes of all keys and values that go round; none where windows are not split."""
        if approach.context == 1:
            return []
        size = micro_batch * approach.window_tokens * self._machine.bits // 8
        return [size * layer.cached_values(latent=False) for layer in self._shape.layers]

    def moving_seconds(self, approach: Approach, sharding: Sharding, accumulation: int, micro_batch: int = 1) -> float:
        """What moves between processes in a step, over their links; engines move it while they compute.

        Keys and values of a window that is split go round forward, forward again where layers are computed again, and
        backward, where their gradients do, too, in float32.
        """
        trained, numbers = self._profiles.trained(approach.tuning)
        gathered = self._frozen_bytes(approach, numbers - trained) + 2 * trained if approach.quantized else 2 * numbers
        moved = sharding.moved_bytes(gathered_bytes=gathered, trained=trained, micro_batches=accumulation)
        rounds = 2 + approach.checkpointing + 8 * FLOAT32_BYTES / self._machine.bits
        others = (approach.context - 1) / approach.context
        moved += accumulation * others * rounds * sum(self._ring_bytes(approach, micro_batch))
        return moved / (self._machine.link_between(sharding.processes) * GIGA * self._utilisation.network)

    def optimizer_seconds(self, approach: Approach, sharding: Sharding) -> float:
        """The optimizer's pass over its state, numbers and gradients, read and written."""
        trained, _ = self._profiles.trained(approach.tuning)
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
    """Skip-wise at the short window and full length at the target, each in full, low-rank, and low-rank in 4 bits.

    Windows of full length may be split over as many processes as `context` says.
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
    profiles: Profiles,
    approach: Approach,
    job: Job,
    utilisation: Utilisation,
    machines: Sequence[str] = tuple(MACHINES),
) -> tuple[Machine, TrainingEstimate] | None:
    """The machine and number of processes with the least memory in all that this fits on; None where none does."""
    fitting = []
    for name in machines:
        machine = MACHINES[name]
        if (found := TrainingPlanner(profiles, machine, utilisation).fewest(approach, job)) is not None:
            fitting.append((found.sharding.processes * machine.memory_bytes, found.sharding.processes, machine, found))
    if not fitting:
        return None
    _, _, machine, found = min(fitting, key=lambda entry: entry[:2])
    return machine, found

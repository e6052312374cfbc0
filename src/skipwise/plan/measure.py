"""Real training steps and prefills on this machine, compared with the prediction.

Each measurement runs in its own process, whose peak the operating system or the accelerator reports.

    python -m skipwise.plan.measure '{"model": ..., "what": "step", "window": 1024, ...}'
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from skipwise.allocator import give_back_free_memory, use_huge_pages, use_one_malloc_arena
from skipwise.config import FullTuning, LoraTuning, QloraTuning, RunConfig, Tuning
from skipwise.errors import ConfigError
from skipwise.memory import Sharding, prefill_flops
from skipwise.plan.machines import GIB, TERA, Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.shape import model_shape
from skipwise.plan.trace import Tracer
from skipwise.plan.training import Approach, Job, TrainingEstimate, TrainingPlanner

STEPS = 3
# Drivers keep a little of an accelerator's memory, so it may differ from the specification by this share.
_SAME_MEMORY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One prediction and its measurement.

    Attributes:
        name: what was measured.
        predicted_bytes: peak of memory.
        measured_bytes: likewise.
        predicted_seconds: one step or one prefill, with the utilisation that was assumed.
        measured_seconds: likewise.
    """

    name: str
    predicted_bytes: int
    measured_bytes: int
    predicted_seconds: float
    measured_seconds: float

    @property
    def memory_error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def time_error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedPlanning:
    """What was measured, and the assumptions corrected by it.

    Attributes:
        measured: a training step and two prefills.
        utilisation: with the fractions of speed that were reached.
        machine: with the speed that was reached, if that is more than was assumed.
    """

    measured: Sequence[Measured]
    utilisation: Utilisation
    machine: Machine


def calibrate_plan(
    model: str,
    machine: Machine,
    utilisation: Utilisation,
    *,
    window_tokens: int,
    lengths: Sequence[int] = (1024, 2048),
    checkpointing: bool = True,
    lora: LoraTuning | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> CalibratedPlanning:
    """Runs three short training steps and two short prefills here, and corrects the utilisation by them.

    Args:
        model: a folder, a hub name, or a GGUF file, with weights.
        machine: what planning assumes of this machine.
        utilisation: what was assumed.
        window_tokens: length of a training example.
        lengths: lengths of the two prompts, in tokens.
        checkpointing: gradient checkpointing.
        lora: low-rank adapters, trained if full fine-tuning is predicted not to fit.
        trust_remote_code: run Python code that comes with the model.
        tell: called with what is measured next.

    Raises:
        ConfigError: this is another machine, the model does not fit on it, or a measurement failed.
    """
    check_machine(machine)
    measurer = Measurer(model, machine, utilisation, trust_remote_code=trust_remote_code)
    tuning = measurer.fitting(window_tokens, (FullTuning(), lora or LoraTuning()), checkpointing=checkpointing)
    tell(f"three training steps ({tuning.kind}), one window of {window_tokens} tokens each")
    step = measurer.step(tuning, window_tokens, checkpointing=checkpointing)
    prefills = []
    for length in lengths:
        tell(f"prefill of {length} tokens")
        prefills.append(measurer.prefill(length))
    # Apart from the optimizer's, seconds are inversely proportional to the fraction of the speed that is reached.
    optimizer = measurer.planner.optimizer_seconds(_approach(tuning), Sharding())
    training = utilisation.training * (step.predicted_seconds - optimizer)
    training /= max(1e-9, step.measured_seconds - optimizer)
    prefill = utilisation.prefill * median(one.predicted_seconds / one.measured_seconds for one in prefills)
    # More than the whole speed means that the machine is faster than was assumed, as for a CPU by its cores.
    faster = max(1.0, training, prefill)
    return CalibratedPlanning(
        measured=[step, *prefills],
        utilisation=replace(utilisation, training=training / faster, prefill=prefill / faster),
        machine=replace(machine, tflops=machine.tflops * faster),
    )


def check_machine(machine: Machine) -> None:
    """Refuses a machine that this one is not.

    Raises:
        ConfigError: says what is here.
    """
    here = torch.accelerator.is_available()
    if machine.is_cpu == here:
        raise ConfigError(
            f"--calibrate measures this machine, which has {'an accelerator' if here else 'no accelerator'}, and "
            f"--machine is {machine.name}; plan for the machine that is here, or run this there"
        )
    if here:
        found = torch.accelerator.get_memory_info()[1]
        if abs(found - machine.memory_bytes) > _SAME_MEMORY * machine.memory_bytes:
            raise ConfigError(
                f"--calibrate measures this machine, whose accelerator has {found / GIB:.1f} GiB, and --machine is "
                f"{machine.name} with {machine.memory_gib:g}; give the name of the one that is here"
            )


class Measurer:
    """Compares training steps and prefills of one model on this machine with the prediction.

    Args:
        model: a folder, a hub name, or a GGUF file, with weights.
        machine: what planning assumes of this machine.
        utilisation: what is assumed of its use.
        trust_remote_code: run Python code that comes with the model.

    Attributes:
        planner: makes the predictions for training.
    """

    def __init__(
        self, model: str, machine: Machine, utilisation: Utilisation, *, trust_remote_code: bool = False
    ) -> None:
        self._shape = model_shape(model, trust_remote_code=trust_remote_code)
        self._machine, self._utilisation = machine, utilisation
        self.planner = TrainingPlanner(Profiles(self._shape), machine, utilisation)
        self._question = {"model": model, "trust_remote_code": trust_remote_code}

    def fitting(self, window_tokens: int, tunings: Sequence[Tuning], *, checkpointing: bool) -> Tuning:
        """The first of these tunings whose step is predicted to fit on this machine.

        Raises:
            ConfigError: none fits.
        """
        takes = []
        for tuning in tunings:
            predicted = self._predicted(_approach(tuning, window_tokens, checkpointing))
            if predicted.fits:
                return tuning
            takes.append(f"{predicted.total_bytes / GIB:.1f} GiB ({tuning.kind})")
        raise ConfigError(
            f"a step of one window of {window_tokens} tokens takes {' or '.join(takes)}, and of this "
            f"{self._machine.name} {self._utilisation.memory * self._machine.memory_gib:.1f} GiB may be filled; "
            "measure with a shorter --window",
            page="out-of-memory",
        )

    def _predicted(self, approach: Approach, accumulation: int = 1) -> TrainingEstimate:
        return self.planner.estimate(approach, Job(steps=STEPS, global_batch=accumulation), Sharding())

    def step(self, tuning: Tuning, window_tokens: int, *, checkpointing: bool, accumulation: int = 1) -> Measured:
        """Three training steps by the Trainer of `extend`; the time is the median after the first.

        Raises:
            ConfigError: the measurement failed.
        """
        half = not self._machine.is_cpu
        found = run_apart(
            {
                **self._question,
                "what": "step",
                "window": window_tokens,
                "tuning": tuning.model_dump(mode="json", exclude_none=True),
                "checkpointing": checkpointing,
                "accumulation": accumulation,
                "bf16": half,
                "dtype": "bfloat16" if half and tuning.kind != "full" else "float32",
            }
        )
        predicted = self._predicted(_approach(tuning, window_tokens, checkpointing), accumulation)
        again = "checkpointing" if checkpointing else "no checkpointing"
        return Measured(
            name=f"step, {tuning.kind}, {again}, {window_tokens} tokens",
            predicted_bytes=predicted.total_bytes,
            measured_bytes=found["peak_bytes"],
            predicted_seconds=predicted.step_seconds,
            measured_seconds=found["seconds"],
        )

    def prefill(self, length_tokens: int) -> Measured:
        """A prompt that is read twice; the time is that of the second.

        Raises:
            ConfigError: the measurement failed.
        """
        shape, machine = self._shape, self._machine
        dtype = torch.float32 if machine.is_cpu else torch.bfloat16
        name = str(dtype).removeprefix("torch.")
        found = run_apart({**self._question, "what": "prefill", "length": length_tokens, "dtype": name})
        peak = Tracer(shape.config).prefill(length_tokens, chunk_tokens=found["chunk_tokens"], dtype=dtype)
        weights = dtype.itemsize * shape.counts.total
        operations = prefill_flops(shape.counts, shape.layers, length_tokens)
        return Measured(
            name=f"prefill, {length_tokens} tokens",
            predicted_bytes=machine.inference_process_bytes + weights + peak.held(len(shape.layers)),
            measured_bytes=found["peak_bytes"],
            predicted_seconds=operations / (machine.tflops * TERA * self._utilisation.prefill),
            measured_seconds=found["seconds"],
        )


def _approach(tuning: Tuning, window_tokens: int = 1, checkpointing: bool = True) -> Approach:
    return Approach(name="step", window_tokens=window_tokens, tuning=tuning, checkpointing=checkpointing)


def run_apart(question: dict[str, Any], module: str = "skipwise.plan.measure") -> dict[str, Any]:
    """One measurement in its own process.

    Args:
        question: `model`, `what` (step or prefill), and the settings that the module's `main` reads.
        module: that answers it.

    Returns:
        `seconds` of a step or a prefill, and `peak_bytes` of the process or the accelerator.

    Raises:
        ConfigError: it failed.
    """
    environment = dict(os.environ)
    use_huge_pages(environment)
    command = [sys.executable, "-m", module, json.dumps(question)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        killed = f"stopped by signal {-done.returncode}, probably out of memory" if done.returncode < 0 else ""
        last = killed or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"measuring a {question['what']} of {question['model']!r} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """One measurement in this process; prints one line of JSON."""
    question = json.loads(sys.argv[1])
    is_step = question["what"] == "step"
    if is_step:
        use_one_malloc_arena()
    from skipwise.model import four_bits, load_model
    from skipwise.runtime.chunks import pass_columns
    from skipwise.runtime.peak import Peak

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    tuning, quantization = _tuning(question) if is_step else None, None
    if isinstance(tuning, QloraTuning):
        quantization = four_bits(tuning, device, compute=getattr(torch, question["dtype"]))
    loaded: Any = load_model(
        question["model"],
        trust_remote_code=question["trust_remote_code"],
        dtype=question["dtype"],
        quantization=quantization,
    )
    model = loaded.model.to(device)
    give_back_free_memory()  # What reading the file took does not count.
    peak = Peak(device)
    found = {} if is_step else {"chunk_tokens": pass_columns(model, 1, question["length"])}
    seconds = (_step_seconds if is_step else _prefill_seconds)(model, question)
    print(json.dumps({**found, "seconds": seconds, "peak_bytes": peak.look()}), flush=True)


def _tuning(question: dict[str, Any]) -> Tuning:
    return RunConfig.from_mapping({"model": "-", "target": 2, "tuning": question["tuning"]}).tuning


def _step_seconds(model: Any, question: dict[str, Any]) -> float:
    import numpy as np

    from skipwise.train.timing import step_seconds

    vocabulary, rng = model.config.get_text_config().vocab_size, np.random.default_rng(0)
    accumulation = question["accumulation"]
    seconds = step_seconds(
        model,
        [rng.integers(0, vocabulary, question["window"]) for _ in range(STEPS * accumulation)],
        tuning=_tuning(question),
        accumulation=accumulation,
        gradient_checkpointing=question["checkpointing"],
        **({"bf16": True} if question["bf16"] else {}),
    )
    return median(seconds[1:])


def _prefill_seconds(model: Any, question: dict[str, Any]) -> float:
    from skipwise.evals.tasks.serving import serve

    model.eval()
    prompt = torch.randint(0, model.config.get_text_config().vocab_size, (1, question["length"]))
    serve(model, prompt, 1)
    return serve(model, prompt, 1).prefill_seconds


if __name__ == "__main__":
    main()

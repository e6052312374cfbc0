"""What a plan recommends and why, in words, as a config for `skipwise extend`, and as settings for engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipwise.memory import Sharding
from skipwise.model.extend import extended_config
from skipwise.plan.cards import HUB_NAMES
from skipwise.plan.engines import engine_commands
from skipwise.plan.machines import Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.recipe import RecipeEstimate, recipe_estimate
from skipwise.plan.serving import Deployment, routing_length
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import Job, TrainingEstimate, TrainingPlanner
from skipwise.report.quantities import bytes_text, digits_text, seconds_text
from skipwise.rope import interpolation_from
from skipwise.window import Window, length_label

_GROWING, _DILUTED = "growing", "diluted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is recommended.

    Attributes:
        words: a sentence or two an entry, the most important first.
        config: a run for `skipwise extend`.
        engines: commands to serve it, by engine.
        recipe: what the run takes by the recipe that is recommended; None where nothing fits.
    """

    words: Sequence[str]
    config: Mapping[str, Any]
    engines: Mapping[str, str]
    recipe: RecipeEstimate | None


def advise(
    profiles: Profiles,
    window: Window,
    machine: Machine,
    planner: TrainingPlanner,
    training: Sequence[TrainingEstimate],
    job: Job,
    deployment: Deployment,
    utilisation: Utilisation,
    *,
    nearest: Sequence[tuple[Machine, TrainingEstimate] | None],
    fewest_to_serve: int | None,
    requests: int,
) -> Advice:
    """Recommends an approach, a recipe, a batch and a way to serve.

    Args:
        profiles: of the model.
        window: lengths.
        machine: one accelerator.
        planner: of training on it.
        training: what was estimated there.
        job: how much is trained.
        deployment: how it is served.
        utilisation: shares of speed and memory.
        nearest: of each approach in `training`, the nearest setting that fits.
        fewest_to_serve: accelerators for one request of the target length; None where 64 are too few.
        requests: at once, in serving.
    """
    shape = profiles.shape
    kind = _interpolation_kind(shape)
    short = [one for one in training if one.approach.window_tokens == window.train]
    # `skipwise extend` trains in full and by low-rank additions; 4-bit weights are said, not chosen.
    chosen = next((one for one in short if one.fits and not one.approach.quantized), None)
    words = [_approach_words(short, chosen, machine, job, nearest), *_full_length_words(training, window)]
    words.append(_interpolation_words(kind, window))
    words.append(_window_words(shape, window))
    recipe = None
    if chosen is not None:
        grown, recipe = (recipe_estimate(planner, chosen, window, job, name) for name in (_GROWING, _DILUTED))
        words.append(_recipe_words(grown, recipe))
        recipe = grown if grown.fits else recipe
        words.append(_batch_words(chosen, machine))
        if (moving := planner.moving_seconds(chosen.approach, chosen.sharding, chosen.accumulation)) > (
            chosen.step_seconds / 2
        ):
            words.append(_moving_words(moving, chosen, machine))
    if deployment.count < (given := training[0].sharding.processes):
        words.append(
            f"Serving is planned on {deployment.count} of the {given} x {machine.name}: engines give each "
            "as many heads."
        )
    words += _serving_words(profiles, window, deployment, utilisation, fewest_to_serve)
    words.append(
        "What gets worse: short text by some per cent of perplexity, which more steps and a smaller target lower, and "
        "facts are found less surely the longer the text. Neither shows in the training loss: measure both."
    )
    words.append(
        "Before the large run: `skipwise doctor` on this model and machine; then 100 steps of this config, and "
        "`skipwise eval` for perplexity and passkeys at the target and --task regression against the base. Go on when "
        "perplexity falls with length up to the target and short text is no worse than you can bear."
    )
    extended = extended_config(shape.config, interpolation_from(kind), window)
    base = HUB_NAMES.get(shape.name, shape.name)
    return Advice(
        words=words,
        config=_config(
            shape,
            window,
            kind,
            _DILUTED if recipe is None else recipe.name,
            chosen,
            machine,
            job,
            checkpointing=short[0].approach.checkpointing,
        ),
        engines=engine_commands(
            base, window.target, deployment, extended, requests=requests, memory_share=utilisation.memory
        ),
        recipe=recipe,
    )


def _interpolation_kind(shape: ModelShape) -> str:
    """YaRN, or whatever the model is scaled by already: extending it again must be of the same kind."""
    from skipwise.model import rope_state

    state = rope_state(shape.config)
    return state.kind if state.scaled else "yarn"


def _approach_words(
    short: Sequence[TrainingEstimate],
    chosen: TrainingEstimate | None,
    machine: Machine,
    job: Job,
    nearest: Sequence[tuple[Machine, TrainingEstimate] | None],
) -> str:
    if chosen is None:
        able = [one for one in short if not one.approach.quantized]
        least = min(able, key=lambda one: one.total_bytes)
        over = least.total_bytes - least.limit_bytes
        would_do = [
            f"{one.approach.name} on {_machines(one.sharding.processes, place)}"
            for place, one in filter(None, nearest)
            if one.approach in [each.approach for each in able]
        ]
        in_four = next((one for one in short if one.fits), None)
        return (
            f"Nothing that `skipwise extend` trains fits on {_machines(least.sharding.processes, machine)}: the least, "
            f"{least.approach.name}, takes {bytes_text(least.total_bytes)} of each and "
            f"{bytes_text(least.limit_bytes)} may be filled, {bytes_text(over)} too much. The nearest that fits: "
            + ("; ".join(would_do) or "none of the built-in machines, up to a thousand of them")
            + (". 4-bit weights would fit here." if in_four is not None else ".")
        )
    cost = "" if chosen.cost is None else f", {digits_text(chosen.cost)} at the given price"
    return (
        f"Train by {chosen.approach.name}: {bytes_text(chosen.total_bytes)} of the {bytes_text(chosen.limit_bytes)} "
        f"that may be filled of each {machine.name}, {job.steps} steps in {seconds_text(3600 * chosen.hours)} "
        f"({digits_text(chosen.processor_hours)} hours of accelerators{cost})."
        + (" Activations are by formula here: this model cannot be run without numbers." if chosen.formula else "")
    )


def _full_length_words(training: Sequence[TrainingEstimate], window: Window) -> list[str]:
    pairs = {
        (one.approach.tuning.kind, one.approach.quantized, one.approach.window_tokens == window.train): one
        for one in training
    }
    short, full = pairs.get(("full", False, True)), pairs.get(("full", False, False))
    if short is None or full is None or window.train == window.target:
        return []
    fits = "fits here too" if full.fits else "does not fit here"
    times = full.step_seconds / short.step_seconds
    return [
        f"Training at the full length of {length_label(window.target)} {fits}: {bytes_text(full.total_bytes)}, and a "
        f"step of as many windows takes {digits_text(times)} times as long, for "
        f"{digits_text(window.target / window.train)} times the tokens."
    ]


def _interpolation_words(kind: str, window: Window) -> str:
    factor = digits_text(window.factor)
    if kind != "yarn":
        return f"Interpolation: {kind}, as the model has it already; it is worked out anew from the original window."
    return (
        f"Interpolation: YaRN at factor {factor}. At 64 times, the PoSE paper (table 2) has linear lose far more on "
        "short text, and NTK turn up before the target; YaRN's attention factor can be calibrated afterwards, and "
        "vLLM and llama.cpp load it."
    )


def _window_words(shape: ModelShape, window: Window) -> str:
    why = (
        "the model's own"
        if window.train == window.original
        else "shorter than the model's own, for memory and time"
        if window.train < window.original
        else "longer than the model's own"
    )
    return (
        f"Training window: {length_label(window.train)}, {why}. Skips reach {length_label(window.target)} from any "
        "window; a longer one shows a query more keys at a time, and costs as much more."
        + (" Layers with a sliding window keep their reach; the others are extended." if _slides(shape) else "")
    )


def _slides(shape: ModelShape) -> bool:
    return any(layer.window_tokens is not None for layer in shape.layers)


def _recipe_words(grown: RecipeEstimate, diluted: RecipeEstimate) -> str:
    """The recipe whose windows grow, where its widest fits; else the one whose memory never grows."""
    widest, takes = length_label(grown.widest_tokens), bytes_text(grown.total_bytes)
    if grown.fits:
        return (
            f"Recipe: growing. Its windows grow to {widest}, of as many tokens at a time as can be, and take {takes}, "
            f"which fits, and {_whole_job(grown)} in all; a query that learns among more keys finds its way better at "
            "the target."
        )
    return (
        f"Recipe: diluted, {_whole_job(diluted)} in all. Windows that grow to {widest} would take {takes}; diluted "
        "attention teaches the same with the memory of the short window."
    )


def _whole_job(recipe: RecipeEstimate) -> str:
    cost = "" if recipe.cost is None else f", {digits_text(recipe.cost)} at the given price"
    return f"{digits_text(recipe.processor_hours)} hours of accelerators{cost}"


def _moving_words(moving: float, chosen: TrainingEstimate, machine: Machine) -> str:
    return (
        f"Links: what moves between the {chosen.sharding.processes} x {machine.name} takes {seconds_text(moving)} of a "
        f"step of {seconds_text(chosen.step_seconds)}, more than computing does; more windows at a time, or fewer "
        "accelerators that hold more each, would be faster."
    )


def _batch_words(chosen: TrainingEstimate, machine: Machine) -> str:
    split = {
        "ddp": "the whole model on each",
        "zero1": "the optimizer's state split (ZeRO-1)",
        "zero2": "the optimizer's state and gradients split (ZeRO-2)",
        "zero3": "everything split (ZeRO-3)",
        "fsdp": "everything split (FSDP full shard)",
    }[chosen.sharding.kind]
    where = f"{split}, " if chosen.sharding.processes > 1 else ""
    times = "once" if chosen.accumulation == 1 else f"{chosen.accumulation} times"
    return (
        f"Batch: {where}{chosen.micro_batch} {'window' if chosen.micro_batch == 1 else 'windows'} at a time on "
        f"{'' if chosen.sharding.processes == 1 else 'each of '}{_machines(chosen.sharding.processes, machine)}, "
        f"{times} before a step."
        + (
            " Start `skipwise extend` under torchrun or accelerate launch, with the sharding in training.fsdp or "
            "training.deepspeed, which go to the Trainer as they are."
            if chosen.sharding.processes > 1
            else ""
        )
    )


def _serving_words(
    profiles: Profiles, window: Window, deployment: Deployment, utilisation: Utilisation, fewest: int | None
) -> list[str]:
    name = deployment.machine.name
    if fewest is None:
        return [
            f"Serving {length_label(window.target)}: not even 64 x {name} hold one request; take fewer bits of weights "
            "and cache, or a shorter target."
        ]
    words = [f"Serving {length_label(window.target)} takes {_machines(fewest, deployment.machine)} for one request."]
    beginning, times = routing_length(profiles, deployment, utilisation, window.original, window.target)
    if 1 < times < float("inf"):
        words.append(
            f"Send requests of {beginning} tokens and more, answer counted in, to the long mode, and all others to the "
            f"short one, which answers as the base model does; a server that holds room for "
            f"{length_label(window.original)} alone takes {digits_text(times)} times as many of those at once."
        )
    return words


def _config(
    shape: ModelShape,
    window: Window,
    kind: str,
    recipe: str,
    chosen: TrainingEstimate | None,
    machine: Machine,
    job: Job,
    *,
    checkpointing: bool,
) -> dict[str, Any]:
    """A run that `skipwise extend --config` takes as it is, but for the documents."""
    batch, sharding = (1, Sharding()) if chosen is None else (chosen.micro_batch, chosen.sharding)
    training: dict[str, Any] = {
        "max_steps": job.steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": max(1, -(-job.global_batch // (batch * sharding.processes))),
    }
    if machine.bits == 16:
        training["bf16" if machine.half == "bfloat16" else "fp16"] = True
    if not checkpointing:
        training["gradient_checkpointing"] = False
    config: dict[str, Any] = {
        "model": HUB_NAMES.get(shape.name, shape.name),
        "target": length_label(window.target),
        "window": length_label(window.train),
        "recipe": recipe,
        "interpolation": {"kind": kind},
        "data": {"source": "stdlib"},
        "training": training,
    }
    if chosen is not None and chosen.approach.tuning.kind == "lora":
        config["tuning"] = chosen.approach.tuning.model_dump(exclude_none=True)
        if machine.bits == 16:
            config["dtype"] = machine.half
    return config


def _machines(count: int, machine: Machine) -> str:
    return f"one {machine.name}" if count == 1 else f"{count} x {machine.name}"

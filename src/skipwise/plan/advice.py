"""What a plan recommends and why, in words, as a config for `skipwise extend`, and as settings for engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipwise.config import RunConfig
from skipwise.launch import deepspeed_settings, fsdp_settings
from skipwise.memory import SHARDINGS, Sharding
from skipwise.model import rope_state
from skipwise.model.extend import extended_config
from skipwise.plan.cards import HUB_NAMES, TEXT_PARTS
from skipwise.plan.engines import engine_commands
from skipwise.plan.machines import Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.recipe import RecipeEstimate, fitting_estimate, growth_that_fits, planned_run
from skipwise.plan.serving import Deployment, routing_length
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import Job, TrainingEstimate, TrainingPlanner
from skipwise.report.quantities import bytes_text, digits_text, seconds_text
from skipwise.rope import eras
from skipwise.window import Window, length_label

_BEFORE = (
    "Before the large run: `skipwise doctor` on this model and machine; then 100 steps of this config, and `skipwise "
    "eval` for perplexity and passkeys at the target and --task regression against the base. Go on when perplexity "
    "falls with length up to the target and short text is no worse than you can bear."
)
# Beyond two weeks a plan is hardly one.
_LONG_HOURS = 24 * 14


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
    longest: Mapping[tuple[int, int], int],
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
        longest: tokens of the longest text of one request that fits, by bits of weights and of the cache.
        requests: at once, in serving.
    """
    shape = profiles.shape
    run = planned_run(shape, window, training[0].sharding.processes).config
    kind = run.interpolation["kind"]
    short = [one for one in training if one.approach.window_tokens == window.train]
    # In full, by low-rank additions, and over weights in 4 bits: the first that fits.
    chosen = next((one for one in short if one.fits), None)
    recipe = None if chosen is None else fitting_estimate(planner, chosen, window, job, run)
    words = [
        _nothing_fits_words(short, machine, nearest)
        if chosen is None or recipe is None
        else _approach_words(chosen, recipe, machine, job),
        *_full_length_words(training, window),
        _interpolation_words(kind, window, searched=rope_state(shape.config).was_searched),
        _window_words(shape, window),
        *(f"Beware: {setting}." for setting in eras.unapplied(shape.text.to_dict())),
    ]
    if chosen is not None and recipe is not None:
        words.append(_recipe_words(run, recipe, window))
        words.append(_batch_words(chosen, machine, job))
        if (moving := planner.moving_seconds(chosen.approach, chosen.sharding, chosen.accumulation)) > (
            chosen.step_seconds / 2
        ):
            words.append(_moving_words(moving, chosen, machine))
    if deployment.count < (given := training[0].sharding.processes):
        words.append(
            f"Serving is planned on {deployment.count} of the {given} x {machine.name}: engines give each as many "
            f"heads, and a model is shared within a node of {machine.node} where it fits."
        )
    words += _stored_words(shape)
    words += _serving_words(profiles, window, deployment, utilisation, fewest_to_serve, longest)
    words.append(
        "What gets worse: short text by some per cent of perplexity, which more steps and a smaller target lower, and "
        "facts are found less surely the longer the text. Neither shows in the training loss: measure both."
    )
    if chosen is None:
        words.append("Nothing is to be run yet: choose one of the settings that fit, and plan again.")
    else:
        words.append(_BEFORE)
    extended = extended_config(shape.config, run.build_interpolation(), window)
    base = HUB_NAMES.get(shape.name, shape.name)
    return Advice(
        words=words,
        config=_config(
            shape,
            window,
            run,
            recipe,
            chosen,
            machine,
            job,
            checkpointing=short[0].approach.checkpointing,
        ),
        engines=engine_commands(
            base,
            window.target,
            deployment
            if longest[deployment.weight_bits, deployment.kv_bits] >= window.target or fewest_to_serve is None
            else replace(deployment, count=fewest_to_serve),
            extended,
            requests=requests,
            memory_share=utilisation.memory,
            part=TEXT_PARTS.get(shape.name),
        ),
        recipe=recipe,
    )


def _stored_words(shape: ModelShape) -> list[str]:
    """That nothing here counts weights as they are packed, where they are."""
    if shape.stored is None:
        return []
    size = "" if shape.stored.weight_bytes is None else f", {bytes_text(shape.stored.weight_bytes)} of weights"
    words = (
        f"The checkpoint is stored as {shape.stored.method}{size}. No figure here counts that: training holds, and "
        "leaves, its weights dequantized."
    )
    if not shape.stored.is_trainable:
        words += " As it is it cannot be trained; `skipwise extend` says what dequantizes it."
    return [words]


def _nothing_fits_words(
    short: Sequence[TrainingEstimate],
    machine: Machine,
    nearest: Sequence[tuple[Machine, TrainingEstimate] | None],
) -> str:
    least = min(short, key=lambda one: one.total_bytes)
    over = least.total_bytes - least.limit_bytes
    would_do = [
        f"{one.approach.name} on {_machines(one.sharding.processes, place)}"
        + (f" by {one.sharding.kind}" if one.sharding.processes > 1 else "")
        for place, one in filter(None, nearest)
        if one.approach in [each.approach for each in short]
    ]
    return (
        f"Nothing that `skipwise extend` trains fits on {_machines(least.sharding.processes, machine)}"
        f"{f' by {least.sharding.kind}' if least.sharding.processes > 1 else ''}: the least, {least.approach.name}, "
        f"takes {bytes_text(least.total_bytes)} of each and {bytes_text(least.limit_bytes)} may be filled, "
        f"{bytes_text(over)} too much. The nearest that fits: "
        + ("; ".join(would_do) or "none of the built-in machines, up to a thousand of them")
        + "."
    )


def _approach_words(chosen: TrainingEstimate, recipe: RecipeEstimate, machine: Machine, job: Job) -> str:
    cost = "" if recipe.cost is None else f", {digits_text(recipe.cost)} at the given price"
    over_all = (
        "" if recipe.processes == 1 else f", {digits_text(recipe.processor_hours)} hours of all {recipe.processes}"
    )
    return (
        f"Train by {chosen.approach.name} and the recipe {recipe.name}: {bytes_text(recipe.total_bytes)} of the "
        f"{bytes_text(recipe.limit_bytes)} that may be filled of {'each' if recipe.processes > 1 else 'one'} "
        f"{machine.name}, {job.steps} steps in {seconds_text(3600 * recipe.hours)}{over_all}{cost}."
        + (" Activations are by formula here: this model cannot be run without numbers." if chosen.formula else "")
        + (
            " That is long: fewer steps, a smaller global batch, low-rank additions or a faster machine would help."
            if recipe.hours > _LONG_HOURS
            else ""
        )
    )


def _full_length_words(training: Sequence[TrainingEstimate], window: Window) -> list[str]:
    pairs = {(one.approach.tuning.kind, one.approach.window_tokens == window.train): one for one in training}
    short, full = pairs.get(("full", True)), pairs.get(("full", False))
    if short is None or full is None or window.train == window.target:
        return []
    fits = "fits here too" if full.fits else "does not fit here"
    times = full.step_seconds / short.step_seconds
    return [
        f"Training at the full length of {length_label(window.target)} {fits}: {bytes_text(full.total_bytes)}, and a "
        f"step of as many windows takes {digits_text(times)} times as long, for "
        f"{digits_text(window.target / window.train)} times the tokens."
    ]


def _interpolation_words(kind: str, window: Window, *, searched: bool) -> str:
    factor = digits_text(window.factor)
    if searched:
        return (
            "Interpolation: longrope, as the model has it already. Its divisors were searched for its own window. The "
            "run below has them stretched further by YaRN's, which nobody searched: compare with lists of your own."
        )
    if kind != "yarn":
        return f"Interpolation: {kind}, as the model has it already; it is worked out anew from the original window."
    return (
        f"Interpolation: YaRN, here by {factor}. In the PoSE paper's comparison at 64 times (table 2) linear lost far "
        "more on short text, and NTK turned up before the target; YaRN's attention factor can be calibrated "
        "afterwards, and vLLM and llama.cpp load it."
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


def _recipe_words(run: RunConfig, found: RecipeEstimate, window: Window) -> str:
    """The recipe that `extend` takes here by itself, and how wide its windows can grow."""
    if not run.growth:
        return (
            f"Recipe: {run.recipe}. Layers with a sliding window take no mask but their own: attention is not diluted."
        )
    asked, widest = length_label(found.asked_tokens), length_label(found.widest_tokens)
    words = f"Recipe: {run.recipe}. "
    if found.widest_tokens > window.train:
        words += (
            f"For the last steps windows grow to {widest}, with as many tokens at a time as before where that can be, "
            f"and take {bytes_text(found.total_bytes)}. A query that learns among more keys finds its way better at "
            "the target (docs/results/recipes-x16.md)."
        )
    else:
        words += "Windows stay short, as there is no memory for wider ones; attention is diluted all the same."
    if found.widest_tokens < found.asked_tokens:
        words += f" Windows of {asked} do not fit; extend finds that on its second step and lowers them by itself."
    return words


def _moving_words(moving: float, chosen: TrainingEstimate, machine: Machine) -> str:
    return (
        f"Links: what moves between the {chosen.sharding.processes} x {machine.name} takes {seconds_text(moving)} of a "
        f"step of {seconds_text(chosen.step_seconds)}, more than computing does; more windows at a time, or fewer "
        "accelerators that hold more each, would be faster."
    )


def _batch_words(chosen: TrainingEstimate, machine: Machine, job: Job) -> str:
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
        f"{times} before a step{f': {chosen.windows} windows' if chosen.windows != job.global_batch else ''}."
        + (
            " Start it by torchrun -m skipwise extend --config, or by --launch; --write-config writes how it is "
            "split under training." + (" DeepSpeed is a package of its own." if chosen.sharding.is_deepspeed else "")
            if chosen.sharding.processes > 1
            else ""
        )
    )


def _serving_words(
    profiles: Profiles,
    window: Window,
    deployment: Deployment,
    utilisation: Utilisation,
    fewest: int | None,
    longest: Mapping[tuple[int, int], int],
) -> list[str]:
    name, target = deployment.machine.name, length_label(window.target)
    bits = (deployment.weight_bits, deployment.kv_bits)
    words = []
    if longest[bits] < window.target:
        fewer = [f"{w}-bit weights with a {kv}-bit cache" for (w, kv), n in longest.items() if n >= window.target]
        words.append(
            f"Serving one request of {target} does not fit on {_machines(deployment.count, deployment.machine)}"
            + (
                f"; {fewer[0]} would"
                if fewer
                else f"; {_machines(fewest, deployment.machine)} would do, and the settings below are for those"
                if fewest
                else f", and not on 64 x {name}: take a shorter target"
            )
            + "."
        )
    else:
        words.append(f"Serving: one request of {target} fits on {_machines(deployment.count, deployment.machine)}.")
    # A model that has been extended before is read that far as it is.
    reach = rope_state(profiles.shape.config).maximum
    beginning, times = routing_length(profiles, deployment, utilisation, reach, window.target)
    if 1 < times < float("inf"):
        words.append(
            "Serve in two modes: the base model as it was for what fits its window, since it is never better "
            f"stretched, and the extended one from {beginning} tokens on, answer counted in. A server that holds room "
            f"for {length_label(reach)} alone takes {digits_text(times)} times as many requests at once."
        )
    return words


def _config(
    shape: ModelShape,
    window: Window,
    run: RunConfig,
    recipe: RecipeEstimate | None,
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
        "gradient_accumulation_steps": max(1, -(-job.global_batch // (batch * sharding.processes)))
        if chosen is None
        else chosen.accumulation,
    }
    if machine.bits == 16:
        training["bf16" if machine.half == "bfloat16" else "fp16"] = True
    if not checkpointing:
        training["gradient_checkpointing"] = False
    if sharding.kind == "fsdp":
        training |= {"fsdp": True, "fsdp_config": fsdp_settings()}
    elif sharding.is_deepspeed:
        training["deepspeed"] = deepspeed_settings(SHARDINGS[sharding.kind])
    config: dict[str, Any] = {
        "model": HUB_NAMES.get(shape.name, shape.name),
        "target": length_label(window.target),
        "window": length_label(window.train),
        "recipe": run.recipe,
        "interpolation": dict(run.interpolation),
        # Not there yet: a run on anything but the user's own text would be a waste.
        "data": {"source": "documents"},
        "training": training,
    }
    if recipe is not None and recipe.widest_tokens < recipe.asked_tokens:
        config["growth"] = growth_that_fits(run, window, recipe)
    if shape.told_original is not None:
        config["original"] = length_label(shape.told_original)
    if chosen is not None and chosen.approach.tuning.kind != "full":
        config["tuning"] = chosen.approach.tuning.model_dump(exclude_none=True)
        if machine.bits == 16:
            config["dtype"] = machine.half
    return config


def _machines(count: int, machine: Machine) -> str:
    return f"one {machine.name}" if count == 1 else f"{count} x {machine.name}"

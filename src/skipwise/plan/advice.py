"""What a plan recommends: in words, as a config for `skipwise extend`, and as commands for engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skipwise.launch import deepspeed_settings
from skipwise.memory import SHARDINGS, Sharding
from skipwise.model import rope_state
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.engines import engine_commands
from skipwise.plan.machines import Machine
from skipwise.plan.recipe import RecipeEstimate, growth_that_fits
from skipwise.plan.training import TrainingEstimate
from skipwise.report.quantities import bytes_text, cost_text, seconds_text, short_hours_text, times_text
from skipwise.rope import eras
from skipwise.window import length_label

if TYPE_CHECKING:
    from skipwise.plan.planning import Plan

_LONG_HOURS = 24 * 14

# Sentences by name. `_paragraphs` says which apply, `_values` what stands in the braces.
_SENTENCES = {
    "train": "Train {approach}, with the recipe {recipe}. It takes {recipe_total} of the {limit} usable on {each} "
    "{machine}, and {steps} steps take {time}{all_hours}{cost}.",
    "formula": "Activations are estimated by a formula, because this model cannot be traced without weights.",
    "long run": "That is long. Fewer steps, a smaller global batch, LoRA or a faster machine would help.",
    "nothing fits": "Nothing that `skipwise extend` trains fits on {machines}{by}: {least}, the smallest, takes "
    "{least_total} on each, {least_over} more than the usable {limit}. The nearest that fits: {nearest}.",
    "full length": "Training at the full length of {target} {also_fits}: it takes {full_total}, and each step takes "
    "{full_times} times as long, for {full_tokens} times the tokens.",
    "searched": "Interpolation: longrope, as in the model. Its factors were searched for the present window. The run "
    "below stretches them further as YaRN would, without a new search: compare with factors of your own.",
    "same kind": "Interpolation: {interpolation}, as in the model, computed again from the original window.",
    "yarn": "Interpolation: YaRN by a factor of {factor}. In the PoSE paper's comparison at 64 times (table 2), linear "
    "lost far more on short text, and the perplexity of NTK rose before the target. YaRN's attention factor can be "
    "calibrated after training, and vLLM and llama.cpp support it.",
    "window": "Training window: {train}, {window_why}. Skips reach {target} from any window. In a longer one, a query "
    "sees more keys, at a proportional cost.",
    "sliding": "Layers with a sliding window keep it; the others are extended.",
    "beware": "Beware: {setting}.",
    "recipe": "Recipe: {recipe}.",
    "not diluted": "Layers with a sliding window take no other mask, so attention is not diluted.",
    "grow": "In the last steps, windows grow to {widest} and take {recipe_total}. A step has as many tokens as before "
    "if possible. Queries that train on more keys retrieve better at the target.",
    "do not grow": "Windows stay short, because longer ones do not fit. Attention is diluted all the same.",
    "grow less": "Windows of {asked_window} do not fit: `skipwise extend` finds that out at its second step and "
    "shortens them.",
    "batch": "Batch: {split}a micro-batch of {micro_batch} on {training_on}, {times} per step{other_windows}.",
    "launch": "Start it with `torchrun -m skipwise extend --config`, or with --launch. --write-config writes the "
    "sharding under parallel or training.",
    "deepspeed": "DeepSpeed must be installed.",
    "links": "Links: communication between the {processes} x {machine} takes {moving} of a step of {step}, more than "
    "computing; larger micro-batches, or fewer accelerators with more memory, would be faster.",
    "fewer serve": "Serving is planned on {serving_count} of the {processes} x {machine}: each must hold the "
    "same number of heads, and a model stays within a node of {node} if it fits there.",
    "stored": "The checkpoint is stored as {method}{stored_size}. No number here counts that: weights are dequantized "
    "for training, and saved so.",
    "not trainable": "It cannot be trained as it is; `skipwise extend` names what dequantizes it.",
    "serves": "Serving: one request of {target} fits on {serving_on}.",
    "does not serve": "Serving one request of {target} does not fit on {serving_on}{instead}.",
    "two modes": "Serve two modes: requests of up to {present} tokens, answer included, go to the unchanged base "
    "model, so their answers stay as they are; longer ones go to the extended model. With requests of at most "
    "{present} tokens, {short_gain} times as many fit at once.",
    "worse": "What gets worse: perplexity of short text by a few per cent (less with more steps or a smaller target), "
    "and retrieval, more so in longer text. The training loss shows neither, so measure both.",
    "choose": "Nothing is to be run yet: choose one of the settings that fit, and plan again.",
    "before": "Before the large run: `skipwise doctor` on this model and machine. Then 100 steps of this config, and "
    "`skipwise eval` for perplexity and passkeys at the target, and with `--task regression` against the base. "
    "Continue if perplexity falls with length up to the target, and short text is no worse than you can accept.",
}
_SPLITS = {
    "ddp": "the whole model on each",
    "zero1": "the optimizer state sharded (ZeRO-1)",
    "zero2": "the optimizer state and gradients sharded (ZeRO-2)",
    "zero3": "everything sharded (ZeRO-3)",
    "fsdp": "everything sharded (FSDP full shard)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is recommended.

    Attributes:
        words: paragraphs, the most important first.
        config: a run for `skipwise extend`.
        engines: commands to serve the result, by engine.
    """

    words: Sequence[str]
    config: Mapping[str, Any]
    engines: Mapping[str, str]


def advise(plan: "Plan") -> Advice:
    """Recommends an approach, a recipe, a batch and a way to serve."""
    values = _values(plan)
    served = plan.deployment
    if _longest(plan) < plan.window.target and plan.fewest_to_serve is not None:
        served = replace(served, count=plan.fewest_to_serve)
    card = MODEL_CARDS.get(plan.shape.name)
    return Advice(
        words=[" ".join(_SENTENCES[name].format_map(values) for name in paragraph) for paragraph in _paragraphs(plan)],
        config=_config(plan),
        engines=engine_commands(
            _model_name(plan),
            plan.window.target,
            served,
            plan.extension.extended,
            requests=plan.asked.requests,
            memory_share=plan.asked.utilisation.memory,
            part=card and card.text_part,
        ),
    )


def _paragraphs(plan: "Plan") -> list[list[str]]:
    """Names of the sentences that apply, by paragraph."""
    chosen, recipe, shape, window, run = plan.chosen, plan.recipe, plan.shape, plan.window, plan.extension.run
    fits, processes = recipe is not None, plan.sharding.processes
    kind, searched = run.interpolation["kind"], rope_state(shape.config).was_searched
    wide = recipe.widest_tokens if recipe else 0
    paragraphs: list[dict[str, Any]] = [
        {
            "train": fits,
            "formula": chosen and chosen.formula,
            "long run": recipe and recipe.hours > _LONG_HOURS,
            "nothing fits": not fits,
        },
        {"full length": window.train != window.target},
        {
            "searched": searched,
            "same kind": not searched and kind != "yarn",
            "yarn": not searched and kind == "yarn",
        },
        {"window": True, "sliding": any(layer.window_tokens is not None for layer in shape.layers)},
        {"beware": eras.unapplied(shape.text.to_dict())},
        {
            "recipe": fits,
            "not diluted": fits and not run.growth,
            "grow": fits and run.growth and wide > window.train,
            "do not grow": fits and run.growth and wide <= window.train,
            "grow less": recipe and run.growth and wide < recipe.asked_tokens,
        },
        {"batch": fits, "launch": fits and processes > 1, "deepspeed": chosen and chosen.sharding.is_deepspeed},
        {"links": chosen and chosen.moving_seconds > chosen.step_seconds / 2},
        {"fewer serve": plan.deployment.count < processes},
        {"stored": shape.stored, "not trainable": shape.stored and not shape.stored.is_trainable},
        {"serves": _longest(plan) >= window.target, "does not serve": _longest(plan) < window.target},
        {"two modes": plan.short_gain > 1},
        {"worse": True},
        {"before": fits, "choose": not fits},
    ]
    applying = ([name for name, applies in paragraph.items() if applies] for paragraph in paragraphs)
    return [names for names in applying if names]


def _values(plan: "Plan") -> dict[str, Any]:
    """Values for the sentences that apply."""
    shape, window, machine, deployment = plan.shape, plan.window, plan.machine, plan.deployment
    least = min(plan.short, key=lambda one: one.total_bytes)
    full, short = plan.by_target[-1].full_length, plan.by_target[-1].skip_wise
    stored_bytes = shape.stored and shape.stored.weight_bytes
    present = rope_state(shape.config).maximum
    values = {
        "machine": machine.name,
        "processes": plan.sharding.processes,
        "node": machine.node,
        "limit": bytes_text(least.limit_bytes),
        "target": length_label(window.target),
        "train": length_label(window.train),
        "factor": times_text(window.factor),
        "interpolation": plan.extension.run.interpolation["kind"],
        "window_why": _window_why(plan),
        "setting": "; ".join(eras.unapplied(shape.text.to_dict())),
        "least": least.approach.name,
        "least_total": bytes_text(least.total_bytes),
        "least_over": bytes_text(least.total_bytes - least.limit_bytes),
        "machines": _machines(least.sharding.processes, machine),
        "by": _by(least),
        "nearest": _nearest(plan),
        "also_fits": "fits here too" if full.fits else "does not fit here",
        "full_total": bytes_text(full.total_bytes),
        "full_times": times_text(full.step_seconds / short.step_seconds),
        "full_tokens": times_text(window.target / window.train),
        "method": shape.stored and shape.stored.method,
        "stored_size": f", {bytes_text(stored_bytes)} of weights" if stored_bytes else "",
        "serving_count": deployment.count,
        "serving_on": _machines(deployment.count, machine),
        "instead": _instead(plan),
        "present": length_label(present),
        "short_gain": times_text(plan.short_gain),
    }
    if plan.chosen and plan.recipe:
        values |= _training_values(plan, plan.chosen, plan.recipe)
    return values


def _training_values(plan: "Plan", chosen: TrainingEstimate, recipe: RecipeEstimate) -> dict[str, Any]:
    processes = chosen.sharding.processes
    hours = short_hours_text(recipe.processor_hours)
    return {
        "approach": chosen.approach.name.replace(", ", " by "),
        "recipe": recipe.name,
        "recipe_total": bytes_text(recipe.total_bytes),
        "each": "each" if processes > 1 else "one",
        "steps": plan.asked.job.steps,
        "time": short_hours_text(recipe.hours),
        "all_hours": f", {hours} of all {processes} together" if processes > 1 else "",
        "cost": "" if recipe.cost is None else f", {cost_text(recipe.cost)} at the given price",
        "widest": length_label(recipe.widest_tokens),
        "asked_window": length_label(recipe.asked_tokens),
        "split": f"{_SPLITS[chosen.sharding.kind]}, " if processes > 1 else "",
        "micro_batch": "1 window" if chosen.micro_batch == 1 else f"{chosen.micro_batch} windows",
        "training_on": ("each of " if processes > 1 else "") + _machines(processes, plan.machine),
        "times": "one" if chosen.accumulation == 1 else f"{chosen.accumulation} of them",
        "other_windows": "" if chosen.windows == plan.asked.job.global_batch else f": {chosen.windows} windows",
        "moving": seconds_text(chosen.moving_seconds),
        "step": seconds_text(chosen.step_seconds),
    }


def _window_why(plan: "Plan") -> str:
    train, original = plan.window.train, plan.window.original
    if train == original:
        return "the model's own"
    return (
        "longer than the model's own" if train > original else "shorter than the model's own, to save memory and time"
    )


def _nearest(plan: "Plan") -> str:
    found = [
        f"{one.approach.name} on {_machines(one.sharding.processes, machine)}{_by(one)}"
        for machine, one in filter(None, plan.nearest)
        if one.approach in [each.approach for each in plan.short]
    ]
    return "; ".join(found) or "none of the built-in machines, up to 1024 of them"


def _instead(plan: "Plan") -> str:
    """What would serve the target, if the deployment does not."""
    for (weights, cache), tokens in plan.longest.items():
        if tokens >= plan.window.target:
            return f"; {weights}-bit weights with a {cache}-bit cache would"
    if plan.fewest_to_serve:
        return f"; {_machines(plan.fewest_to_serve, plan.machine)} would do, and the settings below are for those"
    return f", nor on 64 x {plan.machine.name}: choose a shorter target"


def _longest(plan: "Plan") -> int:
    return plan.longest[plan.deployment.weight_bits, plan.deployment.kv_bits]


def _machines(count: int, machine: Machine) -> str:
    return f"one {machine.name}" if count == 1 else f"{count} x {machine.name}"


def _by(one: TrainingEstimate) -> str:
    return f" by {one.sharding.kind}" if one.sharding.processes > 1 else ""


def _model_name(plan: "Plan") -> str:
    name = plan.shape.name
    return MODEL_CARDS[name].hub_name if name in MODEL_CARDS else name


def _config(plan: "Plan") -> dict[str, Any]:
    """A run that `skipwise extend --config` accepts once `data.source` names the documents."""
    chosen, recipe, machine, job, run = plan.chosen, plan.recipe, plan.machine, plan.asked.job, plan.extension.run
    sharding = chosen.sharding if chosen else Sharding()
    training: dict[str, Any] = {
        "max_steps": job.steps,
        "per_device_train_batch_size": chosen.micro_batch if chosen else 1,
        "gradient_accumulation_steps": chosen.accumulation if chosen else job.global_batch,
    }
    if not machine.is_cpu:
        training["bf16" if machine.half == "bfloat16" else "fp16"] = True
    if not plan.asked.checkpointing:
        training["gradient_checkpointing"] = False
    if sharding.is_deepspeed:
        training["deepspeed"] = deepspeed_settings(SHARDINGS[sharding.kind])
    config: dict[str, Any] = {
        "model": _model_name(plan),
        "target": length_label(plan.window.target),
        "window": length_label(plan.window.train),
        "recipe": run.recipe,
        "interpolation": dict(run.interpolation),
        # Does not exist: training on anything but the user's own text would be wasted.
        "data": {"source": "documents"},
        "training": training,
    }
    if recipe is not None and recipe.widest_tokens < recipe.asked_tokens:
        config["growth"] = growth_that_fits(run, plan.window, recipe)
    if sharding.kind == "fsdp":
        config["parallel"] = {"shard": True}
    if plan.shape.told_original is not None:
        config["original"] = length_label(plan.shape.told_original)
    if chosen is not None and chosen.approach.tuning.kind != "full":
        config["tuning"] = chosen.approach.tuning.model_dump(exclude_none=True)
        if not machine.is_cpu:
            config["dtype"] = machine.half
    return config

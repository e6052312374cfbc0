"""A plan as tables and as one page: what to do first, then memory, time and money of training and of serving."""

from collections.abc import Callable
from pathlib import Path

from skipwise.plan import ByTarget, Plan
from skipwise.plan.serving import ANSWER_TOKENS, REDUCE_SECONDS
from skipwise.plan.training import TrainingEstimate
from skipwise.report.figures import Line, Point, Unit, line_panel
from skipwise.report.page import Figure, Section, render_page
from skipwise.report.quantities import ABSENT, bytes_text, digits_text, seconds_text
from skipwise.report.tables import Table
from skipwise.window import length_label

_GIB = float(2**30)
_Values = Callable[[ByTarget], tuple[float, float]]


def memory_table(plan: Plan, *, detailed: bool = True) -> Table:
    """A row for each approach: what one accelerator holds at the peak of training.

    Args:
        plan: what was planned.
        detailed: weights, gradients and the optimizer's state apart; and what the loss takes, logits and the gradient
            of a head that is trained, which may be before or at the peak.
    """
    parts = ("Weights", "Gradients", "Optimizer") if detailed else ("State",)
    last = ("Loss, at its peak",) if detailed else ()
    rows = []
    for one in plan.training:
        state = one.state
        each = (state.parameters + state.in_transit, state.gradients, state.optimizer) if detailed else (state.total,)
        rows.append(
            (
                one.approach.name,
                f"{one.micro_batch} x {one.accumulation}",
                *map(bytes_text, each),
                bytes_text(one.activation_bytes) + (" *" if one.formula else ""),
                bytes_text(one.total_bytes),
                "yes" if one.fits else f"{bytes_text(one.total_bytes - one.limit_bytes)} over",
                *((bytes_text(one.loss_bytes),) if detailed else ()),
            )
        )
    return Table(
        title=(
            f"Memory of each of {plan.sharding.processes} x {plan.machine.name}, of which "
            f"{bytes_text(plan.training[0].limit_bytes)} may be filled: windows of {length_label(plan.window.train)} "
            f"(skip-wise) and {length_label(plan.window.target)} (full length)"
        ),
        header=("Approach", "Batch", *parts, "Activations", "In all", "Fits", *last),
        rows=tuple(rows),
    )


def time_table(plan: Plan) -> Table:
    """A row for each approach: how long it takes, what it costs, and the smallest machine that it fits on."""
    priced, several = plan.price is not None, plan.sharding.processes > 1
    rows = []
    for one, smallest in zip(plan.training, plan.smallest, strict=True):
        fit = ABSENT if smallest is None else f"{smallest[1].sharding.processes} x {smallest[0].name}"
        cost = (digits_text(one.cost),) if one.cost is not None else ()
        split = (one.sharding.kind,) if several else ()
        hours = digits_text(one.processor_hours)
        rows.append((one.approach.name, *split, seconds_text(one.step_seconds), hours, *cost, fit))
    return Table(
        title=(
            f"{plan.job.steps} steps of {plan.training[0].windows} windows each, all of them as short as they begin, "
            "and the smallest machine that would do"
        ),
        header=(
            "Approach",
            *(("Split",) if several else ()),
            "Step",
            "Machine hours",
            *(("Cost",) if priced else ()),
            "Smallest",
        ),
        rows=tuple(rows),
    )


def serving_table(plan: Plan) -> Table:
    """A row for each length: memory of the requests, and how fast they are answered."""
    priced = plan.price is not None
    rows = []
    for one in plan.serving:
        cost = (ABSENT if one.cost_per_million is None else digits_text(one.cost_per_million),) if priced else ()
        rows.append(
            (
                length_label(one.length_tokens),
                bytes_text(one.kv_bytes),
                bytes_text(one.total_bytes),
                "yes" if one.fits else "no",
                seconds_text(one.first_token_seconds),
                seconds_text(one.token_seconds),
                f"{one.most_requests:,}",
                *cost,
            )
        )
    served, first = plan.deployment, plan.serving[0]
    at_once = "one request" if first.requests == 1 else f"{first.requests} requests at once"
    header = ("Tokens", "Cache", "In all", "Fits", "First token", "Each", "At once")
    return Table(
        title=(
            f"Serving {at_once} on {served.count} x {plan.machine.name}: {served.weight_bits}-bit weights of "
            f"{bytes_text(first.weight_bytes)}, {served.kv_bits}-bit cache"
            + ("; 1M tokens are read and made" if priced else "")
        ),
        header=(*header, "1M tokens") if priced else header,
        rows=tuple(rows),
    )


def longest_table(plan: Plan) -> Table:
    """The longest text of one request by bits of weights and of the cache."""
    bits = (16, 8, 4)
    return Table(
        title="Longest text of one request whose memory fits, in tokens, whether or not the model can read it",
        header=("Weights", *(f"{kv}-bit cache" for kv in bits)),
        rows=tuple((f"{w}-bit", *(_long(plan.longest[w, kv]) for kv in bits)) for w in bits),
    )


def parameters_table(plan: Plan) -> Table:
    """Parameters by kind."""
    counts = plan.shape.counts
    kinds = [name for name in counts.__slots__ if name != "active_experts" and getattr(counts, name)]
    rows = [(name, f"{getattr(counts, name):,}") for name in kinds]
    if counts.active_experts:
        rows.append(("experts that a token meets", f"{counts.active_experts:,}"))
    rows.append(("in all", f"{counts.total:,}"))
    rows += [(f"cache of a token, {kind} layers", bytes_text(n)) for kind, n in plan.shape.kv_bytes_a_token.items()]
    return Table(title="Parameters, and what a 16-bit cache keeps", header=("Kind", "Numbers"), rows=tuple(rows))


def assumptions(plan: Plan) -> dict[str, str]:
    """What is assumed and where figures are from, by name."""
    shares, machine = plan.utilisation, plan.machine
    return {
        "share of speed, training": f"{shares.training:.3g} of {machine.tflops:g} TFLOPS",
        "share of speed, prefill": f"{shares.prefill:.3g}",
        "share of bandwidth, decoding": f"{shares.decode:.3g} of {machine.bandwidth_gb:g} GB/s",
        "share of links while training": f"{shares.network:.3g} of {machine.link_gb:g} GB/s each way among "
        f"{machine.node}, {machine.network_gb:g} GB/s from these to others",
        "share of memory that may be filled": f"{shares.memory:.3g} of {machine.memory_gib:g} GiB",
        "machine": f"{machine.name}, {machine.source}",
        "serving": f"{ANSWER_TOKENS} tokens of each request are its answer; for the price, those that fit are read one "
        "by one and answered together; a short sum between accelerators, twice a layer, takes "
        f"{REDUCE_SECONDS * 1e6:g} microseconds",
        "QLoRA": "linear layers in 4 bits (NF4, scales in 8), as bitsandbytes lays them out; the time that making them "
        "whole takes is not counted",
        "training numbers": "trained ones 16 bytes each (float32, its gradient, two states of Adam)",
    }


def write_plan_page(plan: Plan, path: Path) -> None:
    """Writes the plan as one HTML file; an older one is replaced."""
    window = plan.window
    sections = [
        Section(
            title="Training",
            words=[
                "Skip-wise training shows short windows whose positions reach to the target; full length shows the "
                "target itself. Memory is of one accelerator.",
                *(["* by formula: this model cannot be run without numbers."] if _by_formula(plan) else []),
            ],
            figures=[_by_target_figure(plan)],
            tables=[memory_table(plan), time_table(plan)],
        ),
        Section(title="Serving", figures=[_serving_figure(plan)], tables=[serving_table(plan), longest_table(plan)]),
        Section(
            title="Settings of engines",
            tables=[
                Table(
                    title="Commands",
                    header=("Engine", "Command"),
                    rows=tuple(plan.advice.engines.items()),
                    wraps=True,
                )
            ],
        ),
        Section(title="The model", tables=[parameters_table(plan)]),
    ]
    title = f"{plan.shape.name} from {length_label(window.original)} to {length_label(window.target)} tokens: a plan"
    render_page(title, sections, path, verdict=plan.advice.words, made=assumptions(plan))


def _by_target_figure(plan: Plan) -> Figure:
    """Memory and hours by target length, skip-wise against full length."""
    panels = []
    gib = Unit(_GIB, "GiB")
    values: dict[str, tuple[_Values, Callable[..., str], Unit | None]] = {
        "Memory of each": (lambda one: one.one_window, bytes_text, gib),
        "Machine hours": (lambda one: _both(one, lambda each: each.processor_hours), digits_text, None),
    }
    if plan.price is not None:
        values["Cost"] = (lambda one: _both(one, lambda each: each.cost or 0.0), digits_text, None)
    for title, (value, text, unit) in values.items():
        lines = [
            Line(
                name=name,
                index=index,
                points=[Point(one.target_tokens, float(value(one)[place])) for one in plan.by_target],
            )
            for place, (name, index) in enumerate((("skip-wise", 2), ("full length", 1)))
        ]
        panels.append(line_panel(lines, title=title, text=text, unit=unit, x_title="Target length in tokens"))
    limit = bytes_text(plan.training[0].limit_bytes)
    caption = (
        f"Full fine-tuning by target length. {limit} of each may be filled. Memory is with one window at a time, hours "
        "with as many as fit. All axes are logarithmic."
    )
    return Figure(caption=caption, panels=tuple(panels))


def _both(one: ByTarget, value: Callable[[TrainingEstimate], float]) -> tuple[float, float]:
    return value(one.skip_wise), value(one.full_length)


def _serving_figure(plan: Plan) -> Figure:
    """Memory and time to the first token by length."""
    memory = Line(
        name="weights, cache and work",
        index=2,
        points=[Point(one.length_tokens, float(one.total_bytes)) for one in plan.serving],
    )
    first = Line(
        name="to the first token",
        index=2,
        points=[Point(one.length_tokens, one.first_token_seconds) for one in plan.serving],
    )
    return Figure(
        caption="One request by the length of its text; all axes are logarithmic.",
        panels=(
            line_panel([memory], title="Memory", text=bytes_text, unit=Unit(_GIB, "GiB")),
            line_panel([first], title="Time to the first token", text=seconds_text, unit=Unit(1.0, "seconds")),
        ),
    )


def _by_formula(plan: Plan) -> bool:
    return any(one.formula for one in plan.training)


def _long(tokens: int) -> str:
    return "none" if not tokens else f"{tokens / 1024:,.0f}k" if tokens >= 10240 else f"{tokens:,}"

"""A plan as tables, and as one HTML page."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.plan.engines import held_for
from skipwise.plan.machines import Machine
from skipwise.plan.planning import ByTarget, Plan
from skipwise.plan.serving import ANSWER_TOKENS, BITS, REDUCE_SECONDS
from skipwise.plan.training import TrainingEstimate
from skipwise.report.quantities import (
    ABSENT,
    bytes_text,
    cost_text,
    count_text,
    digits_text,
    seconds_text,
    short_hours_text,
)
from skipwise.report.tables import Table
from skipwise.window import length_label

if TYPE_CHECKING:
    from skipwise.report.page import Figure

_GIB = float(2**30)

MARK = "\N{RIGHTWARDS ARROW}"
"""Before the row of a table that the advice is about."""


def _table(title: str, items: Iterable[Any], columns: dict[str, Callable[[Any], str] | None]) -> Table:
    """A row per item; columns whose function is None are left out."""
    shown = {heading: cell for heading, cell in columns.items() if cell is not None}
    rows = tuple(tuple(cell(item) for cell in shown.values()) for item in items)
    return Table(title=title, header=tuple(shown), rows=rows)


class _Way(NamedTuple):
    """A row of the tables of training.

    Attributes:
        name: name of the approach; the run that the advice is about has its recipe and a mark.
        peak: the estimate of its memory.
        batch: micro-batch and number of micro-batches of a step.
        step_seconds: of one step, on average.
        hours: of all processes together.
        cost: of the run; None without a price.
        smallest: the smallest machine that it fits on; None if there is none.
    """

    name: str
    peak: TrainingEstimate
    batch: str
    step_seconds: float
    hours: float
    cost: float | None
    smallest: tuple[Machine, TrainingEstimate] | None


def _ways(plan: Plan) -> list[_Way]:
    """What the advice is about, if anything fits, and every approach with windows that do not grow."""

    def way(one: TrainingEstimate, smallest: tuple[Machine, TrainingEstimate] | None) -> _Way:
        batch = f"{one.micro_batch} x {one.accumulation}"
        return _Way(one.approach.name, one, batch, one.step_seconds, one.processor_hours, one.cost, smallest)

    ways = [way(one, smallest) for one, smallest in zip(plan.training, plan.smallest, strict=True)]
    if plan.chosen is None or plan.recipe is None:
        return ways
    recipe, plain = plan.recipe, next(one for one in ways if one.peak is plan.chosen)
    advised = plain._replace(
        name=f"{MARK} {plain.name}, {recipe.name}",
        peak=recipe.peak,
        step_seconds=3600 * recipe.hours / plan.asked.job.steps,
        hours=recipe.processor_hours,
        cost=recipe.cost,
        smallest=None,
    )
    return [advised, *ways]


def memory_table(plan: Plan, *, detailed: bool = True) -> Table:
    """Peak of one accelerator in training, by approach, the advised run first.

    Args:
        plan: the plan.
        detailed: weights, gradients and optimizer state in separate columns, and the peak of the loss (logits and the
            gradient of a trained head), which may come before the peak of the step.
    """
    count, limit = plan.sharding.processes, bytes_text(plan.training[0].limit_bytes)
    title = (
        f"Training memory of {'each of ' if count > 1 else ''}{count} x {plan.machine.name} ({limit} usable); windows "
        f"of {length_label(plan.window.train)} (skip-wise) or {length_label(plan.window.target)} (full length)"
    )
    return _table(
        title,
        _ways(plan),
        {
            "Approach": lambda way: way.name,
            "Batch": lambda way: way.batch,
            "State": None if detailed else lambda way: bytes_text(way.peak.state.total),
            "Weights": (lambda way: bytes_text(way.peak.state.parameters + way.peak.state.in_transit))
            if detailed
            else None,
            "Gradients": (lambda way: bytes_text(way.peak.state.gradients)) if detailed else None,
            "Optimizer": (lambda way: bytes_text(way.peak.state.optimizer)) if detailed else None,
            "Activations": lambda way: bytes_text(way.peak.activation_bytes) + (" *" if way.peak.formula else ""),
            "Total": lambda way: bytes_text(way.peak.total_bytes),
            "Fits": lambda way: _fits(way.peak, detailed=detailed),
            "Peak of the loss": (lambda way: bytes_text(way.peak.loss_bytes)) if detailed else None,
        },
    )


def _fits(peak: TrainingEstimate, *, detailed: bool) -> str:
    over = f", {bytes_text(peak.total_bytes - peak.limit_bytes)} over" if detailed else ""
    return "yes" if peak.fits else f"no{over}"


def time_table(plan: Plan) -> Table:
    """Time and cost by approach, the advised run first, and the smallest machine that each approach fits on."""
    title = f"Training time of {plan.asked.job.steps} steps with {plan.training[0].windows} windows each"
    if plan.recipe is not None:
        title += f"; {MARK} is the advised run, whose windows grow in the last steps" * bool(plan.extension.run.growth)
    return _table(
        title,
        _ways(plan),
        {
            "Approach": lambda way: way.name,
            "Sharding": (lambda way: way.peak.sharding.kind) if plan.sharding.processes > 1 else None,
            "Step": lambda way: seconds_text(way.step_seconds),
            "Time" if plan.machine.is_cpu else "GPU time": lambda way: short_hours_text(way.hours),
            "Cost": None if plan.asked.price is None else lambda way: cost_text(way.cost),
            "Smallest machine": lambda way: (
                ABSENT if way.smallest is None else f"{way.smallest[1].sharding.processes} x {way.smallest[0].name}"
            ),
        },
    )


def serving_table(plan: Plan) -> Table:
    """Memory and latency by length."""
    served, first, priced = plan.deployment, plan.serving[0], plan.asked.price is not None
    at_once = "one request" if first.requests == 1 else f"{first.requests} concurrent requests"
    return _table(
        f"Serving {at_once} on {served.count} x {plan.machine.name}: {served.weight_bits}-bit weights "
        f"({bytes_text(first.weight_bytes)}), {served.kv_bits}-bit cache",
        plan.serving,
        {
            "Tokens": lambda one: length_label(one.length_tokens),
            "Cache": lambda one: bytes_text(one.kv_bytes),
            "Total": lambda one: bytes_text(one.total_bytes),
            "Fits": lambda one: "yes" if one.fits else "no",
            "First token": lambda one: seconds_text(one.first_token_seconds),
            "Next": lambda one: seconds_text(one.token_seconds),
            "At once": lambda one: count_text(one.most_requests),
            "Cost of 1M": None
            if not priced
            else lambda one: ABSENT if one.cost_per_million is None else cost_text(one.cost_per_million),
        },
    )


def longest_table(plan: Plan) -> Table:
    """The longest single request by bits of weights and of the cache."""

    def text(tokens: int) -> str:
        return "none" if not tokens else f"{count_text(tokens / 1024)}k" if tokens >= 10240 else f"{tokens:,}"

    return Table(
        title="Longest single request that fits in memory, in tokens (the model may read less)",
        header=("Weights", *(f"{kv}-bit cache" for kv in BITS)),
        rows=tuple((f"{w}-bit", *(text(plan.longest[w, kv]) for kv in BITS)) for w in BITS),
    )


def parameters_table(plan: Plan) -> Table:
    """Parameters by kind, and bytes of the cache per token."""
    counts = plan.shape.counts
    numbers = {name: getattr(counts, name) for name in counts.__slots__ if name != "active_experts"}
    numbers |= {"experts that process a token": counts.active_experts}
    rows = [(name, f"{number:,}") for name, number in (*numbers.items(), ("total", counts.total)) if number]
    rows += [(f"cache per token, {kind} layers", bytes_text(n)) for kind, n in plan.shape.kv_bytes_a_token.items()]
    return Table(
        title="Parameters, and bytes per token of a 16-bit KV cache", header=("Kind", "Numbers"), rows=tuple(rows)
    )


def assumptions(plan: Plan) -> dict[str, str]:
    """What is assumed, and where figures come from."""
    shares, machine = plan.asked.utilisation, plan.machine
    return {
        "machine": f"{machine.name}; {machine.source}",
        "training": f"{shares.training:.0%} of {machine.tflops:.3g} TFLOPS",
        "prefill": f"{shares.prefill:.0%} of the same",
        "decoding": f"{shares.decode:.0%} of a memory bandwidth of {machine.bandwidth_gb:.4g} GB/s",
        "network": f"{shares.network:.0%} of {machine.link_gb:g} GB/s each way within a node of {machine.node}, and of "
        f"{machine.network_gb:g} GB/s between nodes",
        "memory": f"{shares.memory:.0%} of {machine.memory_gib:.3g} GiB may be filled",
        "serving": f"the last {ANSWER_TOKENS} tokens of a request are its answer. For the cost, the requests that fit "
        "are prefilled one after the other and decoded together. Each of the two all-reduces per layer takes "
        f"{REDUCE_SECONDS * 1e6:g} microseconds",
        "QLoRA": "linear layers in 4 bits (NF4, double quantization) as bitsandbytes stores them. The time to "
        "dequantize them is not counted",
        "optimizer": "16 bytes per trained parameter (float32 value and gradient, two states of Adam)",
    }


def write_plan_page(plan: Plan, path: Path) -> None:
    """Writes the plan as one HTML file and replaces an older one."""
    from skipwise.report.page import Section, render_page  # Figures load matplotlib.

    window, advice = plan.window, plan.advice
    words = [
        "Skip-wise training uses short windows whose positions reach the target. Training at full length uses windows "
        "as long as the target. Memory is that of one GPU."
    ]
    if any(one.formula for one in plan.training):
        words.append("* Estimated by a formula, because this model cannot be traced without weights.")
    commands = Table(title="Commands", header=("Engine", "Command"), rows=tuple(advice.engines.items()), wraps=True)
    sections = [
        Section(
            title="Training",
            words=words,
            figures=[_by_target_figure(plan)],
            tables=[memory_table(plan), time_table(plan)],
        ),
        Section(title="Serving", figures=[_serving_figure(plan)], tables=[serving_table(plan), longest_table(plan)]),
        Section(title="Commands to serve it", words=[held_for(advice.engines)], tables=[commands]),
        Section(title="The model", tables=[parameters_table(plan)]),
    ]
    title = f"{plan.shape.name} from {length_label(window.original)} to {length_label(window.target)} tokens: a plan"
    render_page(title, sections, path, verdict=advice.words, made=assumptions(plan))


def _by_target_figure(plan: Plan) -> "Figure":
    """Memory, hours and cost by target length, skip-wise and at full length."""
    from skipwise.report.figures import Line, Point, Unit, line_panel
    from skipwise.report.page import Figure

    def panel(
        title: str, values: Callable[[ByTarget], tuple[float, float]], text: Any, unit: Unit | None = None
    ) -> Any:
        lines = [
            Line(
                name=name,
                index=index,
                points=[Point(one.target_tokens, float(values(one)[i])) for one in plan.by_target],
            )
            for i, (name, index) in enumerate((("skip-wise", 2), ("full length", 1)))
        ]
        return line_panel(lines, title=title, text=text, unit=unit, x_title="Target length in tokens")

    panels = [
        panel("Memory of each GPU", lambda one: one.one_window, bytes_text, Unit(_GIB, "GiB")),
        panel("GPU-hours", lambda one: (one.skip_wise.processor_hours, one.full_length.processor_hours), digits_text),
    ]
    if plan.asked.price is not None:
        panels.append(panel("Cost", lambda one: (one.skip_wise.cost or 0.0, one.full_length.cost or 0.0), digits_text))
    caption = (
        f"Full fine-tuning by target length. {bytes_text(plan.training[0].limit_bytes)} of each GPU are usable. Memory "
        "is for a micro-batch of one window, hours for the largest that fits. All axes are logarithmic."
    )
    return Figure(caption=caption, panels=tuple(panels))


def _serving_figure(plan: Plan) -> "Figure":
    """Memory and latency of the first token by length."""
    from skipwise.report.figures import Line, Point, Unit, line_panel
    from skipwise.report.page import Figure

    def panel(title: str, name: str, attribute: str, text: Any, unit: Unit) -> Any:
        points = [Point(one.length_tokens, float(getattr(one, attribute))) for one in plan.serving]
        return line_panel([Line(name=name, index=2, points=points)], title=title, text=text, unit=unit)

    return Figure(
        caption="One request by its length. All axes are logarithmic.",
        panels=(
            panel("Memory", "weights, cache and activations", "total_bytes", bytes_text, Unit(_GIB, "GiB")),
            panel(
                "Time to the first token",
                "first token",
                "first_token_seconds",
                seconds_text,
                Unit(1.0, "seconds"),
            ),
        ),
    )

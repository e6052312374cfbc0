"""A plan as tables, and as one HTML page."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.plan.engines import held_for
from skipwise.plan.planning import ByTarget, Plan
from skipwise.plan.serving import ANSWER_TOKENS, BITS, REDUCE_SECONDS
from skipwise.report.quantities import ABSENT, bytes_text, digits_text, seconds_text
from skipwise.report.tables import Table
from skipwise.window import length_label

if TYPE_CHECKING:
    from skipwise.report.page import Figure

_GIB = float(2**30)


def _table(title: str, items: Iterable[Any], columns: dict[str, Callable[[Any], str] | None]) -> Table:
    """A row per item; columns whose function is None are left out."""
    shown = {heading: cell for heading, cell in columns.items() if cell is not None}
    rows = tuple(tuple(cell(item) for cell in shown.values()) for item in items)
    return Table(title=title, header=tuple(shown), rows=rows)


def memory_table(plan: Plan, *, detailed: bool = True) -> Table:
    """Peak of one accelerator in training, by approach.

    Args:
        plan: the plan.
        detailed: weights, gradients and optimizer state in separate columns, and the peak of the loss (logits and the
            gradient of a trained head), which may come before the peak of the step.
    """
    limit = bytes_text(plan.training[0].limit_bytes)
    title = (
        f"Memory of each of {plan.sharding.processes} x {plan.machine.name}, of which {limit} may be filled: windows "
        f"of {length_label(plan.window.train)} (skip-wise) and {length_label(plan.window.target)} (full length)"
    )
    return _table(
        title,
        plan.training,
        {
            "Approach": lambda one: one.approach.name,
            "Batch": lambda one: f"{one.micro_batch} x {one.accumulation}",
            "State": None if detailed else lambda one: bytes_text(one.state.total),
            "Weights": (lambda one: bytes_text(one.state.parameters + one.state.in_transit)) if detailed else None,
            "Gradients": (lambda one: bytes_text(one.state.gradients)) if detailed else None,
            "Optimizer": (lambda one: bytes_text(one.state.optimizer)) if detailed else None,
            "Activations": lambda one: bytes_text(one.activation_bytes) + (" *" if one.formula else ""),
            "In all": lambda one: bytes_text(one.total_bytes),
            "Fits": lambda one: "yes" if one.fits else f"{bytes_text(one.total_bytes - one.limit_bytes)} over",
            "Loss, at its peak": (lambda one: bytes_text(one.loss_bytes)) if detailed else None,
        },
    )


def time_table(plan: Plan) -> Table:
    """Time and cost by approach, and the smallest machine that it fits on."""
    return _table(
        f"{plan.asked.job.steps} steps of {plan.training[0].windows} windows each, before any window grows, and the "
        "smallest machine that would do",
        zip(plan.training, plan.smallest, strict=True),
        {
            "Approach": lambda row: row[0].approach.name,
            "Split": (lambda row: row[0].sharding.kind) if plan.sharding.processes > 1 else None,
            "Step": lambda row: seconds_text(row[0].step_seconds),
            "Machine hours": lambda row: digits_text(row[0].processor_hours),
            "Cost": None if plan.asked.price is None else lambda row: digits_text(row[0].cost),
            "Smallest": lambda row: ABSENT if row[1] is None else f"{row[1][1].sharding.processes} x {row[1][0].name}",
        },
    )


def serving_table(plan: Plan) -> Table:
    """Memory and latency by length."""
    served, first, priced = plan.deployment, plan.serving[0], plan.asked.price is not None
    at_once = "one request" if first.requests == 1 else f"{first.requests} requests at once"
    return _table(
        f"Serving {at_once} on {served.count} x {plan.machine.name}: {served.weight_bits}-bit weights of "
        f"{bytes_text(first.weight_bytes)}, {served.kv_bits}-bit cache"
        + ("; 1M tokens are read and made" if priced else ""),
        plan.serving,
        {
            "Tokens": lambda one: length_label(one.length_tokens),
            "Cache": lambda one: bytes_text(one.kv_bytes),
            "In all": lambda one: bytes_text(one.total_bytes),
            "Fits": lambda one: "yes" if one.fits else "no",
            "First token": lambda one: seconds_text(one.first_token_seconds),
            "Each": lambda one: seconds_text(one.token_seconds),
            "At once": lambda one: f"{one.most_requests:,}",
            "1M tokens": None
            if not priced
            else lambda one: ABSENT if one.cost_per_million is None else digits_text(one.cost_per_million),
        },
    )


def longest_table(plan: Plan) -> Table:
    """The longest single request by bits of weights and of the cache."""

    def text(tokens: int) -> str:
        return "none" if not tokens else f"{tokens / 1024:,.0f}k" if tokens >= 10240 else f"{tokens:,}"

    return Table(
        title="Longest text of one request whose memory fits, in tokens, whether or not the model can read it",
        header=("Weights", *(f"{kv}-bit cache" for kv in BITS)),
        rows=tuple((f"{w}-bit", *(text(plan.longest[w, kv]) for kv in BITS)) for w in BITS),
    )


def parameters_table(plan: Plan) -> Table:
    """Parameters by kind, and bytes of the cache per token."""
    counts = plan.shape.counts
    numbers = {name: getattr(counts, name) for name in counts.__slots__ if name != "active_experts"}
    numbers |= {"experts that process a token": counts.active_experts}
    rows = [(name, f"{number:,}") for name, number in (*numbers.items(), ("in all", counts.total)) if number]
    rows += [(f"cache of a token, {kind} layers", bytes_text(n)) for kind, n in plan.shape.kv_bytes_a_token.items()]
    return Table(title="Parameters, and what a 16-bit cache keeps", header=("Kind", "Numbers"), rows=tuple(rows))


def assumptions(plan: Plan) -> dict[str, str]:
    """What is assumed, and where figures come from."""
    shares, machine = plan.asked.utilisation, plan.machine
    return {
        "share of speed, training": f"{shares.training:.3g} of {machine.tflops:g} TFLOPS",
        "share of speed, prefill": f"{shares.prefill:.3g}",
        "share of bandwidth, decoding": f"{shares.decode:.3g} of {machine.bandwidth_gb:g} GB/s",
        "share of links while training": f"{shares.network:.3g} of {machine.link_gb:g} GB/s each way among "
        f"{machine.node}, {machine.network_gb:g} GB/s from these to others",
        "share of memory that may be filled": f"{shares.memory:.3g} of {machine.memory_gib:g} GiB",
        "machine": f"{machine.name}, {machine.source}",
        "serving": f"the last {ANSWER_TOKENS} tokens of each request are its answer; for the cost, the requests that "
        "fit are read one after the other and answered together; an all-reduce, two per layer, has a latency of "
        f"{REDUCE_SECONDS * 1e6:g} microseconds",
        "QLoRA": "linear layers in 4 bits (NF4, double quantization) in the layout of bitsandbytes; the time to "
        "dequantize them is not counted",
        "training numbers": "16 bytes per trained parameter (float32 value and gradient, two states of Adam)",
    }


def write_plan_page(plan: Plan, path: Path) -> None:
    """Writes the plan as one HTML file and replaces an older one."""
    from skipwise.report.page import Section, render_page  # Figures load matplotlib.

    window, advice = plan.window, plan.advice
    words = [
        "Skip-wise training uses short windows whose positions reach the target; full length trains on windows of the "
        "target itself. Memory is of one accelerator."
    ]
    if any(one.formula for one in plan.training):
        words.append("* by formula, because this model cannot be run without data.")
    commands = Table(title="Commands", header=("Engine", "Command"), rows=tuple(advice.engines.items()), wraps=True)
    sections = [
        Section(
            title="Training",
            words=words,
            figures=[_by_target_figure(plan)],
            tables=[memory_table(plan), time_table(plan)],
        ),
        Section(title="Serving", figures=[_serving_figure(plan)], tables=[serving_table(plan), longest_table(plan)]),
        Section(title="Settings of engines", words=[held_for(advice.engines)], tables=[commands]),
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
        panel("Memory of each", lambda one: one.one_window, bytes_text, Unit(_GIB, "GiB")),
        panel(
            "Machine hours", lambda one: (one.skip_wise.processor_hours, one.full_length.processor_hours), digits_text
        ),
    ]
    if plan.asked.price is not None:
        panels.append(panel("Cost", lambda one: (one.skip_wise.cost or 0.0, one.full_length.cost or 0.0), digits_text))
    caption = (
        f"Full fine-tuning by target length. {bytes_text(plan.training[0].limit_bytes)} of each may be filled. Memory "
        "is with one window at a time, hours with as many as fit. All axes are logarithmic."
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
        caption="One request by the length of its text; all axes are logarithmic.",
        panels=(
            panel("Memory", "weights, cache and work", "total_bytes", bytes_text, Unit(_GIB, "GiB")),
            panel(
                "Time to the first token",
                "to the first token",
                "first_token_seconds",
                seconds_text,
                Unit(1.0, "seconds"),
            ),
        ),
    )

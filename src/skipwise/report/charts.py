"""Dots in rows: paired differences with their intervals, and tokens to reach a perplexity."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from skipwise.report.drawing import INK, STYLE, line_style, svg_of
from skipwise.report.quantities import MINUS, TO
from skipwise.report.tables import shortened

# So many times as far from zero as the middle one of the arms.
_FAR = 6


class Dot(NamedTuple):
    """One row: an arm, its number among all arms, and its value with an interval where it has one."""

    name: str
    number: int
    value: float
    low: float | None = None
    high: float | None = None


def dot_panel(dots: Sequence[Dot], *, title: str, x_title: str, from_zero: bool = False) -> str:
    """A row for each arm, its value as a dot and its interval as a bar.

    Args:
        dots: from top to bottom.
        title: above the drawing.
        x_title: what the values are, with their unit.
        from_zero: begin at zero, for amounts; otherwise zero is marked by an upright rule, for differences.
    """
    with rc_context(STYLE):
        canvas = Canvas(figsize=(4.6, 0.9 + 0.26 * len(dots)), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(title, fontsize=10.5, fontweight="bold", loc="left")
        edges = axis_edges(dots)
        for row, dot in enumerate(dots):
            style = line_style(dot.number)
            if edges and not edges[0] <= dot.value <= edges[1]:
                _draw_beyond(axes, row, dot, edges)
                continue
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [row, row], color=style["color"], linewidth=2, solid_capstyle="butt")
            axes.plot([dot.value], [row], color=style["color"], marker=style["marker"], markersize=6)
        if from_zero:
            axes.set_xlim(0, 1.08 * max(dot.value for dot in dots))
        else:
            axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if edges:
            axes.set_xlim(*edges)
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.set_yticks(range(len(dots)), [shortened(dot.name, 28) for dot in dots])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", MINUS)))
        axes.set_xlabel(x_title)
        axes.grid(axis="x")
        said = "; ".join(
            f"{dot.name} {dot.value:.3g}" + ("" if dot.low is None else f" ({dot.low:.3g}{TO}{dot.high:.3g})")
            for dot in dots
        )
        return svg_of(canvas, f"{title}, {x_title}: {said}.")


def axis_edges(dots: Sequence[Dot]) -> tuple[float, float] | None:
    """Ends of the axis that leave out the few arms so far off that the others would lie on one another; or None."""
    reach = {dot.name: max(abs(end) for end in (dot.value, dot.low, dot.high) if end is not None) for dot in dots}
    within = [dot for dot in dots if reach[dot.name] <= _FAR * median(reach.values())]
    if len(within) == len(dots) or len(within) < 2:
        return None
    low = min(0.0, *(dot.value if dot.low is None else dot.low for dot in within))
    high = max(0.0, *(dot.value if dot.high is None else dot.high for dot in within))
    if low == high:
        return None
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _draw_beyond(axes: Axes, row: int, dot: Dot, edges: tuple[float, float]) -> None:
    """An arrowhead at the edge beyond which the value lies, and the value."""
    to_the_right = dot.value > edges[1]
    edge = edges[1] if to_the_right else edges[0]
    style = line_style(dot.number)
    axes.plot([edge], [row], color=style["color"], marker=">" if to_the_right else "<", markersize=8, clip_on=False)
    axes.annotate(
        f"{dot.value:,.0f}".replace("-", MINUS),
        (edge, row),
        xytext=(-8 if to_the_right else 8, 0),
        textcoords="offset points",
        ha="right" if to_the_right else "left",
        va="center",
    )

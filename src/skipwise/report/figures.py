"""The four kinds of figures: lines over lengths, intervals in rows, heat maps by length and depth, coverage curves."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from skipwise.coverage import Coverage
from skipwise.records.results import EvalResult
from skipwise.report.drawing import (
    COLOURS,
    INK,
    LENGTH_TICKS,
    REFERENCE_RULE,
    add_legend,
    drawing,
    legend_height,
    line_style,
    relative_luminance,
    svg_of,
)
from skipwise.report.evidence import PERPLEXITY, Arm, Depth, Measure
from skipwise.report.page import Figure
from skipwise.report.quantities import ABSENT, MINUS, TO, shortened
from skipwise.report.words import say
from skipwise.window import Window, length_label

SHARE_COLOURS = colormaps["cividis"]
# More bands than this on top of one another cannot be told apart.
_MOST_BANDS = 6
# A second drawing of the best arms alone, where others are so far above that these lie on one another.
_FAR, _NEAR = 3.0, 1.5
# An arm this many times as far from zero as the median lies beyond the edge.
_BEYOND = 6
# The lowest share on a plot of coverage.
_FLOOR = 1e-4


class Unit(NamedTuple):
    """The unit of an axis: its size in the values' own unit, and its name."""

    size: float
    name: str


class Point(NamedTuple):
    """One value at a length in tokens, with its interval if it has one."""

    length_tokens: int
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None where one is missing."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One arm in a figure.

    Attributes:
        name: of the arm.
        index: its number among all arms, which gives it its colour, marker and dashes.
        points: shortest length first.
        failed: lengths in tokens at which it failed, which get a cross where the line would go on.
    """

    name: str
    index: int
    points: Sequence[Point]
    failed: Sequence[int] = ()


# Lines over lengths


def perplexity_by_length(arms: Sequence[Arm], *, original_tokens: int, measure: Measure = PERPLEXITY) -> Figure:
    """Perplexity against length, both axes logarithmic, one line and confidence band per arm.

    Where some arms are far above the others, a second panel shows the best alone.

    Args:
        arms: up to 24 are told apart by colour and dashes together.
        original_tokens: window of the base model in tokens, marked by a vertical line.
        measure: which perplexity.
    """
    lines = lines_of(arms, measure)
    groups = [lines] if (near := _near_the_best(lines)) is None else [lines, near]
    panels = tuple(
        line_panel(group, title=measure.title, text=measure.text, original_tokens=original_tokens) for group in groups
    )
    (caption,) = say(
        "perplexity.caption",
        title=measure.title,
        banded=len(groups[-1]) <= _MOST_BANDS,
        original=original_tokens,
        second=len(groups) > 1,
    )
    return Figure(caption=caption, panels=panels)


def lines_of(arms: Sequence[Arm], measure: Measure) -> list[Line]:
    """A line for each arm that has records of this measure."""
    return [
        Line(
            name=arm.name,
            index=index,
            points=[Point(length, r.value, *(measure.interval(r) or ())) for length, r in found.items()],
        )
        for index, arm in enumerate(arms)
        if (found := arm.by_length(measure))
    ]


def line_panel(
    lines: Sequence[Line],
    *,
    title: str,
    text: Callable[[float], str],
    unit: Unit | None = None,
    original_tokens: int | None = None,
    x_title: str = "Length in tokens",
) -> str:
    """One drawing, both axes logarithmic.

    Args:
        lines: at least one of them with a point.
        title: what the values are.
        text: writes a value, for the label.
        unit: of the value axis; None for the values' own.
        original_tokens: where a vertical line stands; None for none.
        x_title: what the lengths are.
    """
    ticks = sorted({at for line in lines for at in (*(p.length_tokens for p in line.points), *line.failed)})
    # The legend is in the order in which the lines end, the highest first.
    keyed = sorted(lines, key=lambda line: -line.points[-1].value if line.points else -math.inf)
    names = [line.name for line in keyed]
    with drawing(4.6, 3.1 + legend_height(names)) as (canvas, axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        handles = {
            line.index: _draw_line(axes, line, unit.size if unit else 1.0, len(lines) <= _MOST_BANDS) for line in lines
        }
        if original_tokens is not None:
            _draw_original(axes, original_tokens, on_the_right=original_tokens**2 > ticks[0] * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(_apart(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(LENGTH_TICKS)
        _set_value_ticks(axes)
        axes.set_xlabel(x_title)
        axes.set_ylabel(f"{title}, {unit.name}" if unit else title)
        axes.grid(axis="y")
        add_legend(canvas, [handles[line.index] for line in keyed], names)
        return svg_of(canvas, f"{title} by {x_title[0].lower()}{x_title[1:]}. {_in_words(lines, text)}")


def _near_the_best(lines: Sequence[Line]) -> list[Line] | None:
    """The lines that end near the lowest end, where there are some of them and others far above; else None."""
    longest = max(line.points[-1].length_tokens for line in lines)
    ends = {line.index: line.points[-1].value for line in lines if line.points[-1].length_tokens == longest}
    best = min(ends.values())
    near = [line for line in lines if ends.get(line.index, math.inf) <= _NEAR * best]
    highest = max(point.value for line in lines for point in line.points)
    highest_near = max(point.value for line in near for point in line.points)
    return near if 2 <= len(near) < len(lines) and highest > _FAR * highest_near else None


def _draw_line(axes: Axes, line: Line, unit: float, with_band: bool) -> Line2D:
    """One arm: a line through its values, a band where they have intervals, crosses where it failed."""
    style = line_style(line.index)
    at, values = [p.length_tokens for p in line.points], [p.value / unit for p in line.points]
    (drawn,) = axes.plot(at, values, **style, markersize=5, linewidth=1.8)
    banded = [(p.length_tokens, *(end / unit for end in p.interval)) for p in line.points if p.interval]
    if banded and with_band:
        at, low, high = zip(*banded, strict=True)
        axes.fill_between(at, low, high, color=style["color"], alpha=0.2, linewidth=0)
    if line.failed:
        # At the upper edge, as a failed run has no value.
        edge = axes.get_xaxis_transform()
        cross = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": "none", "clip_on": False}
        axes.plot(line.failed, [0.97] * len(line.failed), transform=edge, color=style["color"], **cross)
    return drawn


def _draw_original(axes: Axes, original_tokens: int, *, on_the_right: bool) -> None:
    """The rule at the original window, with its words on the side that has room."""
    axes.axvline(original_tokens, **REFERENCE_RULE)
    axes.annotate(
        "original window",
        (original_tokens, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-4 if on_the_right else 4, -2),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="top",
        fontsize=8,
    )


def _apart(ticks: Sequence[int]) -> list[int]:
    """The lengths whose labels have room beside one another, from the longest down."""
    span = math.log2(ticks[-1] / ticks[0]) or 1.0
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if math.log2(kept[-1] / tick) >= span / 12:
            kept.append(tick)
    return kept[::-1]


def _set_value_ticks(axes: Axes) -> None:
    """Round numbers on a logarithmic axis: as many as fit, whether it spans a few per cent or many powers of ten."""
    low, high = axes.get_ylim()
    ratio = high / low
    if ratio < 6:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e"))
    )
    axes.set_ylim(low, high)


def _in_words(lines: Sequence[Line], text: Callable[[float], str]) -> str:
    """The numbers of a figure as sentences, for its label."""
    said = []
    for line in lines:
        numbers = [f"{length_label(point.length_tokens)} {text(point.value)}" for point in line.points]
        numbers += [f"{length_label(length)} failed" for length in line.failed]
        said.append(f"{line.name}: {', '.join(numbers)}.")
    return " ".join(said)


# Intervals in rows


def dot_panel(dots: Sequence[Line], *, title: str, x_title: str, from_zero: bool = False) -> str:
    """A row for each arm: its value as a dot and its interval as a bar.

    Args:
        dots: from top to bottom, each with one point.
        title: above the drawing.
        x_title: what the values are, with their unit.
        from_zero: begin at zero, for amounts; otherwise zero is marked by a vertical line, for differences.
    """
    edges = axis_edges(dots)
    said = []
    with drawing(4.6, 0.9 + 0.26 * len(dots)) as (canvas, axes):
        axes.set_title(title)
        for row, dot in enumerate(dots):
            (point,), style = dot.points, line_style(dot.index)
            said.append(f"{dot.name} {point.value:.3g}")
            if point.interval:
                said[-1] += f" ({point.interval[0]:.3g}{TO}{point.interval[1]:.3g})"
            if edges and not edges[0] <= point.value <= edges[1]:
                _draw_beyond(axes, row, dot, edges)
                continue
            if point.interval:
                axes.plot(point.interval, [row, row], color=style["color"], linewidth=2, solid_capstyle="butt")
            axes.plot([point.value], [row], color=style["color"], marker=style["marker"], markersize=6)
        if from_zero:
            axes.set_xlim(0, 1.08 * max(dot.points[0].value for dot in dots))
        else:
            axes.axvline(0, **REFERENCE_RULE)
        if edges:
            axes.set_xlim(*edges)
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.set_yticks(range(len(dots)), [shortened(dot.name, 28) for dot in dots])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", MINUS)))
        axes.set_xlabel(x_title)
        axes.grid(axis="x")
        return svg_of(canvas, f"{title}, {x_title}: {'; '.join(said)}.")


def axis_edges(dots: Sequence[Line]) -> tuple[float, float] | None:
    """Ends of an axis that leaves out the few arms so far off that the others would lie on one another; or None."""
    ends = [[end for end in dot.points[0][1:] if end is not None] for dot in dots]
    reach = [max(map(abs, of_arm)) for of_arm in ends]
    within = [of_arm for of_arm, far in zip(ends, reach, strict=True) if far <= _BEYOND * median(reach)]
    if len(within) == len(dots) or len(within) < 2:
        return None
    low, high = min(0.0, *map(min, within)), max(0.0, *map(max, within))
    margin = 0.08 * (high - low)
    return (low - margin, high + margin) if margin else None


def _draw_beyond(axes: Axes, row: int, dot: Line, edges: tuple[float, float]) -> None:
    """An arrowhead at the edge beyond which the value lies, and the value."""
    value, colour = dot.points[0].value, line_style(dot.index)["color"]
    to_the_right = value > edges[1]
    edge = edges[1] if to_the_right else edges[0]
    axes.plot([edge], [row], color=colour, marker=">" if to_the_right else "<", markersize=8, clip_on=False)
    axes.annotate(
        f"{value:,.0f}".replace("-", MINUS),
        (edge, row),
        xytext=(-8 if to_the_right else 8, 0),
        textcoords="offset points",
        ha="right" if to_the_right else "left",
        va="center",
    )


# Heat maps


def depth_grid(
    arms: Sequence[Arm], task: str, *, original_tokens: int, part: str = "", what: str = "needles"
) -> Figure:
    """Share found by length (across) and depth (down), one heat map per arm on one fixed scale of 0 to 100%.

    Args:
        arms: each that has records by depth gets a panel.
        task: a retrieval task with results by depth.
        original_tokens: window of the base model in tokens; a rule separates the lengths within it from those beyond.
        part: which kind, of a task that has several.
        what: what is to be found, in the plural.
    """
    cells = {arm.name: found for arm in arms if (found := arm.by_length_and_depth(task, part))}
    columns = sorted({length for found in cells.values() for length, _ in found})
    rows = sorted({depth for found in cells.values() for _, depth in found})
    panels = tuple(_share_panel(name, found, columns, rows, original_tokens) for name, found in cells.items())
    trials = {record.num_samples for found in cells.values() for record in found.values()}
    kind = part.replace("_", " ")
    (caption,) = say("depth.caption", what=what, kind=kind, trials=trials, original=original_tokens)
    return Figure(caption=caption, panels=panels, title=kind.capitalize())


def _share_panel(
    name: str,
    cells: Mapping[tuple[int, Depth], EvalResult],
    columns: Sequence[int],
    rows: Sequence[Depth],
    original_tokens: int,
) -> str:
    """The heat map of one arm; every arm has the same cells, empty where it was not measured."""
    said = [
        f"{length_label(length)}, depth {_depth_label(depth)}: {record.value:.0%}"
        for (length, depth), record in sorted(cells.items())
    ]
    title = textwrap.fill(name, width=max(16, 4 * len(columns)))
    height = 0.32 * len(rows) + 0.75 + 0.2 * title.count("\n")
    with drawing(max(2.4, 0.43 * len(columns) + 0.9), height) as (canvas, axes):
        axes.set_title(title)
        for x, length in enumerate(columns):
            for y, depth in enumerate(rows):
                _draw_cell(axes, x, y, cells.get((length, depth)))
        within = sum(length <= original_tokens for length in columns)
        if 0 < within < len(columns):
            axes.axvline(within - 0.5, color=INK, linewidth=1.4, linestyle=(0, (3, 2)), clip_on=False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [length_label(length) for length in columns])
        axes.set_yticks(range(len(rows)), [_depth_label(depth) for depth in rows])
        axes.tick_params(length=0)
        axes.set_xlabel("Length in tokens")
        axes.set_ylabel("Depth")
        axes.spines[:].set_visible(False)
        return svg_of(canvas, f"{name}: share found by length and depth. {'; '.join(said) or 'Not measured'}.")


def _depth_label(depth: Depth) -> str:
    return f"{100 * depth[0]:.0f}{TO}{100 * depth[1]:.0f}%"


def _draw_cell(axes: Axes, x: int, y: int, record: EvalResult | None) -> None:
    if record is None:
        axes.text(x, y, ABSENT, ha="center", va="center")
        return
    fill = SHARE_COLOURS(min(1.0, max(0.0, record.value)))
    # Whichever of black and white stands out more; the worse of the two cases still has a contrast of 4.5 to 1.
    ink = "#000000" if relative_luminance(fill) > 0.179 else "#ffffff"
    cell = axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=fill, linewidth=0))
    number = axes.text(x, y, f"{100 * record.value:.0f}", ha="center", va="center_baseline", color=ink, fontsize=9.5)
    # They lie within the axes; measuring each of them would take as long as drawing it.
    cell.set_in_layout(False)
    number.set_in_layout(False)


# Coverage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One sampler in a plot: its name, coverage and colour."""

    name: str
    coverage: Coverage
    colour: Any


def draw_coverage(axes: Axes, window: Window, curves: Sequence[Curve]) -> None:
    """Share of examples that train each distance, on a logarithmic scale so that starved distances show.

    Sampled curves are dashed and have a band of two standard errors; the dotted rule marks the training window. This is
    figure 5 of the PoSE paper.

    Args:
        axes: to draw in.
        window: of all curves.
        curves: at least one.
    """
    distances = np.unique(np.linspace(1, window.target - 1, 300).astype(int))
    for curve in curves:
        share, error = curve.coverage.share[distances], curve.coverage.standard_error[distances]
        style = "--" if curve.coverage.num_samples else "-"
        axes.plot(distances, share.clip(_FLOOR), style, color=curve.colour, lw=1.3, label=curve.name)
        if curve.coverage.num_samples:
            low, high = (share - 2 * error).clip(_FLOOR), (share + 2 * error).clip(_FLOOR, 1)
            axes.fill_between(distances, low, high, color=curve.colour, alpha=0.2, lw=0)
    axes.axvline(window.train, color="0.6", lw=0.8, ls=":")
    axes.set(
        xlabel="relative distance in tokens",
        xlim=(0, window.target),
        yscale="log",
        ylim=(_FLOOR, 1.15),
    )
    axes.xaxis.set_major_locator(MultipleLocator(window.target / 4))
    axes.xaxis.set_major_formatter(LENGTH_TICKS)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    axes.grid(alpha=0.25)


def coverage_panel(window: Window, named: Sequence[tuple[str, Coverage]]) -> str:
    """The drawing for a page: one curve for each sampler, by its name."""
    curves = [
        Curve(name=name, coverage=found, colour=COLOURS[(index + 1) % len(COLOURS)])
        for index, (name, found) in enumerate(named)
    ]
    names = [curve.name for curve in curves]
    with drawing(4.6, 2.8 + legend_height(names)) as (canvas, axes):
        draw_coverage(axes, window, curves)
        axes.set(xlabel="Relative distance in tokens", ylabel="Share of examples that train it")
        add_legend(canvas, axes.get_lines()[: len(curves)], names)
        said = "; ".join(f"{name}: lowest share {found.share.min():.2%}" for name, found in named)
        return svg_of(canvas, f"Share of training examples that train each relative distance. {said}.")

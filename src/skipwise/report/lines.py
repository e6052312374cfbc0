"""Lines over lengths: perplexity of every arm, and what lengths cost in time and memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from skipwise.report.drawing import INK, STYLE, Figure, legend_columns, line_style, svg_of
from skipwise.report.records import PERPLEXITY, Arm, Measure
from skipwise.report.tables import shortened
from skipwise.window import length_label

# Beyond these many bands on top of one another nobody tells whose is whose.
_MOST_BANDS = 6
# A second drawing of the best arms alone, where others are so far above that these lie on one another.
_FAR, _NEAR = 3.0, 1.5


class Unit(NamedTuple):
    """What an axis counts in: so many of the values' own unit, and its name."""

    size: float
    name: str


class Point(NamedTuple):
    """One value at a length in tokens, with its interval where it has one."""

    length_tokens: int
    value: float
    low: float | None = None
    high: float | None = None


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


def perplexity_by_length(arms: Sequence[Arm], *, original_tokens: int, measure: Measure = PERPLEXITY) -> Figure:
    """Perplexity against length, both axes logarithmic, one line and confidence band per arm.

    Where some arms are far above the others, a second panel shows the best alone.

    Args:
        arms: at most 24 of them are told apart by colour and dashes together.
        original_tokens: window of the base model in tokens, marked by an upright rule.
        measure: which perplexity.
    """
    lines = lines_of(arms, measure)
    groups = [lines] if (near := _near_the_best(lines)) is None else [lines, near]
    panels = tuple(
        line_panel(group, title=measure.title, text=measure.text, original_tokens=original_tokens) for group in groups
    )
    caption = (
        f"{measure.title} by length; lower is better; both axes are logarithmic. "
        f"{'Bands are 95% intervals. ' if len(groups[-1]) <= _MOST_BANDS else 'Intervals are in the table. '}"
        f"The upright rule marks the original window of {length_label(original_tokens)}."
        + (" The second drawing has the arms near the best one alone." if len(groups) > 1 else "")
    )
    return Figure(caption=caption, panels=panels)


def lines_of(arms: Sequence[Arm], measure: Measure) -> list[Line]:
    """A line for each arm that was measured so."""
    return [
        Line(
            name=arm.name,
            index=index,
            points=[Point(length, r.value, r.ci_low, r.ci_high) for length, r in found.items()],
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
        text: writes a value, for those who listen.
        unit: what the axis counts in; None: the values as they are.
        original_tokens: where an upright rule stands; None for none.
        x_title: what the lengths are.
    """
    ticks = sorted({at for line in lines for at in (*(p.length_tokens for p in line.points), *line.failed)})
    # The key reads from top to bottom as the lines end.
    keyed = sorted(lines, key=lambda line: -line.points[-1].value if line.points else -math.inf)
    with rc_context(STYLE):
        names = [shortened(line.name) for line in keyed]
        columns = legend_columns(names)
        canvas = Canvas(figsize=(4.6, 3.1 + 0.2 * math.ceil(len(lines) / columns)), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        handles = {
            line.index: _draw_line(axes, line, unit.size if unit else 1.0, len(lines) <= _MOST_BANDS) for line in lines
        }
        if original_tokens is not None:
            _draw_original(axes, original_tokens, on_the_right=original_tokens**2 > ticks[0] * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(_apart(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(round(tokens))))
        _set_value_ticks(axes)
        axes.set_xlabel(x_title)
        axes.set_ylabel(f"{title}, {unit.name}" if unit else title)
        axes.grid(axis="y")
        canvas.legend(
            [handles[line.index] for line in keyed],
            names,
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            handlelength=2.4,
            columnspacing=1.4,
        )
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
    banded = [
        (p.length_tokens, p.low / unit, p.high / unit) for p in line.points if p.low is not None and p.high is not None
    ]
    if banded and with_band:
        at, low, high = zip(*banded, strict=True)
        axes.fill_between(at, low, high, color=style["color"], alpha=0.2, linewidth=0)
    if line.failed:
        # At the upper edge: a run that failed has no value.
        edge = axes.get_xaxis_transform()
        cross = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": "none", "clip_on": False}
        axes.plot(line.failed, [0.97] * len(line.failed), transform=edge, color=style["color"], **cross)
    return drawn


def _draw_original(axes: Axes, original_tokens: int, *, on_the_right: bool) -> None:
    """The rule at the original window, with its words on the side that has room."""
    axes.axvline(original_tokens, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
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
    """Those lengths whose labels have room beside one another, from the longest down."""
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
    return " ".join(
        f"{line.name}: "
        + ", ".join(
            [
                *(f"{length_label(p.length_tokens)} {text(p.value)}" for p in line.points),
                *(f"{length_label(length)} failed" for length in line.failed),
            ]
        )
        + "."
        for line in lines
    )

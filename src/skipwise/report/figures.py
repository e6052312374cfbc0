"""Figures from records, as SVG text that sits inside a page.

The text of a figure is drawn as outlines, so it looks the same on every machine; each figure says its numbers again in
words for those who listen to the page. The ground is transparent, and ink and rules are CSS variables with a mid-tone
to fall back on, so one drawing serves light pages, dark pages and paper. The same records give the same bytes.
"""

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.typing import ColorType

from skipwise.report.records import PERPLEXITY, TO, Arm, DepthBand, Measure, Record, length_label, lengths
from skipwise.report.tables import ABSENT

# Stand-ins while matplotlib draws; the page decides through CSS what they become.
INK, RULE = "#74797f", "#a9adb2"
_CSS = {INK: f"var(--ink, {INK})", RULE: f"var(--rule, {RULE})"}

# Each at least 3:1 against white and against near-black; the first three stay well apart without red or green vision.
# Marker and dashes tell arms apart as well.
COLOURS = ("#7f8287", "#d0780a", "#2f7fd1", "#c05aa6", "#159a72")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))

SHARE_COLOURS = colormaps["cividis"]

_STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "skipwise",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One or more drawings side by side, which wrap under one another where the screen is narrow.

    Attributes:
        caption: what is shown and how to read it.
        panels: SVG elements, each complete in itself and safe to put into HTML.
    """

    caption: str
    panels: tuple[str, ...]


def perplexity_by_length(arms: Sequence[Arm], *, original_tokens: int, measure: Measure = PERPLEXITY) -> Figure:
    """Perplexity against length, both axes logarithmic, one line and confidence band per arm.

    Args:
        arms: at most 15 of them are told apart by colour and dashes together.
        original_tokens: window of the base model in tokens, marked by an upright rule.
        measure: which perplexity.
    """
    ticks = lengths(arms, measure)
    with rc_context(_STYLE):
        legend_columns = _legend_columns([arm.name for arm in arms])
        canvas = Canvas(figsize=(4.6, 3.1 + 0.2 * math.ceil(len(arms) / legend_columns)), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for index, arm in enumerate(arms):
            _draw_line(axes, list(arm.by_length(measure).values()), arm.name, index)
        _draw_original(axes, original_tokens, on_the_right=original_tokens**2 > ticks[0] * ticks[-1])
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(round(tokens))))
        _set_value_ticks(axes)
        axes.set_xlabel("Length in tokens")
        axes.set_ylabel(measure.title)
        axes.grid(axis="y")
        canvas.legend(
            loc="outside upper left", ncols=legend_columns, frameon=False, handlelength=2.4, columnspacing=1.4
        )
        svg = _svg(canvas, f"{measure.title} by length in tokens. {_in_words(arms, measure)}")
    caption = (
        f"{measure.title} by length; lower is better; both axes are logarithmic. "
        f"Bands are 95% intervals. The upright rule marks the original window of {length_label(original_tokens)}."
    )
    return Figure(caption=caption, panels=(svg,))


def passkey_grid(arms: Sequence[Arm], *, original_tokens: int) -> Figure:
    """Share of keys found by length (across) and depth (down), one heat map per arm on one fixed scale of 0 to 100%.

    Args:
        arms: one panel each.
        original_tokens: window of the base model in tokens; a rule parts the lengths within it from those beyond.
    """
    cells = [arm.by_length_and_depth() for arm in arms]
    columns = sorted({length for found in cells for length, _ in found})
    rows = sorted({depth for found in cells for _, depth in found})
    panels = tuple(
        _share_panel(arm.name, found, columns, rows, original_tokens) for arm, found in zip(arms, cells, strict=True)
    )
    trials = sorted({record.num_samples for found in cells for record in found.values()})
    caption = (
        "Share of keys found, in per cent, by length of the prompt (across) and by depth of the key in it (down). "
        f"Each cell is {' to '.join(str(n) for n in (trials[:1] + trials[1:][-1:]))} trials. The dashed rule parts "
        f"lengths within the original window of {length_label(original_tokens)} from those beyond it. "
        "Dark is 0, bright is 100."
    )
    return Figure(caption=caption, panels=panels)


def _legend_columns(names: Sequence[str]) -> int:
    """One row if all names fit (about 60 characters, a key counting 8), else as many columns as the longest allows."""
    if sum(len(name) + 8 for name in names) <= 60:
        return len(names)
    return max(1, 60 // (max(map(len, names)) + 8))


def _draw_line(axes: Axes, records: list[Record], name: str, index: int) -> None:
    """One arm: a line through its values, and a band where they have intervals."""
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(
        [r.length_tokens for r in records],
        [r.value for r in records],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.8,
        linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
        label=name,
    )
    banded = [(r.length_tokens, r.ci_low, r.ci_high) for r in records if r.ci_low is not None and r.ci_high is not None]
    if banded:
        at, low, high = zip(*banded, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)


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


def _set_value_ticks(axes: Axes) -> None:
    """Round numbers on a logarithmic axis: as many as fit, whether it spans a few per cent or many powers of ten."""
    low, high = axes.get_ylim()
    ratio = high / low
    if ratio < 3:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e"))
    )
    axes.set_ylim(low, high)


def _share_panel(
    name: str,
    cells: Mapping[tuple[int, DepthBand], Record],
    columns: Sequence[int],
    rows: Sequence[DepthBand],
    original_tokens: int,
) -> str:
    """The heat map of one arm; every arm has the same cells, empty where it was not measured."""
    said = [
        f"{length_label(length)}, depth {_depth_label(depth)}: {record.value:.0%}"
        for (length, depth), record in sorted(cells.items())
    ]
    title = textwrap.fill(name, width=max(16, 4 * len(columns)))
    with rc_context(_STYLE):
        height = 0.32 * len(rows) + 0.75 + 0.2 * title.count("\n")
        canvas = Canvas(figsize=(max(2.4, 0.43 * len(columns) + 0.9), height), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(title, fontsize=10.5, fontweight="bold", loc="left")
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
        return _svg(canvas, f"{name}: share of keys found by length and depth. {'; '.join(said) or 'Not measured'}.")


def _depth_label(depth: DepthBand) -> str:
    return f"{100 * depth.start:.0f}{TO}{100 * depth.end:.0f}%"


def _draw_cell(axes: Axes, x: int, y: int, record: Record | None) -> None:
    if record is None:
        axes.text(x, y, ABSENT, ha="center", va="center")
        return
    fill = SHARE_COLOURS(record.value)
    # Whichever of black and white stands out more; the worse of the two cases still has a contrast of 4.5 to 1.
    ink = "#000000" if relative_luminance(fill) > 0.179 else "#ffffff"
    axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=fill, linewidth=0))
    axes.text(x, y, f"{100 * record.value:.0f}", ha="center", va="center_baseline", color=ink, fontsize=9.5)


def relative_luminance(colour: ColorType) -> float:
    """Luminance of an sRGB colour, 0 black to 1 white, as the contrast rules of WCAG 2 define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _in_words(arms: Sequence[Arm], measure: Measure) -> str:
    """The numbers of a figure as sentences, for its label."""
    return " ".join(
        f"{arm.name}: "
        + ", ".join(f"{length_label(n)} {measure.text(r.value)}" for n, r in arm.by_length(measure).items())
        + "."
        for arm in arms
    )


def _svg(canvas: Canvas, label: str) -> str:
    """The drawing as one SVG element with a label, names of its own, and CSS variables for ink and rules."""
    FigureCanvasSVG(canvas)
    file = io.StringIO()
    canvas.savefig(
        file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
    )
    drawing = file.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    view = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', drawing)
    assert view, f"matplotlib {matplotlib.__version__} wrote an SVG without a viewBox"
    # Drawings share a page, so the names inside each must not meet those of the next.
    own = "f" + hashlib.sha256((label + body).encode()).hexdigest()[:10]
    body = re.sub(r'\bid="', f'id="{own}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{own}-", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    for stand_in, variable in _CSS.items():
        body = body.replace(stand_in, variable)
    width, height = float(view[3]), float(view[4])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}" '
        f'viewBox="{" ".join(view.groups())}">{body.rstrip()}'
    )

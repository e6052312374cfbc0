"""How figures are drawn: style, colours, shared parts, and SVG text that sits inside a page.

The text of a figure is drawn as outlines, so it looks the same on every machine; a label repeats the numbers for screen
readers. The background is transparent, and ink and rules are CSS variables with a mid-tone as fallback, so one drawing
serves light pages, dark pages and paper. The same records give the same bytes.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.typing import ColorType

from skipwise.report.quantities import shortened
from skipwise.window import length_label

# Placeholders while matplotlib draws; the page replaces them through CSS.
INK, RULE = "#74797f", "#a9adb2"
_CSS = {INK: f"var(--ink, {INK})", RULE: f"var(--rule, {RULE})"}

# Each has a contrast of at least 3:1 with white and with near-black; the first three stay well apart without red or
# green vision. Marker and dashes tell arms apart as well.
COLOURS = ("#7f8287", "#d0780a", "#2f7fd1", "#c05aa6", "#159a72", "#d64545", "#8468d8", "#7d8a0b")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
# The vertical line at zero, or at the original window.
REFERENCE_RULE: Any = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 0}

STYLE: Any = {
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
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
}

# Writes a length in tokens on an axis.
LENGTH_TICKS = FuncFormatter(lambda tokens, _: length_label(round(tokens)) if tokens else "0")


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Canvas, Axes]]:
    """A canvas of this size in inches, and its axes, in the style of all figures."""
    with rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        yield canvas, canvas.add_subplot()


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the arm with this number: the same in every figure; 24 arms are told apart."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def legend_columns(names: Sequence[str]) -> int:
    """One row if all names fit (about 60 characters, a key counting 8), else as many columns as the longest allows."""
    names = [shortened(name) for name in names]
    if sum(len(name) + 8 for name in names) <= 60:
        return len(names)
    return max(1, 60 // (max(map(len, names)) + 8))


def legend_height(names: Sequence[str]) -> float:
    """Height of the legend in inches."""
    return 0.2 * -(-len(names) // legend_columns(names))


def add_legend(canvas: Canvas, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """A legend above the axes; long names are shortened."""
    columns = legend_columns(names)
    canvas.legend(handles, [shortened(name) for name in names], loc="outside upper left", ncols=columns)


def relative_luminance(colour: ColorType) -> float:
    """Luminance of an sRGB colour, 0 black to 1 white, as the contrast rules of WCAG 2 define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def svg_of(canvas: Canvas, label: str) -> str:
    """The drawing as one SVG element with a label, names of its own, and CSS variables for ink and rules."""
    FigureCanvasSVG(canvas)
    file = io.StringIO()
    canvas.savefig(
        file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
    )
    svg = file.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    view = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', svg)
    assert view, f"matplotlib {matplotlib.__version__} wrote an SVG without a viewBox"
    # Drawings share a page, so the names inside each must not meet those of the next.
    own = "f" + hashlib.sha256((label + body).encode()).hexdigest()[:10]
    body = re.sub(r'\bid="', f'id="{own}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{own}-", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    for placeholder, variable in _CSS.items():
        body = body.replace(placeholder, variable)
    label = "".join(letter if letter.isprintable() else " " for letter in label)
    width, height = (f"{float(points) * 4 / 3:.0f}" for points in (view[3], view[4]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" width="{width}" height="{height}" style="--width: {width}px" '
        f'viewBox="{" ".join(view.groups())}">{body.rstrip()}'
    )

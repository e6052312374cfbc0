"""How figures are drawn: style, colours, and SVG text that sits inside a page.

The text of a figure is drawn as outlines, so it looks the same on every machine; each figure says its numbers again in
words for those who listen to the page. The ground is transparent, and ink and rules are CSS variables with a mid-tone
to fall back on, so one drawing serves light pages, dark pages and paper. The same records give the same bytes.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.typing import ColorType

# Stand-ins while matplotlib draws; the page decides through CSS what they become.
INK, RULE = "#74797f", "#a9adb2"
_CSS = {INK: f"var(--ink, {INK})", RULE: f"var(--rule, {RULE})"}

# Each at least 3:1 against white and against near-black; the first three stay well apart without red or green vision.
# Marker and dashes tell arms apart as well.
COLOURS = ("#7f8287", "#d0780a", "#2f7fd1", "#c05aa6", "#159a72", "#d64545", "#8468d8", "#7d8a0b")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))

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
        title: a heading of its own, where a section has several.
    """

    caption: str
    panels: tuple[str, ...]
    title: str = ""


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the arm with this number: the same in every figure; 24 arms are told apart."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def legend_columns(names: Sequence[str]) -> int:
    """One row if all names fit (about 60 characters, a key counting 8), else as many columns as the longest allows."""
    if sum(len(name) + 8 for name in names) <= 60:
        return len(names)
    return max(1, 60 // (max(map(len, names)) + 8))


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
    label = "".join(letter if letter.isprintable() else " " for letter in label)
    width, height = float(view[3]), float(view[4])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}" '
        f'viewBox="{" ".join(view.groups())}">{body.rstrip()}'
    )

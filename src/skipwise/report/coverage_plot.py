"""How often each relative distance is trained, drawn: the PoSE paper's figure 5."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MultipleLocator

from skipwise.coverage import Coverage
from skipwise.report.drawing import COLOURS, STYLE, legend_columns, svg_of
from skipwise.report.tables import shortened
from skipwise.window import Window, length_label

_FLOOR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One sampler in a plot: what it is called, its coverage, and its colour."""

    name: str
    coverage: Coverage
    colour: Any


def draw_coverage(axes: Axes, window: Window, curves: Sequence[Curve]) -> None:
    """Share of examples that train each distance, on a logarithmic scale so that starved distances show.

    Sampled curves are dashed and have a band of two standard errors; the dotted rule marks the training window.

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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(round(tokens)) if tokens else "0"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    axes.grid(alpha=0.25)


def coverage_panel(window: Window, named: Sequence[tuple[str, Coverage]]) -> str:
    """The drawing for a page: one curve for each sampler, by its name."""
    with rc_context(STYLE):
        curves = [
            Curve(name=shortened(name), coverage=found, colour=COLOURS[(index + 1) % len(COLOURS)])
            for index, (name, found) in enumerate(named)
        ]
        columns = legend_columns([curve.name for curve in curves])
        canvas = Canvas(figsize=(4.6, 2.8 + 0.2 * -(-len(curves) // columns)), layout="constrained")
        axes = canvas.add_subplot()
        draw_coverage(axes, window, curves)
        axes.set(xlabel="Relative distance in tokens", ylabel="Share of examples that train it")
        canvas.legend(loc="outside upper left", ncols=columns, frameon=False, handlelength=2.4, columnspacing=1.4)
        said = "; ".join(f"{name}: lowest share {found.share.min():.2%}" for name, found in named)
        return svg_of(canvas, f"Share of training examples that train each relative distance. {said}.")

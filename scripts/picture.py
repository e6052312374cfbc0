"""Draws the README's picture from the records of a demo: perplexity and passkeys by length.

skipwise demo --output runs/demo && python scripts/picture.py runs/demo/records.jsonl docs/images/demo.svg
"""

import itertools
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from skipwise.records.results import EvalResult
from skipwise.report.drawing import INK, LENGTH_TICKS, REFERENCE_RULE, STYLE, line_style

ARMS = ("base", "interpolation only", "extended")
"""In the order in which the demo measures them."""


def read_arms(path: Path) -> list[list[EvalResult]]:
    """The records of each arm: they begin anew where the first measurement comes again."""
    results = [EvalResult.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    results = [result for result in results if result.is_whole]
    first = (results[0].task, results[0].length_tokens)
    starts = [place for place, one in enumerate(results) if (one.task, one.length_tokens) == first]
    assert len(starts) == len(ARMS), f"{path} has {len(starts)} arms; the demo measures {len(ARMS)}"
    return [results[a:b] for a, b in itertools.pairwise([*starts, len(results)])]


def draw(axes: Axes, arms: list[list[EvalResult]], metric: str, title: str) -> list:
    """One panel: a line for each arm, with its 95% intervals."""
    handles = []
    for index, results in enumerate(arms):
        points = [result for result in results if result.metric == metric]
        lengths, style = [point.length_tokens for point in points], line_style(index)
        handles += axes.plot(lengths, [point.value for point in points], **style, markersize=5, linewidth=1.8)
        low, high = [point.ci_low for point in points], [point.ci_high for point in points]
        axes.fill_between(lengths, low, high, color=style["color"], alpha=0.2, linewidth=0)  # pyright: ignore
    axes.set_xscale("log", base=2)
    axes.axvline(min(result.length_tokens for result in arms[0]), **REFERENCE_RULE)
    axes.xaxis.set_major_formatter(LENGTH_TICKS)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title)
    axes.set_xlabel("length in tokens")
    axes.grid(axis="y")
    return handles


def main(records: Path, picture: Path) -> None:
    """Draws both panels side by side."""
    from matplotlib import rc_context

    arms = read_arms(records)
    with rc_context({**STYLE, "svg.hashsalt": "skipwise"}):
        canvas = Figure(figsize=(9.2, 3.4), layout="constrained")
        FigureCanvasSVG(canvas)
        left, right = canvas.subplots(1, 2)
        handles = draw(left, arms, "perplexity", "Perplexity of the same tokens (lower is better)")
        left.set_yscale("log")
        left.set_yticks([8, 16, 32, 64, 128], labels=["8", "16", "32", "64", "128"])
        left.yaxis.set_minor_locator(NullLocator())
        draw(right, arms, "accuracy", "Hidden keys found (higher is better)")
        right.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        canvas.legend(handles, ARMS, loc="outside upper left", ncols=3, labelcolor=INK)
        canvas.savefig(picture, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

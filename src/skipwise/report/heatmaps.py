"""Heat maps of what was found, by length and depth, on one fixed scale of 0 to 100 per cent."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from skipwise.records.results import EvalResult
from skipwise.report.drawing import INK, STYLE, Figure, relative_luminance, svg_of
from skipwise.report.quantities import TO
from skipwise.report.records import Arm, DepthBand
from skipwise.report.tables import ABSENT
from skipwise.window import length_label

SHARE_COLOURS = colormaps["cividis"]


def depth_grid(
    arms: Sequence[Arm], task: str, *, original_tokens: int, part: str = "", what: str = "needles"
) -> Figure:
    """Share found by length (across) and depth (down), one heat map per arm on one fixed scale of 0 to 100%.

    Args:
        arms: one panel for each that was measured so.
        task: a retrieval task with results by depth.
        original_tokens: window of the base model in tokens; a rule parts the lengths within it from those beyond.
        part: which kind, of a task that has several.
        what: what is to be found, in the plural.
    """
    cells = {arm.name: found for arm in arms if (found := arm.by_length_and_depth(task, part))}
    columns = sorted({length for found in cells.values() for length, _ in found})
    rows = sorted({depth for found in cells.values() for _, depth in found})
    panels = tuple(_share_panel(name, found, columns, rows, original_tokens) for name, found in cells.items())
    trials = sorted({record.num_samples for found in cells.values() for record in found.values()})
    kind = f" of kind {part.replace('_', ' ')}" if part else ""
    caption = (
        f"Share of {what}{kind} found, in per cent, by length of the prompt (across) and by depth in it (down). "
        f"Each cell is {' to '.join(str(n) for n in (trials[:1] + trials[1:][-1:]))} trials. The dashed rule parts "
        f"lengths within the original window of {length_label(original_tokens)} from those beyond it. "
        "Dark is 0, bright is 100."
    )
    return Figure(caption=caption, panels=panels, title=part.replace("_", " ").capitalize())


def _share_panel(
    name: str,
    cells: Mapping[tuple[int, DepthBand], EvalResult],
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
    with rc_context(STYLE):
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
        return svg_of(canvas, f"{name}: share found by length and depth. {'; '.join(said) or 'Not measured'}.")


def _depth_label(depth: DepthBand) -> str:
    return f"{100 * depth.start:.0f}{TO}{100 * depth.end:.0f}%"


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

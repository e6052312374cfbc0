"""What `skipwise eval` prints for people: a row a number, a grid for parts of the input, a line a checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from skipwise.evals import EvalResult
    from skipwise.report.effective import MeanScore

# What other metrics say, such as the share of key tokens, is neither good nor bad.
_MORE_IS_BETTER = ("score", "accuracy", "same_top")
_LESS_IS_BETTER = ("perplexity", "longppl", "nll", "kl_", "log_perplexity_ratio")


def print_results(results: Sequence["EvalResult"]) -> None:
    """One row a number; what was found at each depth or position goes into a grid of its own for each task."""
    console = Console()
    table = _table("task", "tokens", "measure", "value", "95% interval", "n", "skipped")
    whole = [result for result in results if result.is_whole]
    for result in whole:
        table.add_row(
            result.task,
            str(result.length_tokens),
            _named(result.metric, result),
            _value(result.metric, result.value),
            _interval(result),
            str(result.num_samples),
            str(result.num_skipped),
        )
    if whole:
        console.print(table)
    if any(result.num_skipped for result in results):
        console.print(
            "skipped: what could not be measured, such as documents shorter than the longest length; it counts nowhere",
            style="dim",
            soft_wrap=True,
        )
    # Depths are shares of any length and share a grid; positions are each length's own.
    by_depth: dict[str, list[EvalResult]] = {}
    by_position: dict[tuple[str, int], list[EvalResult]] = {}
    for result in results:
        if "depth_from" in result.details:
            by_depth.setdefault(_named(result.task, result), []).append(result)
        if "position_from" in result.details:
            by_position.setdefault((result.task, result.length_tokens), []).append(result)
    grids = [_depth_grid(name, cells) for name, cells in by_depth.items()]
    grids += [_position_grid(name, cells) for (name, _), cells in by_position.items()]
    for grid in grids:
        console.print()
        console.print(grid)


def print_mean_scores(scores: Sequence["MeanScore"]) -> None:
    """A row for each length: the mean over all retrieval tasks, which a verdict is read off."""
    table = _table("mean over", "tokens", "value", "95% interval", "n")
    for score in scores:
        table.add_row(
            " + ".join(score.tasks) if len(score.tasks) <= 2 else f"{len(score.tasks)} tasks",
            str(score.length_tokens),
            f"{score.value:.4g}",
            "-" if score.ci_low is None or score.ci_high is None else f"{score.ci_low:.4g} to {score.ci_high:.4g}",
            str(sum(score.num_samples)),
        )
    Console().print(table)


def print_checkpoints(by_step: Mapping[int, Sequence["EvalResult"]]) -> None:
    """A row for each checkpoint, a column for each number over whole inputs; the best of each merit stands out."""
    whole = {
        step: {(_named(r.task, r), r.length_tokens, r.metric): r.value for r in results if r.is_whole}
        for step, results in by_step.items()
    }
    columns = list(dict.fromkeys(column for values in whole.values() for column in values))
    table = _table("step", *(f"{task} {metric} {length}" for task, length, metric in columns))
    best = {}
    for column in columns:
        if (better := _better(column)) is not None:
            best[column] = better(values[column] for values in whole.values() if column in values)
    for step, values in whole.items():
        cells = [
            "-" if column not in values else _marked(values[column], values[column] == best.get(column))
            for column in columns
        ]
        table.add_row(str(step), *cells)
    Console().print(table)


def _better(column: tuple[str, int, str]) -> Callable[[Iterable[float]], float] | None:
    """What takes the best of a column (task with its kind, length, metric); None where it is no merit."""
    name, _, metric = column
    # A control is to stay where chance or the text alone puts it.
    if name.endswith("_control"):
        return None
    if metric.startswith(_MORE_IS_BETTER):
        return max
    return min if metric.startswith(_LESS_IS_BETTER) else None


def _table(*headings: str) -> Table:
    table = Table(*headings, box=None, padding=(0, 2, 0, 0))
    # Names that differ in their ends stay whole; where the screen is too narrow, the other columns go over two lines.
    table.columns[0].no_wrap = True
    return table


def _marked(value: float, is_best: bool) -> str:
    return f"[bold]{value:.4g}[/bold] *" if is_best else f"{value:.4g}"


def _depth_grid(name: str, cells: Sequence["EvalResult"]) -> Table:
    lengths = sorted({cell.length_tokens for cell in cells})
    grid = _table(f"{name} depth", *(f"{length} tokens" for length in lengths))
    by_place = {((cell.details["depth_from"], cell.details["depth_to"]), cell.length_tokens): cell for cell in cells}
    for depth in sorted({depth for depth, _ in by_place}):
        row = [by_place.get((depth, length)) for length in lengths]
        grid.add_row(
            f"{depth[0]:.2f} to {depth[1]:.2f}", *("-" if cell is None else f"{cell.value:.0%}" for cell in row)
        )
    return grid


def _position_grid(name: str, cells: Sequence["EvalResult"]) -> Table:
    """A row for each number of one length, a column for each stretch of positions."""
    stretches = sorted({(cell.details["position_from"], cell.details["position_to"] - 1) for cell in cells})
    grid = _table(f"{name} {cells[0].length_tokens}, position", *(f"{first} to {last}" for first, last in stretches))
    rows: dict[str, dict[int, EvalResult]] = {}
    for cell in cells:
        rows.setdefault(_named(cell.metric, cell), {})[cell.details["position_from"]] = cell
    for measure, row in rows.items():
        grid.add_row(measure, *(f"{row[first].value:.4g}" if first in row else "-" for first, _ in stretches))
    return grid


def _named(what: str, result: "EvalResult") -> str:
    """A task or metric, with the result's kind and arm where it has several."""
    return " ".join([what, *(str(result.details[name]) for name in ("kind", "arm") if name in result.details)])


def _value(metric: str, value: float) -> str:
    from skipwise.report.quantities import bytes_text, seconds_text

    if metric.endswith("_bytes"):
        return bytes_text(value)
    return seconds_text(value) if metric.endswith("_seconds") else f"{value:.4g}"


def _interval(result: "EvalResult") -> str:
    if result.ci_low is None or result.ci_high is None:
        return "-"
    return f"{_value(result.metric, result.ci_low)} to {_value(result.metric, result.ci_high)}"

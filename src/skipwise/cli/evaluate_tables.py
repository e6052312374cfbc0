"""What `skipwise eval` prints for people: numbers in a row each, depths in a grid, every checkpoint in a line."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from skipwise.evals import EvalResult

_PLACES = ("depth_from", "position_from")


def print_results(results: Sequence["EvalResult"]) -> None:
    """One row a number; what was found at each depth goes into a grid of its own for each task."""
    console = Console()
    table = _table("task", "tokens", "measure", "value", "95% interval", "n", "skipped")
    for result in results:
        if "depth_from" not in result.details:
            table.add_row(
                result.task,
                str(result.length_tokens),
                _measure(result),
                f"{result.value:.4g}",
                "-" if result.ci_low is None else f"{result.ci_low:.4g} to {result.ci_high:.4g}",
                str(result.num_samples),
                str(result.num_skipped),
            )
    console.print(table)
    by_task: dict[str, list[EvalResult]] = {}
    for result in results:
        if "depth_from" in result.details:
            by_task.setdefault(_named(result), []).append(result)
    for name, cells in by_task.items():
        console.print()
        console.print(_depth_grid(name, cells))


def print_checkpoints(by_step: Mapping[int, Sequence["EvalResult"]]) -> None:
    """A row for each checkpoint, a column for each number over whole inputs; the best of each column stands out."""
    whole = {
        step: {(_named(r), r.length_tokens, r.metric): r.value for r in results if not set(_PLACES) & set(r.details)}
        for step, results in by_step.items()
    }
    columns = list(dict.fromkeys(column for values in whole.values() for column in values))
    table = _table("step", *(f"{task} {metric} {length}" for task, length, metric in columns))
    best = {}
    for column in columns:
        values = [whole[step][column] for step in whole if column in whole[step]]
        # Of perplexities, divergences and the like less is better; of shares found more.
        best[column] = max(values) if column[2].startswith(("score", "accuracy", "same_top")) else min(values)
    for step, values in whole.items():
        cells = [
            "-" if column not in values else _marked(values[column], values[column] == best[column])
            for column in columns
        ]
        table.add_row(str(step), *cells)
    Console().print(table)


def _table(*headings: str) -> Table:
    return Table(*headings, box=None, padding=(0, 2, 0, 0))


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


def _named(result: "EvalResult") -> str:
    """The task, with its kind and arm where it has several."""
    return " ".join([result.task, *(str(result.details[name]) for name in ("kind", "arm") if name in result.details)])


def _measure(result: "EvalResult") -> str:
    what = " ".join([result.metric, *(str(result.details[name]) for name in ("kind", "arm") if name in result.details)])
    if "position_from" not in result.details:
        return what
    return f"{what} {result.details['position_from']}-{result.details['position_to'] - 1}"

"""Tables of `skipwise eval`: a row for each number, a grid for parts of the input, a row for each checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from skipwise.cli.options import print_table

if TYPE_CHECKING:
    from skipwise.evals import EvalResult
    from skipwise.report.effective import MeanScore

# Other metrics, such as the share of key tokens, are neither good nor bad.
_MORE_IS_BETTER = ("score", "accuracy", "same_top")
_LESS_IS_BETTER = ("perplexity", "longppl", "nll", "kl_", "log_perplexity_ratio")


def print_results(results: Sequence["EvalResult"], step: int | None = None) -> None:
    """Prints a row for each number; results by depth or position are a grid for each task."""
    if step is not None:
        print(f"step {step}")
    if whole := [result for result in results if result.is_whole]:
        headings = ("task", "tokens", "measure", "value", "95% interval", "n", "skipped")
        print_table(
            headings,
            [
                (
                    result.task,
                    str(result.length_tokens),
                    _named(result.metric, result),
                    _value(result.metric, result.value),
                    _interval(result.metric, result.ci_low, result.ci_high),
                    str(result.num_samples),
                    str(result.num_skipped),
                )
                for result in whole
            ],
        )
    chances: dict[str, list[float]] = {}
    for result in whole:
        if result.details.get("chance"):
            chances.setdefault(_named(result.task, result), []).append(result.details["chance"])
    if chances:
        told = ", ".join(f"{name} {' to '.join(_ends(values))}" for name, values in chances.items())
        print(f"chance, which is what a guesser scores: {told}")
    if any(result.num_skipped for result in results):
        print("skipped: inputs that could not be measured, such as documents shorter than the longest length")
    # Depths are shares of any length and share a grid; positions are in tokens, and each length has its own grid.
    by_depth: dict[str, list[EvalResult]] = {}
    by_position: dict[tuple[str, int], list[EvalResult]] = {}
    for result in results:
        if "depth_from" in result.details:
            by_depth.setdefault(_named(result.task, result), []).append(result)
        if "position_from" in result.details:
            by_position.setdefault((result.task, result.length_tokens), []).append(result)
    for name, cells in by_depth.items():
        shares = {(_depths(cell), cell.length_tokens): f"{cell.value:.0%}" for cell in cells}
        rows = {(low, high): f"{low:.2f} to {high:.2f}" for low, high in sorted({depths for depths, _ in shares})}
        lengths = sorted({length for _, length in shares})
        _print_grid(f"{name} depth", shares, rows, {length: f"{length} tokens" for length in lengths})
    for (name, length), cells in by_position.items():
        begins = {cell.details["position_from"]: cell.details["position_to"] for cell in cells}
        ranges = {begin: f"{begin} to {end - 1}" for begin, end in sorted(begins.items())}
        values = {(_named(cell.metric, cell), cell.details["position_from"]): f"{cell.value:.4g}" for cell in cells}
        _print_grid(f"{name} {length}, position", values, {measure: measure for measure, _ in values}, ranges)


def _ends(values: Sequence[float]) -> Iterable[str]:
    """The least and the greatest of some values, or the one value."""
    return dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values)))


def _print_grid(heading: str, cells: Mapping[Any, str], rows: Mapping[Any, str], columns: Mapping[int, str]) -> None:
    """Prints cells, which are by row and column."""
    print()
    print_table(
        (heading, *columns.values()),
        [(name, *(cells.get((row, column), "-") for column in columns)) for row, name in rows.items()],
    )


def _depths(cell: "EvalResult") -> tuple[float, float]:
    return cell.details["depth_from"], cell.details["depth_to"]


def print_mean_scores(scores: Sequence["MeanScore"]) -> None:
    """Prints a row for each length: the mean over all retrieval tasks, which a verdict is based on."""
    rows = []
    for score in scores:
        tasks = " + ".join(score.tasks) if len(score.tasks) <= 2 else f"{len(score.tasks)} tasks"
        interval = _interval("score", score.ci_low, score.ci_high)
        rows.append((tasks, str(score.length_tokens), f"{score.value:.4g}", interval, str(sum(score.num_samples))))
    print_table(("mean over", "tokens", "value", "95% interval", "n"), rows)


def print_checkpoints(by_step: Mapping[int, Sequence["EvalResult"]]) -> None:
    """Prints a row for each checkpoint, a column for each number over whole inputs, with the best value marked."""
    whole = {
        step: {(_named(r.task, r), r.length_tokens, r.metric): r.value for r in results if r.is_whole}
        for step, results in by_step.items()
    }
    columns = list(dict.fromkeys(column for values in whole.values() for column in values))
    best = {}
    for column in columns:
        if (better := _better(column)) is not None:
            best[column] = better(values[column] for values in whole.values() if column in values)

    def cell(values: Mapping[tuple[str, int, str], float], column: tuple[str, int, str]) -> str | Text:
        if column not in values:
            return "-"
        text = f"{values[column]:.4g}"
        return Text(f"{text} *", style="bold") if values[column] == best.get(column) else text

    headings = ("step", *(f"{task} {metric} {length}" for task, length, metric in columns))
    print_table(headings, [(str(step), *(cell(values, one) for one in columns)) for step, values in whole.items()])


def _better(column: tuple[str, int, str]) -> Callable[[Iterable[float]], float] | None:
    """Max or min for a column (task with its kind, length, metric); None for a metric without a better side."""
    name, _, metric = column
    # A control is expected to stay where chance or the text alone puts it.
    if name.endswith("_control"):
        return None
    if metric.startswith(_MORE_IS_BETTER):
        return max
    return min if metric.startswith(_LESS_IS_BETTER) else None


def _named(what: str, result: "EvalResult") -> str:
    """A task or metric, with the result's kind and arm where it has several."""
    return " ".join([what, *(str(result.details[name]) for name in ("kind", "arm") if name in result.details)])


def _value(metric: str, value: float) -> str:
    from skipwise.report.quantities import bytes_text, seconds_text

    if metric.endswith("_bytes"):
        return bytes_text(value)
    return seconds_text(value) if metric.endswith("_seconds") else f"{value:.4g}"


def _interval(metric: str, low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_value(metric, low)} to {_value(metric, high)}"

"""`skipwise coverage`: how often one training example trains each relative distance, as a table and a plot."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.options import JsonOption, print_json, read_length
from skipwise.errors import ConfigError
from skipwise.window import Window, length_label, parse_length

if TYPE_CHECKING:
    from skipwise.coverage import Coverage
    from skipwise.positions import PositionSampler

# What a bare `skipwise coverage` compares: the paper's skips and flat ones, and two methods beside PoSE.
_DEFAULT_SAMPLERS: tuple[dict[str, Any], ...] = (
    {"kind": "pose", "chunks": 2, "skips": "sequential"},
    {"kind": "pose", "chunks": 3, "skips": "sequential"},
    {"kind": "pose", "chunks": 2, "skips": "flat"},
    {"kind": "pose", "chunks": 3, "skips": "flat"},
    {"kind": "randpos"},
    {"kind": "cream"},
)
_STARVED = 0.01  # a share below which a distance is reported as hardly trained


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise coverage --sampler pose,randpos --skips sequential,flat --plot coverage.svg")(
        coverage
    )


def coverage(
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler",
            metavar="KIND",
            help="pose, randpos, cream, sentences, plain, full; again or with commas for several.",
            show_default="pose in four ways, randpos, cream",
        ),
    ] = None,
    chunks: Annotated[
        list[str] | None, typer.Option("--chunks", metavar="N", help="Chunks of pose; several as above.")
    ] = None,
    skips: Annotated[
        list[str] | None,
        typer.Option("--skips", metavar="KIND", help="Skips of pose: sequential, simplex, flat; several as above."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="TOKENS", help="Target window; several as above.", show_default="16k,32k"),
    ] = None,
    train: Annotated[
        int, typer.Option("--train", parser=read_length, metavar="TOKENS", help="Length of a training example.")
    ] = 2048,
    original: Annotated[
        int | None,
        typer.Option(
            "--original",
            parser=read_length,
            metavar="TOKENS",
            help="Window of the base model; only cream looks at it.",
            show_default="the same as --train",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Examples to draw where no exact answer is known.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of those draws.")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot: .svg, .png or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How often one training example trains each relative distance, by position sampler and target."""
    from rich.console import Console
    from rich.progress import track

    from skipwise.coverage import coverage_with_error

    if plot is not None:
        _check_plot_path(plot)
    chosen = _chosen_samplers(_split(samplers), _split(chunks), _split(skips))
    windows = [
        Window(train=train, original=original or train, target=parse_length(target))
        for target in _split(targets) or ["16k", "32k"]
    ]
    work = [(window, sampler) for window in windows for sampler in chosen]
    measured = [
        (window, sampler, coverage_with_error(sampler, window, num_samples=samples, seed=seed))
        for window, sampler in track(work, "Counting", console=Console(stderr=True), transient=True)
    ]
    for window in windows:
        rows = [(sampler, result) for at, sampler, result in measured if at is window]
        if as_json:
            for sampler, result in rows:
                print_json(_record(window, sampler, result))
        else:
            _print_table(window, rows)
    if plot is not None:
        _write_plot(plot, [(window, [(s, r) for at, s, r in measured if at is window]) for window in windows])


def _check_plot_path(plot: Path) -> None:
    """Counting may take a minute: what cannot be written is refused before it."""
    if plot.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--plot is {str(plot)!r}; the file name must end in .svg, .png or .pdf")
    if plot.is_dir():
        raise ConfigError(f"--plot is {str(plot)!r}, a folder; give a file in it")
    if not os.access(plot if plot.exists() else plot.parent, os.W_OK):
        raise ConfigError(f"--plot is {str(plot)!r}, which cannot be written; give a path in a folder that can be")


def _split(values: list[str] | None) -> list[str]:
    """What was given by repeating an option, with commas, or both."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def _chosen_samplers(kinds: list[str], chunks: list[str], skips: list[str]) -> list["PositionSampler"]:
    """The samplers asked for; `pose` once for every combination of chunks and skips."""
    from skipwise.positions import sampler_from

    if not (kinds or chunks or skips):
        return [sampler_from(settings) for settings in _DEFAULT_SAMPLERS]
    kinds = kinds or ["pose"]
    if (chunks or skips) and "pose" not in kinds:
        raise ConfigError(f"--chunks and --skips are settings of pose, and --sampler is {', '.join(kinds)}: add pose")
    chosen = []
    for kind in kinds:
        if kind != "pose":
            chosen.append(sampler_from(kind))
            continue
        for number in chunks or ["2"]:
            if not number.isdecimal():
                raise ConfigError(f"--chunks is {number!r}; it must be a whole number, 1 or more")
            for skip in skips or ["sequential"]:
                chosen.append(sampler_from({"kind": kind, "chunks": int(number), "skips": skip}))
    return chosen


def _distances(window: Window) -> list[int]:
    """About a dozen distances worth a look: inside the training window, every eighth of the target, and its end."""
    eighths = {window.target * eighth // 8 for eighth in range(1, 8)}
    ends = {window.train // 2, window.train - 1, window.target - window.train // 4, window.target - 1}
    return sorted(distance for distance in eighths | ends if 1 <= distance < window.target)


def _record(window: Window, sampler: "PositionSampler", result: "Coverage") -> dict[str, Any]:
    from dataclasses import asdict

    from skipwise.positions import sampler_kind

    distances = _distances(window)
    lowest = result.lowest_distance
    return {
        "sampler": {"kind": sampler_kind(sampler), **asdict(sampler)},  # type: ignore[call-overload]
        "window": asdict(window),
        "distance_tokens": distances,
        "share": [float(result.share[distance]) for distance in distances],
        "standard_error": [float(result.standard_error[distance]) for distance in distances],
        "num_samples": result.num_samples,
        "lowest_share": float(result.share[lowest]),
        "lowest_share_distance_tokens": lowest,
        "first_below_1_percent_tokens": result.first_below(_STARVED),
    }


def _print_table(window: Window, rows: list[tuple["PositionSampler", "Coverage"]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from skipwise.positions import sampler_label

    distances = _distances(window)
    table = Table(
        title=f"Examples of {length_label(window.train)} tokens that train a relative distance, in percent; "
        f"target {length_label(window.target)}",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    table.add_column("sampler", no_wrap=True)
    for heading in [*map(length_label, distances), "lowest", "at", "< 1% from", "error"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for sampler, result in rows:
        lowest, starved_from = result.lowest_distance, result.first_below(_STARVED)
        table.add_row(
            sampler_label(sampler),
            *(_percent(result.share[distance]) for distance in distances),
            _percent(result.share[lowest]),
            length_label(lowest),
            "never" if starved_from is None else length_label(starved_from),
            f"± {_percent(result.standard_error.max())}" if result.num_samples else "exact",
        )
    # A table of numbers is worth nothing when a narrow terminal cuts them: long lines wrap instead.
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
    console.print()


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _write_plot(path: Path, panels: list[tuple[Window, list[tuple["PositionSampler", "Coverage"]]]]) -> None:
    """The paper's figure 5, one panel for each target, with a logarithmic share so that starved distances show."""
    import matplotlib
    from matplotlib.figure import Figure

    from skipwise.positions import sampler_label
    from skipwise.report.figures import Curve, draw_coverage

    # Text stays text and no dates go in: the file is small, and the same call writes the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "skipwise", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
        for axes, (window, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            curves = [
                Curve(name=sampler_label(sampler), coverage=result, colour=f"C{number}")
                for number, (sampler, result) in enumerate(rows)
            ]
            draw_coverage(axes, window, curves)
            axes.set_title(f"{length_label(window.train)} to {length_label(window.target)}")
        figure.axes[0].set_ylabel("share of examples that train it")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, 1 + len(panels)), frameon=False)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)

"""`skipwise coverage`: how often one training example trains each relative distance, as a table and a plot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from skipwise.cli import options
from skipwise.cli.options import OUTPUT, check_writable, option, print_json, print_table
from skipwise.errors import ConfigError
from skipwise.window import Window, length_label, parse_length

if TYPE_CHECKING:
    from skipwise.coverage import Coverage
    from skipwise.positions import PositionSampler

# By default: the paper's skips and flat ones, and two methods other than PoSE.
_DEFAULT_SAMPLERS: tuple[dict[str, Any], ...] = (
    {"kind": "pose", "chunks": 2, "skips": "sequential"},
    {"kind": "pose", "chunks": 3, "skips": "sequential"},
    {"kind": "pose", "chunks": 2, "skips": "flat"},
    {"kind": "pose", "chunks": 3, "skips": "flat"},
    {"kind": "randpos"},
    {"kind": "cream"},
)
# Distances with a smaller share are reported as hardly trained.
_STARVED = 0.01


def coverage(
    samplers: Annotated[
        list[str] | None,
        option(
            "--sampler KIND,...",
            "Position samplers: pose, randpos, cream, sentences, endprompt, plain, full, or your own: FILE.py:CLASS.",
            shown="pose in four ways, randpos, cream",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None, option("--target TOKENS,...", "Target windows.", shown="16k,32k", parser=str)
    ] = None,
    train: Annotated[int, option("--train TOKENS", "Length of a training window.")] = 2048,
    chunks: Annotated[list[str] | None, option("--chunks N,...", "Chunks per window (pose only).", shown="2")] = None,
    skips: Annotated[
        list[str] | None,
        option("--skips KIND,...", "How pose draws skips: sequential, simplex or flat.", shown="sequential"),
    ] = None,
    original: Annotated[
        int | None,
        option("--original TOKENS", "Context window of the base model (cream only).", shown="the same as --train"),
    ] = None,
    samples: Annotated[int, option("--samples N", "Windows to draw if no exact result is known.", min=1)] = 1000,
    seed: options.Seed = 0,
    plot: Annotated[Path | None, option("--plot FILE", "Also draw a plot: .svg, .png or .pdf.", group=OUTPUT)] = None,
    as_json: options.Json = False,
) -> None:
    """Show how often each relative distance is trained.

    Prints the share of training windows that contain a pair of tokens at a given distance, for each position sampler
    and target. Options with several values take commas, or can be repeated.

    Example: skipwise coverage --sampler pose,randpos --skips sequential,flat --plot coverage.svg
    """
    from rich.console import Console
    from rich.progress import track

    from skipwise.coverage import coverage_with_error

    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--plot is {str(plot)!r}; the file name must end in .svg, .png or .pdf")
    check_writable("--plot", plot)
    chosen = _chosen_samplers(_split(samplers), _split(chunks), _split(skips))
    windows = [
        Window(train=train, original=original or train, target=parse_length(target))
        for target in _split(targets) or ["16k", "32k"]
    ]
    work = [(window, sampler) for window in windows for sampler in chosen]
    panels: list[tuple[Window, list[tuple[PositionSampler, Coverage]]]] = [(window, []) for window in windows]
    for number, (window, sampler) in enumerate(track(work, "Counting", console=Console(stderr=True), transient=True)):
        result = coverage_with_error(sampler, window, num_samples=samples, seed=seed)
        panels[number // len(chosen)][1].append((sampler, result))
    for window, rows in panels:
        if as_json:
            for sampler, result in rows:
                print_json(_record(window, sampler, result))
        else:
            _print_table(window, rows)
    if plot is not None:
        _write_plot(plot, panels)


def _split(values: list[str] | None) -> list[str]:
    """The values given by repeating an option, with commas, or both."""
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
    """About a dozen distances to show: inside the training window, every eighth of the target, and its end."""
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
    from skipwise.positions import sampler_label

    distances = _distances(window)
    cells = []
    for sampler, result in rows:
        lowest, starved_from = result.lowest_distance, result.first_below(_STARVED)
        cells.append(
            (
                sampler_label(sampler),
                *(_percent(result.share[distance]) for distance in distances),
                _percent(result.share[lowest]),
                length_label(lowest),
                "never" if starved_from is None else length_label(starved_from),
                f"± {_percent(result.standard_error.max())}" if result.num_samples else "exact",
            )
        )
    title = (
        f"Examples of {length_label(window.train)} tokens that train a relative distance, in percent; "
        f"target {length_label(window.target)}"
    )
    headings = ("sampler", *map(length_label, distances), "lowest", "at", "< 1% from", "error")
    print_table(headings, cells, title=title, numbers=True)
    print()


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

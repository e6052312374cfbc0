"""`skipwise pilot`: within a given time, one page to decide on."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import BAD_INPUT, INTERRUPTED, NEGATIVE, data_setting, option, print_json, settings_over

if TYPE_CHECKING:
    from skipwise.pilot import PilotConfig, PilotResult


def pilot(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a Hugging Face name, a .gguf file, or 'embedded'.")
    ],
    target: Annotated[int, option("--target TOKENS", "Context window to extend to, such as 32k.")],
    data: options.Data = None,
    given_time: Annotated[str, option("--time DURATION", "Time limit, such as 40m or 1h30m.")] = "1h",
    output: Annotated[
        Path | None,
        option(
            "--output FOLDER",
            "Folder of the pilot. An interrupted one continues.",
            shown="runs/<model>-<target>-pilot-<time>",
        ),
    ] = None,
    settings: options.Setting = None,
    machine: Annotated[
        Any, option("--machine NAME,...", "Accelerators to plan the full run for.", shown="a100-80,h100,rtx-4090")
    ] = None,
    price: Annotated[
        float | None, option("--price MONEY", "Price per accelerator-hour.", shown="typical prices", min=0.0)
    ] = None,
    schedule: Annotated[bool, option("--schedule", "Only print how the time would be split.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find out in a given time if an extension is worth it.

    Trains the default recipe for as many steps as fit, asks the base, the interpolated and the extended model questions
    about held-out documents, measures short text, time and memory, and plans the full run. Prints first how the time is
    split. Writes a page to decide on; exit code 1 means no. After Ctrl-C, the same command continues.

    Example: skipwise pilot ./my-model --data docs/ --target 32k --time 1h

    Example: skipwise pilot embedded --data docs/ --target 4k --time 10m
    """
    began = time.time()
    tree = settings_over({"model": model}, {"target": target, "data": data_setting(data)}, settings)
    config = _checked(tree, given_time, output, machine, price)
    with loading("preparing the pilot"):
        from skipwise.pilot import PilotStopped
        from skipwise.pilot import pilot as run

    logging.getLogger("skipwise").setLevel(logging.WARNING)
    command = shlex.join(["skipwise", *sys.argv[1:]])
    try:
        result = run(config, only_schedule=schedule, began=began, command=command)
    except PilotStopped:
        print(f"stopped; what was finished or saved is kept. Continue with: {command}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _print(result, as_json)
    if result.decision is not None and result.decision.outcome == "no":
        raise typer.Exit(NEGATIVE)


def _checked(
    tree: Mapping[str, Any], given_time: str, output: Path | None, machine: Any, price: float | None
) -> "PilotConfig":
    """The pilot that is asked for; if something is wrong with it, prints all of it and exits."""
    from skipwise.config import RunConfig
    from skipwise.pilot.asked import PilotConfig, parse_duration, problems
    from skipwise.pilot.state import check_folder
    from skipwise.plan.machines import machine_of

    checks: list[Callable[[], object]] = [partial(parse_duration, given_time)]
    checks += [partial(machine_of, name) for name in machine or ()]
    if output is not None:
        checks.append(partial(check_folder, output))
    found = problems(tree, checks)
    for problem in found:
        print("skipwise: " + " ".join(problem.split()), file=sys.stderr)
    if found:
        raise typer.Exit(BAD_INPUT)
    config = PilotConfig.of(RunConfig.from_mapping(tree), given_time, output=output, price=price, machines=machine)
    check_folder(config.output, config.asked())
    return config


def _print(result: "PilotResult", as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    if result.record is None or result.report is None:
        return
    from skipwise.report.quantities import bytes_text, seconds_text

    record = result.record
    print("\n".join(result.report.lines))
    if result.decision is None:
        print("\n".join(f"left out: {sentence}" for sentence in record.left_out))
    for full in record.full_runs:
        price = "" if full.price_per_hour is None else f" ({full.price_per_hour:g} an hour, {record.made['prices']})"
        cost = "" if full.cost is None else f", cost {full.cost:,.2f}{price}"
        machines = full.machine if full.count == 1 else f"{full.count} x {full.machine}"
        fits = "" if full.fits else ", does not fit"
        print(
            f"the full run on {machines}: {seconds_text(3600 * full.hours)}, {bytes_text(full.total_bytes)}{fits}{cost}"
        )
    if result.decision is None:
        print(f"next: {record.next_command}")
    print(f"page: {result.folder / 'report.html'}   all measurements: {result.folder}")

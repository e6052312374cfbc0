"""`skipwise plan`: what an extension takes to train and to serve, before anything is spent."""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import JsonOption, OriginalOption, TrustOption, print_json, read_length
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.names import did_you_mean
from skipwise.window import parse_length

if TYPE_CHECKING:
    from skipwise.config import LoraTuning
    from skipwise.plan import Machine, Plan, Utilisation
    from skipwise.plan.measure import CalibratedPlanning
    from skipwise.report import Table
    from skipwise.window import Window

EPILOG = """Example: skipwise plan llama-3-8b --target 128k --machine h100 --count 8 --price 2.5

Example: skipwise plan ./my-model --target 32k --machine rtx-4090 --write-config run.yaml --out plan.html

Example: skipwise plan ./my-model --target 32k --machine cpu --calibrate
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(plan)


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a hub name, a .gguf file, or a built-in card: llama-7b, llama-2-7b, llama-3-8b, "
            "llama-3-70b, mistral-7b, qwen2.5-7b, gemma-3-27b, deepseek-v3, gpt-j-6b, baichuan2-7b, smollm2-135m.",
        ),
    ],
    target: Annotated[
        int, typer.Option("--target", parser=read_length, metavar="TOKENS", help="Window to extend to, such as 32k.")
    ],
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            parser=read_length,
            metavar="TOKENS",
            help="Training window.",
            show_default="the model's own, at most 2k",
        ),
    ] = None,
    original: OriginalOption = None,
    machine: Annotated[
        str,
        typer.Option(
            "--machine",
            metavar="NAME",
            help="v100-32, a100-40, a100-80, l4, l40s, rtx-4090, h100, h200, b200, mi300x, or cpu, this one.",
        ),
    ] = "a100-80",
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Accelerators.")] = 1,
    sharding: Annotated[
        str | None,
        typer.Option(
            "--sharding",
            metavar="NAME",
            help="How they train together: ddp, zero1, zero2, zero3 or fsdp.",
            show_default="ddp where it fits, else fsdp",
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=1, help="So many hold each window of full length together.")
    ] = 1,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = STEPS,
    global_batch: Annotated[int, typer.Option("--global-batch", min=1, help="Windows of a step.")] = GLOBAL_BATCH,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", min=1, help="Windows at a time on each.", show_default="as many as fit"),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of low-rank additions.")] = 64,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="Compute layers again in the backward pass.")
    ] = True,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0.0, metavar="MONEY", help="Of an hour of one accelerator, in any currency."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--length", metavar="TOKENS,...", help="Lengths to serve.", show_default="from the original to the target"
        ),
    ] = None,
    library_loss: Annotated[
        bool,
        typer.Option("--library-loss", help="A loss that makes all logits at once, as a library's own does."),
    ] = False,
    requests: Annotated[int, typer.Option("--requests", min=1, help="Requests at once.")] = 1,
    weight_bits: Annotated[int, typer.Option("--weight-bits", help="Of weights in serving: 16, 8 or 4.")] = 16,
    kv_bits: Annotated[int, typer.Option("--kv-bits", help="Of the cache in serving: 16, 8 or 4.")] = 16,
    shares: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            metavar="NAME=SHARE",
            help="What is reached of the machine: training, prefill (speed), decode (bandwidth), network, "
            "memory; may be repeated.",
            show_default="0.4, 0.5, 0.6, 0.7, 0.92",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Run three steps and two prefills of the real model here, and correct those shares."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the plan as a page.")] = None,
    write_config: Annotated[
        Path | None, typer.Option("--write-config", metavar="FILE", help="Write a run for skipwise extend --config.")
    ] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """What an extension takes in memory, time and money, to train and to serve; no weights are read."""
    from skipwise.plan.cards import MODEL_CARDS
    from skipwise.plan.machines import machine_of

    for path in (out, write_config):
        if path is not None:
            _check_writable(path)
    utilisation, place = _utilisation(shares or []), machine_of(machine)
    if model not in MODEL_CARDS:
        find_place(model)
    with loading(f"planning for {model}"):
        from skipwise.config import LoraTuning
        from skipwise.plan import Job, PlanConfig, check_plan
        from skipwise.plan import plan as make_plan
        from skipwise.plan.as_json import plan_json
        from skipwise.plan.pages import write_plan_page
        from skipwise.plan.shape import model_shape

    lora = LoraTuning(rank=rank)
    asked: dict[str, Any] = {
        "target": target,
        "window": window,
        "count": count,
        "sharding": sharding,
        "price": price,
        "job": Job(steps=steps, global_batch=global_batch, micro_batch=micro_batch),
        "requests": requests,
        "weight_bits": weight_bits,
        "kv_bits": kv_bits,
        "context": context,
    }
    at = None if lengths is None else [parse_length(part) for part in lengths.split(",")]
    measured = None
    if calibrate:
        # Before minutes of measuring.
        shape = model_shape(model, original=original, trust_remote_code=trust_remote_code)
        window_of_run = check_plan(PlanConfig(model, machine=place, **asked), shape).window
        measured = _calibrated(model, place, utilisation, window_of_run, lora, checkpointing, trust_remote_code)
        utilisation, place = measured.utilisation, measured.machine
    found = make_plan(
        model,
        **asked,
        original=original,
        machine=place,
        lora=lora,
        utilisation=utilisation,
        checkpointing=checkpointing,
        library_loss=library_loss,
        lengths=at,
        trust_remote_code=trust_remote_code,
    )
    try:
        if write_config is not None:
            _write_config(write_config, found.advice.config)
        if out is not None:
            write_plan_page(found, out)
    except OSError as error:
        raise ConfigError(f"{error.filename!r} cannot be written: {error.strerror}; give another name") from error
    if as_json:
        print_json({**plan_json(found), "calibration": None if measured is None else _measured_json(measured)})
        return
    _print(found, measured)
    for path in (write_config, out):
        if path is not None:
            print(f"written: {path}")


def _check_writable(path: Path) -> None:
    try:
        if not path.parent.is_dir():
            raise ConfigError(
                f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}; make it first"
            )
        if path.is_dir():
            raise ConfigError(f"{str(path)!r} cannot be written: it is a folder; give the name of a file")
    except OSError as error:  # as for a name that is too long
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}; give another name") from error


def _utilisation(shares: list[str]) -> "Utilisation":
    from skipwise.plan.machines import Utilisation

    given: dict[str, Any] = {}
    for share in shares:
        name, _, value = share.partition("=")
        if name not in Utilisation.__slots__:
            hint = did_you_mean(name, Utilisation.__slots__)
            raise ConfigError(
                f"--share is {share!r}; {hint}write NAME=SHARE with one of {', '.join(Utilisation.__slots__)}"
            )
        try:
            given[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"--share is {share!r}; give a number above 0, at most 1, as {name}=0.5") from error
    return Utilisation(**given)


def _calibrated(
    model: str,
    machine: "Machine",
    utilisation: "Utilisation",
    window: "Window",
    lora: "LoraTuning",
    checkpointing: bool,
    trust_remote_code: bool,
) -> "CalibratedPlanning":
    from skipwise.plan.cards import MODEL_CARDS
    from skipwise.plan.measure import calibrate_plan

    if model in MODEL_CARDS and not Path(model).exists():
        raise ConfigError(
            f"--calibrate runs the real model, and {model!r} is a card without weights; give its folder or .gguf file"
        )
    longest = min(window.original, 2048)
    return calibrate_plan(
        model,
        machine,
        utilisation,
        window_tokens=window.train,
        lengths=(longest // 2, longest),
        checkpointing=checkpointing,
        lora=lora,
        trust_remote_code=trust_remote_code,
        tell=lambda what: print(f"measuring here: {what}", file=sys.stderr, flush=True),
    )


def _write_config(path: Path, config: Any) -> None:
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    path.write_text(f"# Written by skipwise plan; put your documents in data.source.\n{text}", encoding="utf-8")


def _measured_json(measured: "CalibratedPlanning") -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "predicted_bytes": one.predicted_bytes,
            "measured_bytes": one.measured_bytes,
            "memory_error": one.memory_error,
            "predicted_seconds": one.predicted_seconds,
            "measured_seconds": one.measured_seconds,
            "time_error": one.time_error,
        }
        for one in measured.measured
    ]


def _print(found: "Plan", measured: "CalibratedPlanning | None") -> None:
    from rich.console import Console

    from skipwise.plan.pages import assumptions, longest_table, memory_table, serving_table, time_table

    console = Console()
    for words in found.advice.words:
        print("\n".join(textwrap.wrap(f"- {words}", console.width, subsequent_indent="  ", break_on_hyphens=False)))
    for table in (memory_table(found, detailed=False), time_table(found), serving_table(found), longest_table(found)):
        console.print()
        console.print(_drawn(table))
    if measured is not None:
        console.print()
        _print_measured(measured)
    console.print("\nsettings of engines")
    for name, command in found.advice.engines.items():
        console.print(f"  {name}\n    {command}", soft_wrap=True, highlight=False)
    console.print("\nassumed")
    for name, value in assumptions(found).items():
        console.print(f"  {name}: {value}", soft_wrap=True, highlight=False)


def _print_measured(measured: "CalibratedPlanning") -> None:
    from skipwise.report.quantities import bytes_text, seconds_text

    print("measured here; predictions of time are by the shares assumed before")
    for one in measured.measured:
        print(
            f"  {one.name}: memory {bytes_text(one.measured_bytes)}, predicted {bytes_text(one.predicted_bytes)} "
            f"({one.memory_error:+.1%}); time {seconds_text(one.measured_seconds)}, predicted "
            f"{seconds_text(one.predicted_seconds)} ({one.time_error:+.0%})"
        )


def _drawn(table: "Table") -> Any:
    import rich.table
    from rich.text import Text

    drawn = rich.table.Table(title=Text(table.title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(table.header):
        drawn.add_column(Text(heading), justify="right" if place else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn

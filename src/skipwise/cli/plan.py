"""`skipwise plan`: what an extension takes to train and to serve, before anything is spent."""

import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import check_writable, option, print_json, print_table
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.names import did_you_mean

if TYPE_CHECKING:
    from skipwise.plan import Machine, Plan, Utilisation
    from skipwise.plan.measure import CalibratedPlanning


CardArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a hub name, a .gguf file, embedded, or a built-in card: llama-7b, llama-2-7b, llama-3-8b, "
        "llama-3-70b, mistral-7b, qwen2.5-7b, gemma-3-27b, deepseek-v3, gpt-j-6b, baichuan2-7b, smollm2-135m.",
    ),
]
MachineOption = Annotated[
    str,
    option(
        "--machine NAME",
        "v100-32, a100-40, a100-80, l4, l40s, rtx-4090, h100, h200, b200, mi300x, or cpu, this one.",
    ),
]
ShardingOption = Annotated[
    str | None,
    option("--sharding NAME", "ddp, zero1, zero2, zero3 or fsdp.", shown="ddp if it fits, else fsdp"),
]
SharesOption = Annotated[
    list[str] | None,
    option(
        "--share NAME=SHARE",
        "Share of the machine's peak that is reached: training, prefill (speed), decode (bandwidth), network, memory; "
        "repeatable.",
        shown="0.4, 0.5, 0.6, 0.7, 0.92",
    ),
]


def plan(
    model: CardArgument,
    target: Annotated[int, option("--target TOKENS", "Window to extend to, such as 32k.")],
    window: Annotated[int | None, option("--window TOKENS", "Training window.", shown="MODEL's, at most 2k")] = None,
    original: options.Original = None,
    machine: MachineOption = "a100-80",
    count: Annotated[int, option("--count N", "Accelerators.", min=1)] = 1,
    sharding: ShardingOption = None,
    context: Annotated[int, option("--context N", "Context parallelism: accelerators per window.", min=1)] = 1,
    steps: Annotated[int, option("--steps", "Optimizer steps.", min=1)] = STEPS,
    global_batch: Annotated[int, option("--global-batch", "Windows per step.", min=1)] = GLOBAL_BATCH,
    micro_batch: Annotated[
        int | None, option("--micro-batch", "Windows at a time on each.", shown="as many as fit", min=1)
    ] = None,
    rank: Annotated[int, option("--rank", "Rank of LoRA.", min=1)] = 64,
    checkpointing: Annotated[bool, option("--checkpointing/--no-checkpointing", "Gradient checkpointing.")] = True,
    price: Annotated[float | None, option("--price MONEY", "Price of one accelerator-hour.", min=0.0)] = None,
    lengths: Annotated[Any, option("--length TOKENS,...", "Lengths to serve.", shown="original to target")] = None,
    library_loss: Annotated[bool, option("--library-loss", "A loss that holds all logits at once.")] = False,
    requests: Annotated[int, option("--requests", "Concurrent requests.", min=1)] = 1,
    weight_bits: Annotated[int, option("--weight-bits", "Bits of weights in serving: 16, 8 or 4.")] = 16,
    kv_bits: Annotated[int, option("--kv-bits", "Bits of the KV cache in serving: 16, 8 or 4.")] = 16,
    shares: SharesOption = None,
    calibrate: Annotated[bool, option("--calibrate", "Measure a few real steps here to correct the shares.")] = False,
    out: Annotated[Path | None, option("--out FILE", "Write the plan as a page.")] = None,
    write_config: Annotated[Path | None, option("--write-config FILE", "Write a run for extend --config.")] = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """What an extension takes in memory, time and money, to train and to serve; no weights are read.

    Example: skipwise plan llama-3-8b --target 128k --machine h100 --count 8 --price 2.5

    Example: skipwise plan ./my-model --target 32k --machine rtx-4090 --write-config run.yaml --out plan.html

    Example: skipwise plan ./my-model --target 32k --machine cpu --calibrate
    """
    from skipwise.plan.machines import machine_of

    check_writable("--out", out)
    check_writable("--write-config", write_config)
    utilisation, place = _utilisation(shares or []), machine_of(machine)
    _check_model(model, calibrate)
    with loading(f"planning for {model}"):
        from skipwise.config import LoraTuning
        from skipwise.plan import Job
        from skipwise.plan import plan as make_plan

    job = Job(steps=steps, global_batch=global_batch, micro_batch=micro_batch)
    asked: dict[str, Any] = {"target": target, "window": window, "price": price, "job": job}
    asked |= {"count": count, "sharding": sharding, "context": context}
    asked |= {"requests": requests, "weight_bits": weight_bits, "kv_bits": kv_bits}
    how = {"lora": LoraTuning(rank=rank), "checkpointing": checkpointing, "trust_remote_code": trust_remote_code}
    measured = None
    if calibrate:
        measured = _calibrated(model, place, utilisation, original, asked, how)
        utilisation, place = measured.utilisation, measured.machine
    asked |= {"machine": place, "utilisation": utilisation, "library_loss": library_loss}
    found = make_plan(model, **asked, **how, original=original, lengths=lengths)
    _report(found, measured, out, write_config, as_json)


def _check_model(model: str, calibrate: bool) -> None:
    from skipwise.plan.cards import MODEL_CARDS

    if model not in MODEL_CARDS:
        find_place(model)
    elif calibrate and not Path(model).exists():
        raise ConfigError(
            f"--calibrate runs the real model, and {model!r} is a card without weights; give its folder or .gguf file"
        )


def _report(
    found: "Plan", measured: "CalibratedPlanning | None", page: Path | None, config: Path | None, as_json: bool
) -> None:
    """Writes the files that were asked for, and prints the plan."""
    from skipwise.plan.as_json import plan_json
    from skipwise.plan.pages import write_plan_page

    try:
        if config is not None:
            _write_config(config, found.advice.config)
        if page is not None:
            write_plan_page(found, page)
    except OSError as error:
        raise ConfigError(
            f"{error.filename!r} cannot be written: {error.strerror}; give another name", page="cannot-write"
        ) from error
    if as_json:
        errors = ("memory_error", "time_error")
        steps = [] if measured is None else measured.measured
        told = [{**asdict(one), **{error: getattr(one, error) for error in errors}} for one in steps]
        print_json({**plan_json(found), "calibration": None if measured is None else told})
        return
    _print(found, measured)
    for path in (config, page):
        if path is not None:
            print(f"written: {path}")


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
    original: int | None,
    asked: dict[str, Any],
    how: dict[str, Any],
) -> "CalibratedPlanning":
    """Measures this machine; first checks the plan, since measuring takes minutes."""
    from skipwise.plan import PlanConfig, check_plan
    from skipwise.plan.measure import calibrate_plan
    from skipwise.plan.shape import model_shape

    shape = model_shape(model, original=original, trust_remote_code=how["trust_remote_code"])
    window = check_plan(PlanConfig(model, machine=machine, **asked), shape).window
    longest = min(window.original, 2048)
    return calibrate_plan(
        model,
        machine,
        utilisation,
        window_tokens=window.train,
        lengths=(longest // 2, longest),
        tell=lambda what: print(f"measuring here: {what}", file=sys.stderr, flush=True),
        **how,
    )


def _write_config(path: Path, config: Any) -> None:
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    path.write_text(f"# Written by skipwise plan; put your documents in data.source.\n{text}", encoding="utf-8")


def _print(found: "Plan", measured: "CalibratedPlanning | None") -> None:
    from rich.console import Console

    from skipwise.plan.pages import assumptions, longest_table, memory_table, serving_table, time_table

    console = Console()
    for words in found.advice.words:
        print("\n".join(textwrap.wrap(f"- {words}", console.width, subsequent_indent="  ", break_on_hyphens=False)))
    for table in (memory_table(found, detailed=False), time_table(found), serving_table(found), longest_table(found)):
        print()
        print_table(table.header, table.rows, title=table.title, numbers=True)
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

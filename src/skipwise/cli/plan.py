"""`skipwise plan`: what an extension takes to train and to serve, before anything is spent."""

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import OUTPUT, check_writable, option, print_json, print_table
from skipwise.config.defaults import GLOBAL_BATCH, STEPS
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.names import did_you_mean

if TYPE_CHECKING:
    from skipwise.plan import Machine, Plan, Utilisation
    from skipwise.plan.measure import CalibratedPlanning


TRAINING, SERVING, MEASURED = "Training", "Serving", "Assumptions"

CardArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hugging Face name, a .gguf file, 'embedded', or a model known by name: llama-7b, "
        "llama-2-7b, llama-3-8b, llama-3-70b, mistral-7b, qwen2.5-7b, gemma-3-27b, deepseek-v3, gpt-j-6b, "
        "baichuan2-7b, smollm2-135m.",
    ),
]
MachineOption = Annotated[
    str,
    option(
        "--machine NAME",
        "v100-32, a100-40, a100-80, l4, l40s, rtx-4090, h100, h200, b200, mi300x, or cpu (this machine).",
    ),
]
WindowOption = Annotated[
    int | None,
    option("--window TOKENS", "Length of a training window.", shown="the original window, at most 2k", group=TRAINING),
]
OriginalOption = Annotated[
    int | None,
    option("--original TOKENS", "Context window of the base model.", shown="as its config says", group=TRAINING),
]
ShardingOption = Annotated[
    str | None,
    option(
        "--sharding NAME",
        "Data parallelism: ddp, zero1, zero2, zero3 or fsdp.",
        shown="ddp if it fits, else fsdp",
        group=TRAINING,
    ),
]
MicroBatchOption = Annotated[
    int | None,
    option("--micro-batch N", "Micro-batch size: windows per GPU at a time.", shown="what fits", min=1, group=TRAINING),
]
LossOption = Annotated[
    bool,
    option("--library-loss", "Assume a loss that keeps the logits of whole windows in memory at once.", group=TRAINING),
]
LengthsOption = Annotated[
    Any,
    option(
        "--length TOKENS,...", "Lengths of requests.", shown="from the original window to the target", group=SERVING
    ),
]
SharesOption = Annotated[
    list[str] | None,
    option(
        "--share NAME=SHARE",
        "Assumed share of the machine's peak speed (training, prefill), memory bandwidth (decode), network or "
        "memory. Repeatable.",
        shown="training=0.4, prefill=0.5, decode=0.6, network=0.7, memory=0.92",
        group=MEASURED,
    ),
]
CalibrateOption = Annotated[
    bool,
    option(
        "--calibrate",
        "Run a few real steps on this machine, and correct the shares by them. Takes minutes.",
        group=MEASURED,
    ),
]


def plan(
    model: CardArgument,
    target: Annotated[int, option("--target TOKENS", "Context window to extend to, such as 32k.")],
    machine: MachineOption = "a100-80",
    count: Annotated[int, option("--count N", "Number of GPUs.", min=1)] = 1,
    price: Annotated[float | None, option("--price MONEY", "Price per GPU-hour.", min=0.0)] = None,
    window: WindowOption = None,
    original: OriginalOption = None,
    steps: Annotated[int, option("--steps N", "Optimizer steps.", min=1, group=TRAINING)] = STEPS,
    global_batch: Annotated[
        int, option("--global-batch N", "Global batch size: windows per step.", min=1, group=TRAINING)
    ] = GLOBAL_BATCH,
    micro_batch: MicroBatchOption = None,
    rank: Annotated[int, option("--rank N", "LoRA rank.", min=1, group=TRAINING)] = 64,
    checkpointing: Annotated[
        bool, option("--checkpointing/--no-checkpointing", "Gradient checkpointing.", group=TRAINING)
    ] = True,
    sharding: ShardingOption = None,
    context: Annotated[
        int, option("--context N", "Context-parallel size: GPUs that share a window.", min=1, group=TRAINING)
    ] = 1,
    library_loss: LossOption = False,
    lengths: LengthsOption = None,
    requests: Annotated[int, option("--requests N", "Concurrent requests.", min=1, group=SERVING)] = 1,
    weight_bits: Annotated[int, option("--weight-bits N", "Bits per weight: 16, 8 or 4.", group=SERVING)] = 16,
    kv_bits: Annotated[int, option("--kv-bits N", "Bits per KV-cache value: 16, 8 or 4.", group=SERVING)] = 16,
    shares: SharesOption = None,
    calibrate: CalibrateOption = False,
    trust_remote_code: options.Trust = False,
    out: Annotated[Path | None, option("--out FILE", "Also write the plan as an HTML page.", group=OUTPUT)] = None,
    write_config: Annotated[
        Path | None, option("--write-config FILE", "Also write a YAML file for extend --config.", group=OUTPUT)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Estimate memory, time and cost of an extension.

    Covers training on short windows with skips, training at full length, and serving. No weights are read, except with
    --calibrate.

    Example: skipwise plan llama-3-8b --target 128k --machine h100 --count 8 --price 2.5

    Example: skipwise plan embedded --target 4k --machine cpu --write-config run.yaml --out plan.html
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
    from skipwise.bars import Bar
    from skipwise.plan import PlanConfig, check_plan
    from skipwise.plan.measure import calibrate_plan, check_machine
    from skipwise.plan.shape import model_shape

    check_machine(machine)
    shape = model_shape(model, original=original, trust_remote_code=how["trust_remote_code"])
    window = check_plan(PlanConfig(model, machine=machine, **asked), shape).window
    longest = min(window.original, 2048)
    lengths = (longest // 2, longest)
    form = "{desc}: {n_fmt} of {total_fmt} done, {elapsed} so far, {remaining} left"
    with Bar(total=1 + len(lengths), desc="measuring this machine", bar_format=form, leave=False) as bar:

        def tell(what: str) -> None:
            bar.update(0 if bar.desc.startswith("measuring") else 1)
            bar.set_description_str(what)

        return calibrate_plan(
            model, machine, utilisation, window_tokens=window.train, lengths=lengths, tell=tell, **how
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
        print()
        _print_measured(measured)
    print("\ncommands to serve it")
    for name, command in found.advice.engines.items():
        print(f"  {name}\n    {command}")
    print("\nassumptions")
    for name, value in assumptions(found).items():
        print("\n".join(textwrap.wrap(f"  {name}: {value}", console.width, subsequent_indent="    ")))


def _print_measured(measured: "CalibratedPlanning") -> None:
    from skipwise.report.quantities import bytes_text, seconds_text

    print("measured on this machine (predictions of time use the shares assumed before)")
    for one in measured.measured:
        print(
            f"  {one.name}: memory {bytes_text(one.measured_bytes)}, predicted {bytes_text(one.predicted_bytes)} "
            f"({one.memory_error:+.1%}); time {seconds_text(one.measured_seconds)}, predicted "
            f"{seconds_text(one.predicted_seconds)} ({one.time_error:+.0%})"
        )

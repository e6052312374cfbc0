"""`skipwise extend`: trains a model to its longer window, from a YAML file, flags, or both."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import (
    AttentionOption,
    JsonOption,
    OriginalOption,
    SkipUnreadableOption,
    TrustOption,
    print_json,
    read_length,
)
from skipwise.cli.settings import assigned, given
from skipwise.config.defaults import GLOBAL_BATCH, LEARNING_RATE, STEPS
from skipwise.config.recipes import RECIPES
from skipwise.errors import CheckpointError, ConfigError
from skipwise.launch import LAUNCHED

if TYPE_CHECKING:
    from skipwise.config import RunConfig
    from skipwise.train import ExtendResult

INTERRUPTED = 130

EPILOG = """Example: skipwise extend ./my-model --target 32k --data docs/ --tuning lora --set training.bf16=true

Example: skipwise extend --config run.yaml --resume
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(extend)


def extend(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A folder, a hub name or a .gguf file.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The run as YAML; flags lie over it.")] = None,
    target: Annotated[
        int | None, typer.Option(parser=read_length, metavar="TOKENS", help="Window to extend to, such as 32k.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Settings that belong together: {', '.join(RECIPES)}, or auto.",
            show_default="auto: chosen by model and documents, and said",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            parser=read_length,
            metavar="TOKENS",
            help="Training window.",
            show_default="the model's own, at most 2k",
        ),
    ] = None,
    original: OriginalOption = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the result goes.", show_default="runs/<model>-<target>")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="File, folder, pattern, hub data set or stdlib; may be repeated."),
    ] = None,
    skip_unreadable: SkipUnreadableOption = False,
    interpolation: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="none, linear, ntk, dynamic, yarn, llama3, longrope.",
            show_default="the model's own, else yarn",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="pose, randpos, cream, sentences, plain, full.", show_default="pose"),
    ] = None,
    skips: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Of pose: sequential, simplex, flat.", show_default="flat; without a recipe sequential"
        ),
    ] = None,
    chunks: Annotated[int | None, typer.Option(help="Of pose: chunks of a window.", show_default="2")] = None,
    tuning: Annotated[
        str | None, typer.Option(metavar="KIND", help="What is trained: full, lora or qlora.", show_default="full")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=str(STEPS))] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=str(LEARNING_RATE))
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help=f"Windows at a time on each device; {GLOBAL_BATCH} make a step.", show_default="1"),
    ] = None,
    attention: AttentionOption = None,
    seed: Annotated[int | None, typer.Option(help="Source of every draw.", show_default="0")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="After training, choose an attention factor for the target.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the YAML file, such as data.join=true."),
    ] = None,
    trust_remote_code: TrustOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    skip_bad_items: Annotated[
        bool, typer.Option("--skip-bad-items", help="With --resume: without the items of steps that went wrong.")
    ] = False,
    launch: Annotated[
        str | None,
        typer.Option("--launch", metavar="ENGINE", help="Train in several processes: ddp, fsdp2, zero2 or zero3."),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", metavar="N", help="Processes on this machine.", show_default="its accelerators"),
    ] = None,
    nnodes: Annotated[
        int | None, typer.Option("--nnodes", metavar="N", help="Machines; give the command on each.", show_default="1")
    ] = None,
    rdzv: Annotated[
        str | None, typer.Option("--rdzv", metavar="HOST[:PORT]", help="One of several machines, where all meet.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option("--max-restarts", metavar="N", help="After a failure, go on so often.", show_default="0"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Extend a model's context window by training on short windows with positions that skip ahead."""
    from skipwise.config import RunConfig, merge_settings, read_settings
    from skipwise.data.documents import require_there
    from skipwise.model.place import find_place
    from skipwise.train.folder import RunFolder, log_file

    flags: dict[str, Any] = {
        "model": model,
        "target": target,
        "recipe": recipe,
        "window": window,
        "original": original,
        "output": output,
        "interpolation": interpolation and {"kind": interpolation},
        "sampler": given({"kind": sampler, "skips": skips, "chunks": chunks}),
        "data": given(
            {
                "source": data if data is None or len(data) > 1 else data[0],
                "skip_unreadable": skip_unreadable or None,
            }
        ),
        "tuning": tuning and {"kind": tuning},
        "training": given({"max_steps": steps, "learning_rate": learning_rate, "per_device_train_batch_size": batch}),
        "attention": attention,
        "seed": seed,
        "calibrate": calibrate or None,
        "trust_remote_code": trust_remote_code or None,
    }
    tree = merge_settings(read_settings(config) if config else {}, given(flags))
    for assignment in settings or []:
        tree = merge_settings(tree, assigned(assignment))
    run = RunConfig.from_mapping(tree)

    if launch is not None:
        several = given({"machines": nnodes, "rendezvous": rdzv, "max_restarts": max_restarts})
        passed_on = {"--resume": resume, "--skip-bad-items": skip_bad_items, "--json": as_json}
        _launch(run, launch, nproc, several, [flag for flag, on in passed_on.items() if on])
    for flag, value in (("--nproc", nproc), ("--nnodes", nnodes), ("--rdzv", rdzv), ("--max-restarts", max_restarts)):
        if value is not None:
            raise ConfigError(f"{flag} is for several processes; say by --launch which engine trains in them")

    find_place(run.model)
    require_there(run.data.source)
    RunFolder(run.output_folder).require_ready(resume=resume)
    with loading(f"reading the model {run.model}"):
        from skipwise.train import extend as train

    own_file = log_file(run.output_folder)
    if own_file is None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    else:
        _log_to(own_file)
    logging.getLogger("skipwise").setLevel(logging.WARNING if as_json and own_file is None else logging.INFO)
    result = train(run, resume=resume, skip_bad_items=skip_bad_items)
    if own_file is None:
        _show(result, run.target, as_json)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


def _launch(
    run: "RunConfig", engine: str, processes: int | None, how: dict[str, Any], flags: Sequence[str]
) -> NoReturn:
    """Has torchrun's agent start the processes of the run, and ends with their exit code.

    Raises:
        SkipwiseError: what is wrong is known before there are processes, each of which would say it.
    """
    from skipwise.train.folder import LAUNCH, RunFolder

    resume = "--resume" in flags
    if how.get("machines", 1) == 1:
        # With several machines, another one may have begun.
        RunFolder(run.output_folder).require_ready(resume=resume)

    import importlib.util

    import torch
    import yaml

    from skipwise.launch import ENGINES, Launch
    from skipwise.records.runs import SETTINGS_FILE, Run
    from skipwise.train import check_run

    on_cpu = bool(run.training.get("use_cpu")) or not torch.accelerator.is_available()
    here = 0 if on_cpu else torch.accelerator.device_count()
    made = Launch(engine=engine, processes=processes if processes is not None else max(1, here), **how)
    if not on_cpu and made.processes > here:
        raise ConfigError(
            f"--nproc is {made.processes}, and this machine has {here} accelerators; give at most so many"
        )
    if on_cpu and engine == "fsdp2":
        raise ConfigError(
            "--launch fsdp2 splits the model over accelerators, and there is none to use here: "
            "give --launch ddp, which trains in several processes on CPUs"
        )
    if "deepspeed" in ENGINES[engine] and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"--launch {engine} needs DeepSpeed: pip install 'skipwise[deepspeed]', or --launch fsdp2")
    begun = Run.open(run.output_folder).config() if resume else None
    check_run(run, processes=made.processes * made.machines, begun=begun)
    folder = run.output_folder / LAUNCH
    try:
        training = made.write(run.training, folder)
        settings = folder / SETTINGS_FILE
        # What the run leaves open stays open: every process resolves it alike.
        written = run.model_copy(update={"training": training}).given_settings()
        settings.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be written: {error.strerror}") from error
    command = made.command(["extend", "--config", str(settings), *flags])
    print(f"starting: {shlex.join(command)}", file=sys.stderr, flush=True)
    raise typer.Exit(_agent(command, made.environment()))


def _agent(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs torchrun in this process; the exit code of the first process that failed, whose own words are enough."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ.update(environment)
    try:
        main(list(command[3:]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # As a shell has it for one that a signal has ended.
        return code if code > 0 else 128 - code
    except SignalException:
        return INTERRUPTED
    return 0


def _show(result: "ExtendResult", target: int, as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(result.folder), "finished": result.finished, "steps": result.steps, **result.record})
    elif result.finished:
        resumed = result.record["resumed_at_step"]
        since = "" if resumed is None else f" since step {resumed}"
        print(
            f"extended to {target} tokens in {result.record['seconds']:.0f} s{since}, "
            f"{result.record['peak_bytes'] / 2**30:.1f} GiB: {result.folder}\n"
            f"try it: {shlex.join(['skipwise', 'generate', str(result.folder), '--prompt', 'Once'])}"
        )
    if not result.finished:
        again = shlex.join(["skipwise", "extend", "--config", str(result.folder / "run.yaml"), "--resume"])
        if LAUNCHED in os.environ:
            again += f" {os.environ[LAUNCHED]}"
        print(f"stopped after step {result.steps}, saved; go on with: {again}", file=sys.stderr)


def _log_to(file: Path) -> None:
    """Of several processes all but the first write into files of their own."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=file, level=logging.WARNING, format="%(asctime)s %(message)s")
    except OSError as error:
        raise CheckpointError(f"{str(file)!r} cannot be written: {error.strerror}") from error

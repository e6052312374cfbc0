"""`skipwise extend`: trains a model to its longer window, from a YAML file, flags, or both."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import INTERRUPTED, data_setting, given, option, print_json, settings_over
from skipwise.config.recipes import RECIPES
from skipwise.errors import CheckpointError, ConfigError
from skipwise.launch import LAUNCHED

if TYPE_CHECKING:
    from skipwise.config import RunConfig
    from skipwise.train import ExtendResult


PROCESSES = "Several processes or machines"

RecipeOption = Annotated[
    str | None,
    option(
        "--recipe NAME",
        f"Named group of settings: {', '.join(RECIPES)}, or auto, which chooses by model and documents.",
        shown="auto",
    ),
]
OutputOption = Annotated[
    str | None, option("--output FOLDER", "Folder of the run and its result.", shown="runs/<model>-<target>")
]


def extend(
    model: options.RunModel = None,
    target: options.Target = None,
    data: options.Data = None,
    output: OutputOption = None,
    tuning: Annotated[
        str | None, option("--tuning KIND", "What is trained: full, lora or qlora.", shown="full")
    ] = None,
    recipe: RecipeOption = None,
    config: options.RunFile = None,
    settings: options.Setting = None,
    resume: Annotated[bool, option("--resume", "Continue from the run's last checkpoint.")] = False,
    skip_bad_items: Annotated[
        bool, option("--skip-bad-items", "With --resume: leave out the windows of steps that failed.")
    ] = False,
    launch: Annotated[
        str | None, option("--launch ENGINE", "Training engine: ddp, fsdp2, zero2 or zero3.", group=PROCESSES)
    ] = None,
    nproc: Annotated[
        int | None,
        option("--nproc N", "Processes on each machine.", shown="one per GPU", group=PROCESSES),
    ] = None,
    nnodes: Annotated[
        int | None,
        option("--nnodes N", "Number of machines. Start the same command on each.", shown="1", group=PROCESSES),
    ] = None,
    rdzv: Annotated[
        str | None,
        option("--rdzv HOST[:PORT]", "Address of one machine, which all can reach (rendezvous).", group=PROCESSES),
    ] = None,
    max_restarts: Annotated[
        int | None, option("--max-restarts N", "Restarts after a process fails.", shown="0", group=PROCESSES)
    ] = None,
    trust_remote_code: options.Trust = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Extend a model's context window.

    Trains on short windows whose positions skip ahead, so that they cover the target at the cost of short windows.

    Example: skipwise extend embedded --target 1k --set training.max_steps=20

    Example: skipwise extend ./my-model --target 32k --data docs/ --tuning lora

    \b
    Useful with --set:
      window=2k                    length of a training window
      original=32k                 context window of the base model
      interpolation=yarn           none, linear, ntk, dynamic, yarn, llama3 or
                                   longrope
      sampler=pose                 pose, randpos, cream, sentences, endprompt,
                                   plain, full or FILE.py:CLASS
      sampler.skips=flat           sequential, simplex or flat
      sampler.chunks=3             chunks per window
      training.max_steps=1000      optimizer steps
      training.learning_rate=2e-5  any other argument of transformers' Trainer
      data.join=true               join documents that are shorter than a window
      data.skip_unreadable=true    skip what cannot be read
      calibrate=true               choose the attention factor after training
      seed=1                       random seed
    """
    from skipwise.config import RunConfig, read_settings

    flags = {
        "model": model,
        "target": target,
        "recipe": recipe,
        "data": data_setting(data),
        "tuning": tuning,
        "output": output,
        "trust_remote_code": trust_remote_code or None,
    }
    run = RunConfig.from_mapping(settings_over(read_settings(config) if config else {}, flags, settings))
    if launch is not None:
        several = given({"machines": nnodes, "rendezvous": rdzv, "max_restarts": max_restarts})
        passed_on = {"--resume": resume, "--skip-bad-items": skip_bad_items, "--verbose": verbose, "--json": as_json}
        _launch(run, launch, nproc, several, [flag for flag, on in passed_on.items() if on])
    for flag, value in (("--nproc", nproc), ("--nnodes", nnodes), ("--rdzv", rdzv), ("--max-restarts", max_restarts)):
        if value is not None:
            raise ConfigError(f"{flag} is for several processes; name their training engine with --launch")
    _train(run, resume=resume, skip_bad_items=skip_bad_items, verbose=verbose, as_json=as_json)


def _train(run: "RunConfig", *, resume: bool, skip_bad_items: bool, verbose: bool, as_json: bool) -> None:
    from skipwise.data.documents import require_there
    from skipwise.model.place import find_place
    from skipwise.train.folder import RunFolder, log_file

    find_place(run.model)
    require_there(run.data.source)
    RunFolder(run.output_folder).require_ready(resume=resume)
    with loading(f"reading the model {run.model}"):
        from skipwise.train import extend as train

    own_file = log_file(run.output_folder)
    if own_file is not None:
        _log_to(own_file)
    told = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("skipwise").setLevel(logging.WARNING if as_json and own_file is None else told)
    result = train(run, resume=resume, skip_bad_items=skip_bad_items)
    if own_file is None:
        _show(result, run.target, as_json)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


def _launch(
    run: "RunConfig", engine: str, processes: int | None, how: dict[str, Any], flags: Sequence[str]
) -> NoReturn:
    """Has torchrun's agent start the processes of the run, and exits with their exit code.

    Raises:
        SkipwiseError: something is wrong that can be known before there are processes, each of which would report it.
    """
    from skipwise.train.folder import LAUNCH, RunFolder

    resume = "--resume" in flags
    if how.get("machines", 1) == 1:
        # With several machines, another one may have begun.
        RunFolder(run.output_folder).require_ready(resume=resume)

    import torch
    import yaml

    from skipwise.config import RunConfig
    from skipwise.launch import Launch
    from skipwise.records.runs import SETTINGS_FILE, Run
    from skipwise.train import check_run

    on_cpu = bool(run.training.get("use_cpu")) or not torch.accelerator.is_available()
    here = 0 if on_cpu else torch.accelerator.device_count()
    made = Launch(engine=engine, processes=processes if processes is not None else max(1, here), **how)
    _check_engine(made, None if on_cpu else here)
    begun = Run.open(run.output_folder).config() if resume else None
    check_run(run, processes=made.processes * made.machines, begun=begun)
    folder = run.output_folder / LAUNCH
    try:
        # What the run leaves open stays open: every process resolves it alike.
        written = made.write(run.given_settings(), folder)
        RunConfig.from_mapping(written)  # The engine may not go with the rest; else each process would say so.
        settings = folder / SETTINGS_FILE
        settings.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be written: {error.strerror}", page="cannot-write") from error
    command = made.command(["extend", "--config", str(settings), *flags])
    print(f"starting: {shlex.join(command)}", file=sys.stderr, flush=True)
    raise typer.Exit(_agent(command, made.environment()))


def _check_engine(launch: Any, accelerators: int | None) -> None:
    """Refuses an engine that cannot train here; `accelerators` is None for a run on CPUs."""
    import importlib.util

    from skipwise.launch import ENGINES

    if accelerators is not None and launch.processes > accelerators:
        raise ConfigError(
            f"--nproc is {launch.processes}, and this machine has {accelerators} GPUs; give at most {accelerators}",
            page="parallel-run",
        )
    if ENGINES[launch.engine] is not None and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"--launch {launch.engine} needs DeepSpeed: pip install 'skipwise[deepspeed]', or --launch fsdp2",
            page="missing-extra",
        )


def _agent(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs torchrun in this process; returns the exit code of the first process that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ.update(environment)
    try:
        main(list(command[3:]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A negative code is a signal, which a shell reports as 128 + signal.
        return code if code > 0 else 128 - code
    except SignalException:
        return INTERRUPTED
    return 0


def _show(result: "ExtendResult", target: int, as_json: bool) -> None:
    from skipwise.report.quantities import bytes_text, seconds_text

    if as_json:
        print_json({"folder": str(result.folder), "finished": result.finished, "steps": result.steps, **result.record})
    elif result.finished:
        resumed = result.record["resumed_at_step"]
        since = "" if resumed is None else f" since step {resumed}"
        print(
            f"extended to {target} tokens in {seconds_text(result.record['seconds'])}{since}, peak memory "
            f"{bytes_text(result.record['peak_bytes'])}: {result.folder}\n"
            f"try it: {shlex.join(['skipwise', 'generate', str(result.folder)])} --prompt-file FILE --ask QUESTION"
        )
    if not result.finished:
        again = shlex.join(["skipwise", "extend", "--config", str(result.folder / "run.yaml"), "--resume"])
        if LAUNCHED in os.environ:
            again += f" {os.environ[LAUNCHED]}"
        where = f"after step {result.steps}, saved" if result.steps else "before the first step"
        print(f"stopped {where}. Continue with: {again}", file=sys.stderr)


def _log_to(file: Path) -> None:
    """Logs into a file; of several processes all but the first do."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=file, level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
    except OSError as error:
        raise CheckpointError(f"{str(file)!r} cannot be written: {error.strerror}", page="cannot-write") from error

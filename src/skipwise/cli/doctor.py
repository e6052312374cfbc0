"""`skipwise doctor`: proves, before any training, that skip-wise training works on this model and this machine.

Without a target it looks at the files of a checkpoint instead, and mends them in a copy.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import AttentionOption, JsonOption, OriginalOption, TrustOption, print_json, read_length
from skipwise.cli.settings import given
from skipwise.errors import ConfigError
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.doctor import Verdict

EPILOG = """Example: skipwise doctor ./my-model --target 32k --interpolation yarn

Example: skipwise doctor --config run.yaml

Example: skipwise doctor ./someone-elses-128k --base ./its-base --fix --out mended
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(doctor)


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A folder, a hub name, a .gguf file, or 'embedded'.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A run of extend as YAML, to be probed; flags lie over it.")
    ] = None,
    target: Annotated[
        int | None,
        typer.Option(parser=read_length, metavar="TOKENS", help="Window the model is to handle, such as 32k."),
    ] = None,
    train: Annotated[
        int | None,
        typer.Option(
            "--train",
            "--window",
            parser=read_length,
            metavar="TOKENS",
            help="Length of a training example.",
            show_default="the model's own window, at most 2k",
        ),
    ] = None,
    original: OriginalOption = None,
    interpolation: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How RoPE is stretched: none, linear, ntk, dynamic, yarn, llama3, longrope.",
            show_default="the model's own, else yarn",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the parameters: float32, bfloat16, float16, or auto: as the checkpoint says.",
            show_default="float32",
        ),
    ] = None,
    attention: AttentionOption = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Probe with gradient checkpointing or without.",
            show_default="checkpointing",
        ),
    ] = None,
    dilution: Annotated[
        bool | None,
        typer.Option(
            "--dilution/--no-dilution",
            help="Probe the mask of diluted attention too, as dilution: true trains.",
            show_default="as the recipe says",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random tokens.", show_default="0")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="What a checkpoint was made of: says its base and window. No --target then."
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a copy of the checkpoint with what is wrong in its files mended.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Of the mended copy.", show_default="MODEL-mended")
    ] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe what extend would train, with this model, attention and version; exit 1 if a probe fails.

    Given a checkpoint folder and no --target, look for faults in its files: a lost RoPE base, lengths that are no whole
    numbers, a wrong original window, a scaling applied twice, an attention factor out of step, a tokenizer's other
    limit.
    """
    of_a_run = (target, config, train, original, interpolation, dtype, attention, checkpointing, dilution, seed)
    if model is not None and all(value is None for value in of_a_run):
        _check_up(model, base, fix, out, trust_remote_code, as_json)
        return
    if fix or out is not None or base is not None:
        raise ConfigError(
            "--base, --fix and --out are for the files of a checkpoint folder, looked at without --target, --config "
            "and other settings of a run"
        )
    from skipwise.config import RunConfig, merge_settings, read_settings
    from skipwise.config.recipes import resolve

    flags: dict[str, Any] = {
        "model": model,
        "target": target,
        "window": train,
        "original": original,
        "interpolation": interpolation and {"kind": interpolation},
        "dtype": dtype,
        "attention": attention,
        "training": given({"gradient_checkpointing": checkpointing}),
        "dilution": dilution,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    given_run = RunConfig.from_mapping(merge_settings(read_settings(config) if config else {}, given(flags)))

    find_place(given_run.model)
    with loading(f"probing the model {given_run.model}"):
        from accelerate import PartialState

        from skipwise.doctor import Verdict
        from skipwise.doctor import doctor as probe
        from skipwise.model import check_read_as_stored, check_trainable, load_model, read_config
        from skipwise.train.arguments import CHECKPOINTING, mixed_precision, training_arguments, training_settings
        from skipwise.train.checks import model_facts
        from skipwise.train.preparation import refused_mask
        from skipwise.train.quantized import quantization_of

    model_config = read_config(
        given_run.model, original=given_run.original, trust_remote_code=given_run.trust_remote_code
    )
    check_trainable(given_run.model, model_config)
    facts = model_facts(given_run, model_config)
    resolved = resolve(given_run, facts)
    run, window, how = resolved.config, facts.window, resolved.config.build_interpolation()
    for reason in resolved.reasons:
        print(reason, file=sys.stderr)
    training = training_settings(run)
    arguments = training_arguments(run)  # Before the device is asked for, as `use_cpu` decides on it.
    loaded = load_model(
        run.model,
        needs_tokenizer=False,
        interpolation=how,
        window=window,
        original=run.original,
        dtype=run.dtype,
        attention=run.attention,
        quantization=quantization_of(run, arguments, model_config),
        trust_remote_code=run.trust_remote_code,
    )
    check_read_as_stored(loaded.model)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    verdicts = probe(
        loaded.model,
        window,
        how,
        tokenizer=loaded.tokenizer,
        gradient_checkpointing=training[CHECKPOINTING],
        mixed_precision=mixed_precision(arguments),
        check_dilution=run.dilution,
        check_reload=True,
        seed=run.seed,
    )
    if loaded.tokenizer is None:
        detail = f"{run.model} has no tokenizer, which extend needs: put its files beside config.json"
        verdicts.append(Verdict(name="tokenizer", status="note", detail=detail))
    _print(verdicts, as_json)
    refused = refused_mask(verdicts)
    if refused and not (without := resolve(given_run, replace(facts, refuses_mask=refused))).config.dilution:
        print(f"extend does without: {without.reasons[0]}", file=sys.stderr)
    elif any(verdict.status == "fail" for verdict in verdicts):
        raise typer.Exit(1)


def _check_up(
    model: str, base: str | None, fix: bool, out: Path | None, trust_remote_code: bool, as_json: bool
) -> None:
    """Looks at a checkpoint's files; exit 1 if something is wrong that was not mended."""
    if out is not None and not fix:
        raise ConfigError(f"--out is {str(out)!r}, and nothing is written without --fix; give both")
    place = find_place(model)
    if not place.is_folder or place.gguf_file is not None:
        raise ConfigError(
            f"model is {model!r}, no checkpoint folder whose files could be looked at; give one, or --target to probe "
            "what extend would train"
        )
    with loading(f"looking at the files of {model}"):
        from skipwise.doctor.checkup import check_up, write_mended
        from skipwise.model import path_beside, read_config

    known = None if base is None else read_config(base, trust_remote_code=trust_remote_code).to_dict()
    found = check_up(place.name, known)
    _print(found.verdicts, as_json)
    if not fix:
        if not found.healthy:
            raise typer.Exit(1)
        return
    if found.healthy and not found.changed:
        if not as_json:
            print("nothing to mend, so no copy is written")
        return
    written = write_mended(place.name, found, out or path_beside(model, "mended"))
    left = check_up(written, known)
    if as_json:
        print_json({"mended": str(written)})
    else:
        print(f"mended: {written}")
    if not left.healthy:
        _print(left.verdicts, as_json)
        raise typer.Exit(1)


def _print(verdicts: Sequence["Verdict"], as_json: bool) -> None:
    for verdict in verdicts:
        if as_json:
            print_json(asdict(verdict))
        else:
            print(verdict.line)

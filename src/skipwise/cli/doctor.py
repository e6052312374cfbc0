"""`skipwise doctor`: proves, before any training, that skip-wise training works on this model and this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from skipwise.cli.options import AttentionOption, JsonOption, TrustOption, print_json, read_length
from skipwise.cli.settings import given

EPILOG = """Example: skipwise doctor ./my-model --target 32k --interpolation yarn

Example: skipwise doctor --config run.yaml
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
    interpolation: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How RoPE is stretched: none, linear, ntk, dynamic, yarn, llama3, longrope.",
            show_default="yarn",
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
            show_default="no-dilution",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random tokens.", show_default="0")] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe what extend would train, with this model, attention and version; exit 1 if a probe fails."""
    from skipwise.config import RunConfig, merge_settings, read_settings

    flags: dict[str, Any] = {
        "model": model,
        "target": target,
        "window": train,
        "interpolation": interpolation and {"kind": interpolation},
        "dtype": dtype,
        "attention": attention,
        "training": given({"gradient_checkpointing": checkpointing}),
        "dilution": dilution,
        "seed": seed,
        "trust_remote_code": trust_remote_code or None,
    }
    run = RunConfig.from_mapping(merge_settings(read_settings(config) if config else {}, given(flags)))

    from accelerate import PartialState

    from skipwise.doctor import doctor as probe
    from skipwise.model import load_model, original_window, read_config
    from skipwise.train.arguments import CHECKPOINTING, mixed_precision, training_arguments, training_settings
    from skipwise.train.quantized import quantization_of

    how = run.build_interpolation()
    base = read_config(run.model, trust_remote_code=run.trust_remote_code)
    window, training = run.resolve_window(original_window(base)), training_settings(run)
    arguments = training_arguments(run)  # Before the device is asked for, as `use_cpu` decides on it.
    loaded = load_model(
        run.model,
        interpolation=how,
        window=window,
        dtype=run.dtype,
        attention=run.attention,
        quantization=quantization_of(run, arguments, base),
        trust_remote_code=run.trust_remote_code,
    )
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
    for verdict in verdicts:
        if as_json:
            print_json(asdict(verdict))
        else:
            print(verdict.line)
    if any(verdict.status == "fail" for verdict in verdicts):
        raise typer.Exit(1)

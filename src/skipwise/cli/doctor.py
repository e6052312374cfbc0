"""`skipwise doctor`: proves, before any training, that skip-wise training works on this model and this machine."""

from dataclasses import asdict
from typing import Annotated

import typer

from skipwise.cli.options import (
    AttentionOption,
    DtypeOption,
    InterpolationOption,
    JsonOption,
    ModelArgument,
    TargetOption,
    TrainOption,
    TrustOption,
    print_json,
)
from skipwise.window import Window


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise doctor ./my-model --target 32k --interpolation yarn")(doctor)


def doctor(
    model: ModelArgument,
    target: TargetOption,
    train: TrainOption = None,
    interpolation: InterpolationOption = "yarn",
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Probe with gradient checkpointing, as large models train.")
    ] = False,
    dilution: Annotated[
        bool, typer.Option("--dilution", help="Probe the mask of diluted attention too, as dilution: true trains.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe that the method works on this model, attention and version; exit 1 if a probe fails."""
    from accelerate import PartialState

    from skipwise.doctor import doctor as probe
    from skipwise.model import load_model, original_window, read_config
    from skipwise.rope import interpolation_from

    how = interpolation_from(interpolation)
    original = original_window(read_config(model, trust_remote_code=trust_remote_code))
    window = Window(train=min(original, 2048) if train is None else train, original=original, target=target)
    loaded = load_model(
        model, interpolation=how, window=window, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code
    )
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    verdicts = probe(
        loaded.model,
        window,
        how,
        tokenizer=loaded.tokenizer,
        gradient_checkpointing=checkpointing,
        check_dilution=dilution,
    )
    for verdict in verdicts:
        if as_json:
            print_json(asdict(verdict))
        else:
            print(verdict.line)
    if any(verdict.status == "fail" for verdict in verdicts):
        raise typer.Exit(1)

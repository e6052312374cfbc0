"""`skipwise doctor`: proves, before any training, that skip-wise training works on this model and this machine."""

from typing import Annotated

import typer

from skipwise.cli.options import (
    AttentionOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    TargetOption,
    TrainOption,
    TrustOption,
)

_MARKS = {"pass": "ok  ", "note": "note", "fail": "FAIL"}


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise doctor ./my-model --target 32k --interpolation yarn")(doctor)


def doctor(
    model: ModelArgument,
    target: TargetOption,
    train: TrainOption = None,
    interpolation: Annotated[
        str, typer.Option("--interpolation", metavar="KIND", help="How RoPE is stretched.")
    ] = "yarn",
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Probe with gradient checkpointing, as a large model trains.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Probe that the method works on this model, attention and version; exit 1 if a probe fails."""

"""`skipwise eval`: what a model can do at each length, on documents that it was not trained on."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.options import AttentionOption, DtypeOption, JsonOption, ModelArgument, TrustOption, read_length
from skipwise.errors import ConfigError
from skipwise.window import Window, parse_length

if TYPE_CHECKING:
    from skipwise.evals import EvalResult, Task


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    example = "skipwise eval ./my-model --task perplexity,passkey --length 2k,8k,32k --out results.jsonl"
    app.command(name="eval", epilog=f"Example: {example}")(evaluate)


def evaluate(
    model: ModelArgument,
    length: Annotated[
        str,
        typer.Option("--length", metavar="TOKENS,...", help="Input lengths, such as 2k,8k; answers are counted in."),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="NAME,...",
            help="perplexity (last tokens), sliding, nll_by_position, passkey, in any number.",
        ),
    ] = "perplexity,passkey",
    documents: Annotated[
        str, typer.Option("--documents", metavar="SOURCE", help="A file, a folder, a hub data set, or stdlib.")
    ] = "stdlib",
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Entry with the text.")] = "text",
    all_documents: Annotated[
        bool,
        typer.Option("--all-documents", help="Use every document, not only those that skipwise keeps out of training."),
    ] = False,
    num_documents: Annotated[
        int | None, typer.Option("--num-documents", metavar="N", help="Documents at most.", show_default="by task")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="Passkeys of each length.", show_default="50")
    ] = None,
    depths: Annotated[
        int | None, typer.Option("--depths", metavar="N", help="Parts of the text for passkeys.", show_default="10")
    ] = None,
    haystack: Annotated[
        str | None,
        typer.Option(
            "--haystack", metavar="NAME", help="What hides passkeys: filler or documents.", show_default="filler"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Append each result, a line of JSON.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="FILE", help="Append each sample with its hash and output.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")] = 0,
    allow_beyond: Annotated[
        bool, typer.Option("--allow-beyond", help="Allow lengths beyond the model's window, as for a base model.")
    ] = False,
    interpolation: Annotated[
        str | None,
        typer.Option(
            "--interpolation",
            metavar="KIND",
            help="Measure the model with this interpolation to --target and no training.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        int | None,
        typer.Option("--target", parser=read_length, metavar="TOKENS", help="Window of --interpolation."),
    ] = None,
    dtype: DtypeOption = "auto",
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure perplexity and retrieval at each length."""
    lengths = [parse_length(part) for part in length.split(",")]

    from accelerate import PartialState

    from skipwise import evals
    from skipwise.corpus import build_store
    from skipwise.model import load_model

    settings = {"num_documents": num_documents, "trials": trials, "num_depths": depths, "haystack": haystack}
    tasks = _make_tasks(task, {name: value for name, value in settings.items() if value is not None})
    loaded = load_model(
        model,
        **_stretched(model, interpolation, target, trust_remote_code),
        dtype=dtype,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    network: Any = loaded.model
    network.to(PartialState().device)
    texts = None
    if any(made.uses_documents for made in tasks):
        # One store for every length; tasks pass over the documents that are too short for theirs and count them.
        part = "all" if all_documents else "held_out"
        store = build_store(documents, loaded.tokenizer, field=field, min_tokens=2, part=part, progress=not as_json)
        texts = [store.document(index) for index in range(store.num_documents)]
    results = evals.evaluate(
        network,
        loaded.tokenizer,
        tasks,
        lengths,
        texts,
        seed=seed,
        out=out,
        samples_out=samples,
        allow_beyond=allow_beyond,
        progress=not as_json,
    )
    if as_json:
        for result in results:
            print(result.to_json())
    else:
        _print_tables(results)


def _stretched(model: str, interpolation: str | None, target: int | None, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of `load_model` for the arm `interpolation only`; none for the model as it is."""
    from skipwise.model import original_window, read_config
    from skipwise.rope import interpolation_from

    if (interpolation is None) != (target is None):
        raise ConfigError("--interpolation and --target go together: give both or neither")
    if interpolation is None or target is None:
        return {}
    original = original_window(read_config(model, trust_remote_code=trust_remote_code))
    window = Window(train=original, original=original, target=target)
    return {"interpolation": interpolation_from(interpolation), "window": window}


def _make_tasks(names: str, settings: dict[str, Any]) -> list["Task"]:
    """Tasks by name, each with those of the settings that it has."""
    from skipwise.evals import TASKS, make_task

    kinds = [name.strip() for name in names.split(",")]
    known = {kind: {field.name for field in fields(TASKS[kind])} for kind in kinds if kind in TASKS}
    for name, value in settings.items():
        if not any(name in settable for settable in known.values()):
            raise ConfigError(f"{name} is set to {value!r} and no task of {names} has such a setting: leave it out")
    return [
        make_task({"kind": kind} | {name: value for name, value in settings.items() if name in known.get(kind, ())})
        for kind in kinds
    ]


def _print_tables(results: Sequence["EvalResult"]) -> None:
    """One row a number; what was found at each depth goes into a grid of its own."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("task", "tokens", "measure", "value", "95% interval", "n", "skipped", box=None, padding=(0, 2, 0, 0))
    for result in results:
        if "depth_from" not in result.details:
            table.add_row(
                result.task,
                str(result.length_tokens),
                result.metric + _place(result),
                f"{result.value:.4g}",
                "-" if result.ci_low is None else f"{result.ci_low:.4g} to {result.ci_high:.4g}",
                str(result.num_samples),
                str(result.num_skipped),
            )
    console.print(table)

    cells = [result for result in results if "depth_from" in result.details]
    if cells:
        lengths = sorted({cell.length_tokens for cell in cells})
        grid = Table("passkey depth", *(f"{length} tokens" for length in lengths), box=None, padding=(0, 2, 0, 0))
        by_place = {(cell.details["depth_from"], cell.length_tokens): cell for cell in cells}
        for depth in sorted({depth for depth, _ in by_place}):
            row = [by_place[depth, length] for length in lengths]
            grid.add_row(f"{depth:.2f} to {row[0].details['depth_to']:.2f}", *(f"{cell.value:.0%}" for cell in row))
        console.print()
        console.print(grid)


def _place(result: "EvalResult") -> str:
    if "position_from" not in result.details:
        return ""
    return f" {result.details['position_from']}-{result.details['position_to'] - 1}"

"""`skipwise calibrate`: chooses an attention factor for a model that is trained, and writes it into its checkpoint."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import (
    AttentionOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    SkipUnreadableOption,
    TrustOption,
    print_json,
)
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.window import parse_length

if TYPE_CHECKING:
    from skipwise.calibrate import Calibration
    from skipwise.cli.evaluate_documents import HeldOut
    from skipwise.config import DataConfig

EPILOG = """Example: skipwise calibrate ./my-model-32k --dry-run

Example: skipwise calibrate ./my-model-32k --documents docs/ --output my-model-32k-calibrated
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EPILOG)(calibrate)


def calibrate(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FOLDER", help="A calibrated copy.", show_default="the checkpoint's own config changes"
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Choose anew for a calibrated model, from the factor it was trained with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be chosen.")] = False,
    documents: Annotated[
        str | None,
        typer.Option(
            "--documents",
            metavar="SOURCE",
            help="A file, a folder, a hub data set, or stdlib; those held out from training are left to evaluations.",
            show_default="those the model was trained on, else stdlib",
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option("--field", metavar="NAME", help="Entry with the text.", show_default="text")
    ] = None,
    skip_unreadable: SkipUnreadableOption = False,
    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            metavar="TOKENS,...",
            help="Lengths that perplexity is measured at; the longest is the target.",
            show_default="the original window, the whole one, one between",
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(
            "--factors",
            metavar="NUMBER,...",
            help="Factors to try, over the trained one.",
            show_default="0.9,1.05,1.1,1.15,1.2,1.3",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", metavar="SHARE", help="Perplexity that passkeys may cost.", show_default="0.03"),
    ] = None,
    num_documents: Annotated[
        int | None, typer.Option("--num-documents", metavar="N", help="Documents at most.", show_default="8")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="Passkeys at the target.", show_default="20")
    ] = None,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Find samples that were measured before, and keep new ones.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")] = 0,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose an attention factor for the whole window, after training, and write it into the checkpoint.

    Only config.json, skipwise.json and the model card change; the config from before stays beside the new one.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    lengths = None if length is None else [parse_length(part) for part in length.split(",")]
    asked = {"scales": _numbers(factors), "tolerance": tolerance, "num_documents": num_documents, "trials": trials}
    if not dry_run:
        _check_folders(model, output)

    find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise.calibrate import Search
        from skipwise.calibrate import calibrate as choose
        from skipwise.cli.evaluate_documents import held_out_of
        from skipwise.data.corpus import StoredCorpus, open_corpus
        from skipwise.data.documents import look_through
        from skipwise.distributed import process_state
        from skipwise.evals import SampleCache
        from skipwise.model import load_model, read_config, rope_state
        from skipwise.rope import check_carries_factor
        from skipwise.runtime.forward import check_length
        from skipwise.train.calibration import calibration_documents, write_calibration

    search = Search(**{name: value for name, value in asked.items() if value is not None})
    config = read_config(model, trust_remote_code=trust_remote_code)
    rope = rope_state(config)
    check_carries_factor(rope.kind)
    if rope.trained_factor is not None and not (again or dry_run):
        raise ConfigError(
            f"model {model!r} is calibrated already: its attention factor is {rope.attention_factor:.4g}, "
            f"{rope.attention_scale:.4g} times the trained one; choose anew with --again, or look with --dry-run"
        )
    target = max(lengths or [rope.maximum])
    check_length(config, target, allow_beyond=False)
    state = process_state()
    run = held_out_of(model)
    data = _data(run, documents, field, skip_unreadable)
    # What cannot be read is told before any weight is read.
    sources = look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    network: Any = loaded.model
    shows = not as_json and state.is_main_process
    corpus = open_corpus(data, loaded.tokenizer, sources, progress=shows)
    if isinstance(corpus, StoredCorpus) and run is not None:
        corpus = replace(corpus, held_out_end=run.end)
    texts = calibration_documents(corpus, target)
    found = choose(
        network.to(state.device),
        loaded.tokenizer,
        texts,
        lengths,
        search=search,
        seed=seed,
        cache=SampleCache() if use_cache else None,
        progress=not as_json,
    )
    if not state.is_main_process:
        return
    written = None if dry_run else write_calibration(Path(model), config, found, output=output)
    if as_json:
        print_json({"folder": None if written is None else str(written), **found.to_json()})
        return
    _print(found)
    print(f"attention factor {found.line}")
    if written is None:
        print("nothing was written (--dry-run)")
    elif math.isclose(found.scale, rope.attention_scale):
        print(f"the config stays as it was; recorded in {written}")
    else:
        print(f"written: {written / 'config.json'}")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--factors is {text!r}; give numbers separated by commas, such as 0.9,1.1,1.2") from error


def _check_folders(model: str, output: Path | None) -> None:
    """Refuses, before any work, a checkpoint whose config cannot be changed or copied, and a taken output folder."""
    if not (Path(model) / "config.json").is_file():
        raise ConfigError(
            f"model is {model!r}; a calibration is written into a checkpoint folder, and this is none here: give a "
            "folder with a config.json, or look with --dry-run"
        )
    if output is not None and output.exists():
        raise ConfigError(f"--output is {str(output)!r}, which exists already; give a new folder")


def _data(run: "HeldOut | None", source: str | None, field: str | None, skip_unreadable: bool) -> "DataConfig":
    """Where documents come from: what was given, else what the run behind the model trained on."""
    from skipwise.config import DataConfig

    given = DataConfig(skip_unreadable=skip_unreadable or (run is not None and run.skip_unreadable))
    if run is not None:
        given = given.model_copy(update={"held_out": run.share, "control_tokens": run.control_tokens})
        if source is None:
            given = given.model_copy(update={"source": run.source, "field": run.field})
    changes = {name: value for name, value in (("source", source), ("field", field)) if value is not None}
    return given.model_copy(update=changes)


def _print(found: "Calibration") -> None:
    """One row a factor, the chosen one marked."""
    from rich.console import Console
    from rich.table import Table

    heads = ("times trained", "factor", *(f"perplexity {length}" for length in found.lengths), "passkeys", "verdict")
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for scores in found.to_json()["factors"]:
        passkeys = scores["passkeys"]
        table.add_row(
            f"{scores['scale']:.4g}" + (" *" if scores["scale"] == found.scale else ""),
            f"{scores['attention_factor']:.4g}",
            *(_perplexity(scores["perplexity"].get(str(length))) for length in found.lengths),
            "-" if passkeys is None else f"{passkeys['found']} of {passkeys['asked']}",
            scores["verdict"],
        )
    Console().print(table)


def _perplexity(measured: dict[str, Any] | None) -> str:
    """The perplexity and by how much it differs from the unchanged model's."""
    if measured is None:
        return "-"
    return f"{measured['value']:.4g} ({measured['over_unchanged']['value'] - 1:+.1%})"

"""`skipwise calibrate`: chooses an attention factor for a trained model, and writes it into its checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import check_new, given, option, print_json, print_table
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.window import length_label

if TYPE_CHECKING:
    import numpy as np

    from skipwise.calibrate import Calibration
    from skipwise.cli.evaluate_documents import HeldOut
    from skipwise.config import DataConfig
    from skipwise.data.documents import Sources


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--factors is {text!r}; give numbers separated by commas, such as 0.9,1.1,1.2") from error


SEARCH = "Search"

DocumentsOption = Annotated[
    str | None,
    option(
        "--documents SOURCE",
        "File, folder, Hugging Face data set, or stdlib. Documents held out from training are not used.",
        shown="the run's training documents, else stdlib",
        group=options.DOCUMENTS,
    ),
]
FieldOption = Annotated[
    str | None,
    option("--field NAME", "Field of a record that holds the text.", shown="text", group=options.DOCUMENTS),
]
NumberOption = Annotated[
    int | None,
    option("--num-documents N", "Number of documents, at most.", shown="8", group=options.DOCUMENTS),
]
LengthsOption = Annotated[
    Any,
    option(
        "--length TOKENS,...",
        "Lengths to measure perplexity at. The longest is the target.",
        shown="the original window, the whole window, and one between",
        group=SEARCH,
    ),
]
FactorsOption = Annotated[
    Any,
    option(
        "--factors NUMBER,...",
        "Factors to try, as multiples of the trained one.",
        shown="0.9,1.05,1.1,1.15,1.2,1.3",
        parser=_factors,
        group=SEARCH,
    ),
]
ToleranceOption = Annotated[
    float | None,
    option(
        "--tolerance SHARE",
        "Relative increase in perplexity that is accepted for more passkeys found.",
        shown="0.03",
        group=SEARCH,
    ),
]
TrialsOption = Annotated[int | None, option("--trials N", "Passkey trials at the target.", shown="20", group=SEARCH)]


def calibrate(
    model: options.Model,
    output: Annotated[
        Path | None, option("--output FOLDER", "Write a calibrated copy here.", shown="change MODEL itself")
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", "Show what would be chosen, and write nothing.")] = False,
    again: Annotated[bool, option("--again", "Calibrate a model again that is calibrated already.")] = False,
    documents: DocumentsOption = None,
    field: FieldOption = None,
    num_documents: NumberOption = None,
    skip_unreadable: options.SkipUnreadable = False,
    length: LengthsOption = None,
    factors: FactorsOption = None,
    tolerance: ToleranceOption = None,
    trials: TrialsOption = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    trust_remote_code: options.Trust = False,
    use_cache: options.SampleCache = True,
    as_json: options.Json = False,
) -> None:
    """Choose the attention factor of an extended model.

    Measures perplexity and passkeys for each factor, and writes the best one into the checkpoint's config. The old
    config is kept beside it.

    Example: skipwise calibrate runs/embedded-1k --dry-run

    Example: skipwise calibrate ./my-model-32k --documents docs/ --output my-model-32k-calibrated
    """
    if not dry_run:
        _check_folders(model, output)
    find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise.calibrate import Search
        from skipwise.calibrate import calibrate as choose
        from skipwise.cli.evaluate_documents import HeldOut, held_out_of
        from skipwise.config import DataConfig
        from skipwise.data.corpus import look_at
        from skipwise.distributed import process_state
        from skipwise.evals import SampleCache
        from skipwise.model import load_model, read_config, rope_state
        from skipwise.train.calibration import write_calibration

    asked = {"scales": factors, "tolerance": tolerance, "num_documents": num_documents, "trials": trials}
    search = Search(**given(asked))
    config = read_config(model, trust_remote_code=trust_remote_code)
    target = max(length or [rope_state(config).maximum])
    _check_model(model, config, target, again=again or dry_run)
    run = held_out_of(model) or HeldOut(DataConfig())
    data = run.reading(documents, field, skip_unreadable=skip_unreadable)
    # Before any weight is read, so that unreadable files are reported at once.
    sources = look_at(data)
    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    network: Any = loaded.model
    network.to(process_state().device)
    texts = texts_of(run, data, sources, loaded.tokenizer, target, progress=not as_json)
    cache = SampleCache() if use_cache else None
    how: dict[str, Any] = {"search": search, "seed": seed, "cache": cache, "progress": not as_json}
    found = choose(network, loaded.tokenizer, texts, length, **how)
    if process_state().is_main_process:
        written = None if dry_run else write_calibration(Path(model), config, found, output=output)
        _report(found, written, rope_state(config).attention_scale, as_json)


def _check_folders(model: str, output: Path | None) -> None:
    """Refuses, before any work, a checkpoint whose config cannot be changed or copied, and an output that exists."""
    if not (Path(model) / "config.json").is_file():
        raise ConfigError(
            f"model is {model!r}, which is no local checkpoint folder, so the result cannot be written; give a "
            "folder with a config.json, or add --dry-run"
        )
    check_new("--output", output)


def _check_model(model: str, config: Any, target: int, *, again: bool) -> None:
    """Refuses a model that has no attention factor or no such window, or is calibrated already."""
    from skipwise.model import rope_state
    from skipwise.rope import check_carries_factor
    from skipwise.runtime.forward import check_length

    rope = rope_state(config)
    check_carries_factor(rope.kind)
    if rope.trained_factor is not None and not again:
        raise ConfigError(
            f"model {model!r} is calibrated already: its attention factor is {rope.attention_factor:.4g}, "
            f"{rope.attention_scale:.4g} times the trained one; calibrate again with --again, or look with --dry-run",
            page="already-scaled",
        )
    check_length(config, target, allow_beyond=False)


def texts_of(
    run: "HeldOut",
    data: "DataConfig",
    sources: "Sequence[Sources]",
    tokenizer: Any,
    target: int,
    *,
    progress: bool,
) -> "list[np.ndarray]":
    """Documents to calibrate on, tokenized."""
    from skipwise.data.corpus import open_corpus
    from skipwise.distributed import process_state
    from skipwise.train.calibration import calibration_documents

    corpus = open_corpus(data, tokenizer, sources, progress=progress and process_state().is_main_process)
    return calibration_documents(corpus.with_held_out_ends(run.ends), target)


def _report(found: "Calibration", written: Path | None, scale_before: float, as_json: bool) -> None:
    if as_json:
        print_json({"folder": None if written is None else str(written), **found.to_json()})
        return
    from skipwise.calibrate.choice import UNCHANGED

    headings = ("scale", "factor", *map(length_label, found.lengths), "passkeys", "verdict")
    rows = []
    for scores in found.to_json()["factors"]:
        scale, passkeys = scores["scale"], scores["passkeys"]
        rows.append(
            (
                f"{scale:.4g}" + (" *" if scale == found.scale else ""),
                f"{scores['attention_factor']:.4g}",
                *(
                    _perplexity(scores["perplexity"].get(str(length)), unchanged=scale == UNCHANGED)
                    for length in found.lengths
                ),
                "-" if passkeys is None else f"{passkeys['found']} of {passkeys['asked']}",
                scores["verdict"],
            )
        )
    print("perplexity by length: as trained, else the change from that; * is chosen")
    print_table(headings, rows)
    print(f"attention factor {found.line}")
    if written is None:
        print("nothing was written (--dry-run)")
    elif math.isclose(found.scale, scale_before):
        print(f"the config stays as it was; recorded in {written}")
    else:
        print(f"written: {written / 'config.json'}")


def _perplexity(measured: dict[str, Any] | None, *, unchanged: bool) -> str:
    """The perplexity of the unchanged model; of others its relative difference from that."""
    if measured is None:
        return "-"
    return f"{measured['value']:.4g}" if unchanged else f"{measured['over_unchanged']['value'] - 1:+.1%}"

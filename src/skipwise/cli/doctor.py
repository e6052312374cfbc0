"""`skipwise doctor`: shows, before any training, that skip-wise training works on this model and this machine.

Without a target it checks the files of a checkpoint instead, and fixes them in a copy. Given documents, it reports on
these (see `doctor_corpus`).
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import NEGATIVE, data_setting, option, print_json, print_read_on, settings_over
from skipwise.errors import ConfigError
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from skipwise.config import RunConfig
    from skipwise.records.verdict import Verdict
    from skipwise.window import Window


DOCUMENTS, FILES = "Documents", "Files of a checkpoint (without --target)"

DataOption = Annotated[
    list[str] | None,
    option(
        "--data SOURCE",
        "Report on these documents instead: file, folder, glob pattern or Hugging Face data set. Repeatable.",
        shown=False,
        group=DOCUMENTS,
    ),
]
CorpusOption = Annotated[
    bool, option("--corpus", "Report on the documents named in --config, such as a mixture.", group=DOCUMENTS)
]
SliceOption = Annotated[
    bool,
    option(
        "--slice",
        "Probe only the first layers, as many as have a layer of every kind. For a model that is too large here.",
        group=options.LOADING,
    ),
]
BaseOption = Annotated[
    str | None,
    option("--base MODEL", "Model that it was made from. Its RoPE base and window are compared.", group=FILES),
]


def doctor(
    model: options.RunModel = None,
    target: options.Target = None,
    config: options.RunFile = None,
    settings: options.Setting = None,
    data: DataOption = None,
    corpus: CorpusOption = False,
    base: BaseOption = None,
    fix: Annotated[bool, option("--fix", "Write a copy of the checkpoint with the faults fixed.", group=FILES)] = False,
    out: Annotated[
        Path | None, option("--out FOLDER", "Folder of the fixed copy.", shown="MODEL-fixed", group=FILES)
    ] = None,
    slice_only: SliceOption = False,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Check a model, a checkpoint or documents before training.

    With --target: probe whether the model can be trained skip-wise here, as extend would load and train it.

    With a checkpoint folder alone: look for faults in its files, such as a lost RoPE base, a wrong original window, a
    scaling that is applied twice, or a tokenizer limit that differs from the window.

    With --data or --corpus: report tokens, lengths, languages, duplicates, garbled text and leaks into the held-out
    documents, and what a run would leave out and why. No weights are loaded.

    Exits with 1 if a check fails.

    Example: skipwise doctor embedded --target 1k

    Example: skipwise doctor ./my-model-32k --base ./my-model --fix

    Example: skipwise doctor ./my-model --target 32k --data docs/ --set data.join=true

    \b
    Useful with --set:
      window=2k          length of a training window
      original=32k       context window of the base model
      interpolation=ntk  none, linear, ntk, dynamic, yarn, llama3 or longrope
      attention=eager    attention implementation
      dtype=bfloat16     number format of the weights
    """
    is_corpus = corpus or data is not None
    if slice_only and is_corpus:
        raise ConfigError("--slice is for probing a model, and not for documents; leave it out")
    is_run = is_corpus or slice_only or target is not None or config is not None or bool(settings)
    if model is not None and not is_run:
        _check_up(model, base, fix, out, trust_remote_code, as_json)
        return
    if fix or out is not None or base is not None:
        raise ConfigError(
            "--base, --fix and --out are for the files of a checkpoint folder, looked at without --target, --config "
            "and other settings of a run"
        )
    from skipwise.config import RunConfig, read_settings

    flags = {
        "model": model,
        "target": target,
        "data": data_setting(data),
        "trust_remote_code": trust_remote_code or None,
    }
    tree = settings_over(read_settings(config) if config else {}, flags, settings)
    if is_corpus:
        if data is not None and tree["data"].get("mixture"):
            raise ConfigError(
                "--data names other documents than the mixture of --config; to report on it, give --corpus"
            )
        if "data" not in tree:
            raise ConfigError("--corpus reports on the documents that --config names in data; give it, or --data")
        from skipwise.cli.doctor_corpus import report_corpus

        report_corpus(tree, as_json)
        if tree.get("model") and tree.get("target") and not as_json:
            alone = shlex.join(["skipwise", "doctor", str(tree["model"]), "--target", str(tree["target"])])
            print(f"the model itself was not checked; {alone} does", file=sys.stderr)
    else:
        _check_run(RunConfig.from_mapping(tree), as_json, slice_only)


def _check_run(run: "RunConfig", as_json: bool, slice_only: bool) -> None:
    """Probes what `extend` would train; exits with 1 if a probe fails."""
    find_place(run.model)
    with loading(f"probing the model {run.model}"):
        from skipwise.config.recipes import resolve
        from skipwise.model import check_trainable, read_config
        from skipwise.records.verdict import refused_mask
        from skipwise.train.facts import model_facts

    model_config = read_config(run.model, original=run.original, trust_remote_code=run.trust_remote_code)
    check_trainable(run.model, model_config)
    facts = model_facts(run, model_config)
    resolved = resolve(run, facts)
    for reason in resolved.reasons:
        print(reason, file=sys.stderr)
    verdicts = _probe(resolved.config, facts.window, model_config, slice_only)
    _print(verdicts, as_json)
    refused = refused_mask(verdicts)
    if refused and not (without := resolve(run, replace(facts, refuses_mask=refused))).config.dilution:
        print(f"extend does without: {without.reasons[0]}", file=sys.stderr)
    elif any(verdict.status == "fail" for verdict in verdicts):
        raise typer.Exit(NEGATIVE)


def _probe(run: "RunConfig", window: "Window", model_config: "PreTrainedConfig", slice_only: bool) -> list["Verdict"]:
    """Probes the model, or its first layers, as `extend` would load and train it."""
    from skipwise.train.preflight import load_as_trained, probe, probe_slice

    if slice_only:
        return probe_slice(run, window, model_config)
    return probe(load_as_trained(run, window, model_config), run, window)


def _check_up(
    model: str, base: str | None, fix: bool, out: Path | None, trust_remote_code: bool, as_json: bool
) -> None:
    """Checks a checkpoint's files; exits with 1 if something is wrong and not fixed."""
    if out is not None and not fix:
        raise ConfigError(f"--out is {str(out)!r}, and nothing is written without --fix; give both")
    place = find_place(model)
    if not place.is_folder or place.gguf_file is not None:
        raise ConfigError(
            f"model is {model!r}, which is no checkpoint folder, so there are no files to check; give one, or "
            "--target to probe what extend would train"
        )
    with loading(f"looking at the files of {model}"):
        from skipwise.doctor.checkup import check_up, write_fixed
        from skipwise.model import path_beside, read_config

    known = None if base is None else read_config(base, trust_remote_code=trust_remote_code).to_dict()
    found = check_up(place.name, known)
    _print(found.verdicts, as_json)
    healthy = found.healthy
    if fix and healthy and not found.changed:
        if not as_json:
            print("nothing to fix, so no copy was written")
    elif fix:
        written = write_fixed(place.name, found, out or path_beside(model, "fixed"))
        if as_json:
            print_json({"fixed": str(written)})
        else:
            print(f"a fixed copy is in {written}")
        left = check_up(written, known)
        healthy = left.healthy
        if not healthy:
            _print(left.verdicts, as_json)
    if not healthy:
        raise typer.Exit(NEGATIVE)


def _print(verdicts: Sequence["Verdict"], as_json: bool) -> None:
    for verdict in verdicts:
        if as_json:
            print_json(verdict.to_json())
        else:
            print(verdict.line)
    if not as_json:
        print_read_on(verdicts)

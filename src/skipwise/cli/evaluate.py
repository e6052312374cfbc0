"""`skipwise eval`: what a model can do at each length, on documents that it was not trained on."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from skipwise.cli.loading import loading
from skipwise.cli.options import (
    AttentionOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    SkipUnreadableOption,
    TrustOption,
    read_length,
)
from skipwise.cli.settings import assigned
from skipwise.cli.verdict import Rule, require_retrieval, require_short_length, scored_tasks, state_verdict
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.window import Window, parse_length

if TYPE_CHECKING:
    from skipwise.evals import EvalResult, Task
    from skipwise.model import LoadedModel

logger = logging.getLogger("skipwise")

NEGATIVE = 1

EPILOG = """Example: skipwise eval ./my-model --task perplexity,passkey --length 2k,8k,32k --out results.jsonl

Example: skipwise eval ./my-model-32k --task ruler --length 4k,8k,16k,32k --verdict

Example: skipwise eval ./my-model-32k --task regression --base ./my-model --length 1k,4k

Example: skipwise eval runs/my-model-32k --all-checkpoints --length 4k,32k

See also: skipwise eval build-suite --help, skipwise eval benchmarks --help
"""


class Subject(NamedTuple):
    """One model to measure.

    Attributes:
        step: of the run that it is a checkpoint of; None for a model by itself.
        load: loads it.
    """

    step: int | None
    load: Callable[[], "LoadedModel"]


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(name="eval", epilog=EPILOG)(evaluate)


def evaluate(
    model: ModelArgument,
    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            metavar="TOKENS,...",
            help="Input lengths, such as 2k,8k; answers are counted in.",
            show_default="those of --suite",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME,...",
            help="Any of perplexity (last tokens), sliding, truncated, nll_by_position, longppl, passkey, needles, "
            "ruler (all its 13 tasks; or single ones, such as ruler_vt), regression (against --base), suite, "
            "serving (time and memory).",
            show_default="perplexity,passkey",
        ),
    ] = None,
    documents: Annotated[
        str, typer.Option("--documents", metavar="SOURCE", help="A file, a folder, a hub data set, or stdlib.")
    ] = "stdlib",
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Entry with the text.")] = "text",
    skip_unreadable: SkipUnreadableOption = False,
    all_documents: Annotated[
        bool,
        typer.Option("--all-documents", help="Use every document, not only those that are kept out of training."),
    ] = False,
    held_out_share: Annotated[
        float | None,
        typer.Option(
            "--held-out-share",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Share of documents that is kept out of training; give a base model that of the run it is held to.",
            show_default="the run's own data.held_out, else 0.1",
        ),
    ] = None,
    num_documents: Annotated[
        int | None, typer.Option("--num-documents", metavar="N", help="Documents at most.", show_default="by task")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="Questions of each length.", show_default="by task")
    ] = None,
    depths: Annotated[
        int | None, typer.Option("--depths", metavar="N", help="Parts of the text for keys.", show_default="by task")
    ] = None,
    haystack: Annotated[
        str | None,
        typer.Option(
            "--haystack", metavar="NAME", help="What hides keys: filler or documents.", show_default="by task"
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Of regression: the model before it was extended.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer", metavar="MODEL", help="Of longppl: who chooses the key tokens.", show_default="the model itself"
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="FOLDER", help="A suite of 'skipwise eval build-suite'.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="TASK.NAME=VALUE", help="Any setting of a task, such as sliding.stride_tokens=512."
        ),
    ] = None,
    verdict: Annotated[
        bool,
        typer.Option(
            "--verdict",
            help="State the effective context length, in an extended model's card too; exit 1 if a length falls short.",
        ),
    ] = False,
    rule: Annotated[
        Rule, typer.Option("--rule", help="What --verdict holds the score to: 85.6%, or 85% of its own short score.")
    ] = Rule.BOTH,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="MODEL is the folder of a run: measure each of its checkpoints.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Append each result, a line of JSON.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="FILE", help="Append each sample with its hash and output.")
    ] = None,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Find samples that were measured before, and keep new ones.")
    ] = True,
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
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure perplexity, retrieval and regression at each length.

    Under torchrun or accelerate launch the samples are shared out over the processes.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if all_checkpoints and interpolation is not None:
        raise ConfigError("--all-checkpoints measures models as they were trained: leave out --interpolation")
    if length is None and suite is None:
        raise ConfigError("no length is given: say which input lengths to measure, such as --length 2k,8k")
    asked = None if length is None else [parse_length(part) for part in length.split(",")]

    from skipwise.data.documents import require_there
    from skipwise.evals.catalogue import READERS, task_names

    names = task or ("suite" if suite is not None else "perplexity,passkey")
    if set(task_names(names)) & set(READERS):
        require_there(documents)
    if not all_checkpoints:
        find_place(model)
    with loading(f"reading the model {model}"):
        from skipwise import evals
        from skipwise.cli.evaluate_documents import choose_documents, held_out_of
        from skipwise.config import DataConfig
        from skipwise.data.corpus import store_corpus
        from skipwise.data.documents import look_through
        from skipwise.distributed import process_state
        from skipwise.evals.suite import SuiteFolder
        from skipwise.model import load_model, read_config
        from skipwise.runtime.forward import check_length

    flags = {
        "num_documents": num_documents,
        "trials": trials,
        "num_depths": depths,
        "haystack": haystack,
        "base": base,
        "scorer": scorer,
        "folder": None if suite is None else str(suite),
    }
    tasks = make_tasks(names, {k: v for k, v in flags.items() if v is not None}, settings or [])
    if verdict:
        require_retrieval(tasks)
    lengths = asked or SuiteFolder(suite or "").lengths
    how = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    stretched = _stretched(model, interpolation, target, trust_remote_code)
    if not stretched and not all_checkpoints:
        # Before any weight is read and any document tokenized: both may take minutes.
        check_length(read_config(model, trust_remote_code=trust_remote_code), max(lengths), allow_beyond=allow_beyond)
    if all_checkpoints:
        subjects = _checkpoints(Path(model), how)
    else:
        subjects = [Subject(None, lambda: load_model(model, **stretched, **how))]

    state = process_state()
    run = held_out_of(model)
    choice = choose_documents(run, all_documents=all_documents, share=held_out_share)
    reads_documents = any(made.uses_documents for made in tasks)
    data = DataConfig(
        source=documents,
        field=field,
        skip_unreadable=skip_unreadable or (run is not None and run.skip_unreadable),
        held_out=choice.share,
        control_tokens=run.control_tokens if run else "text",
    )
    # What cannot be read is told before any weight is read.
    sources = None
    if reads_documents:
        sources = look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    if choice.warning and reads_documents and state.is_main_process:
        logger.warning(choice.warning)
    by_step: dict[int | None, list[EvalResult]] = {}
    held = True
    for subject in subjects:
        loaded = subject.load()
        network: Any = loaded.model
        if verdict:
            require_short_length(rule, network.config, lengths)
        network.to(state.device)
        texts, details = None, {} if subject.step is None else {"step": subject.step}
        if sources is not None:
            details |= choice.details
            # One store for every length; tasks pass over the documents that are too short for theirs and count them.
            shows = not as_json and state.is_main_process
            corpus = store_corpus(data, loaded.tokenizer, sources, progress=shows)
            corpus = replace(corpus, held_out_end=None if run is None else run.end)
            store = corpus.documents(choice.part, min_tokens=2)
            texts = [store.document(index) for index in range(store.num_documents)]
        results = by_step[subject.step] = evals.evaluate(
            network,
            loaded.tokenizer,
            tasks,
            lengths,
            texts,
            seed=seed,
            out=out,
            samples_out=samples,
            cache=evals.SampleCache() if use_cache else None,
            details=details,
            allow_beyond=allow_beyond,
            progress=not as_json,
            whole=scored_tasks() if verdict else (),
        )
        if state.is_main_process:
            _print(results, subject.step, as_json)
        if verdict:
            # Of several checkpoints the last one, which is the finished model, decides. The card speaks of that model
            # within its window, not of an untrained arm.
            as_trained = subject is subjects[-1] and not stretched and not allow_beyond
            card_folder = Path(model) if as_trained else None
            held = state_verdict(results, network.config, rule, card_folder=card_folder, as_json=as_json)
    if all_checkpoints and state.is_main_process and not as_json:
        from skipwise.cli.evaluate_tables import print_checkpoints

        print_checkpoints({step: results for step, results in by_step.items() if step is not None})
    if not held:
        raise typer.Exit(NEGATIVE)


def make_tasks(names: str, flags: dict[str, Any], assignments: Sequence[str] = ()) -> list["Task"]:
    """Tasks by name, each with those of the flags that it has, and with what is set for it alone.

    Args:
        names: separated by commas; a group's name stands for all its tasks.
        flags: settings for every task that has them.
        assignments: `TASK.NAME=VALUE`.

    Raises:
        ConfigError: for an unknown task, and for a setting that no task of these has.
    """
    from skipwise.evals import TASK_GROUPS, TASKS, make_task
    from skipwise.evals.catalogue import task_names

    kinds = task_names(names)
    known = {kind: {field.name for field in fields(TASKS[kind])} for kind in kinds}
    for name, value in flags.items():
        if not any(name in settable for settable in known.values()):
            raise ConfigError(f"{name} is set to {value!r} and no task of {names} has such a setting: leave it out")
    single: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        for group, values in assigned(assignment).items():
            for kind in TASK_GROUPS.get(group, [group]):
                if kind not in kinds or not isinstance(values, dict):
                    raise ConfigError(
                        f"--set is {assignment!r}; write TASK.NAME=VALUE with a task of {names}, as passkey.trials=20"
                    )
                single[kind] = single.get(kind, {}) | values
    return [
        make_task(
            {"kind": kind}
            | {name: value for name, value in flags.items() if name in known[kind]}
            | single.get(kind, {})
        )
        for kind in kinds
    ]


def _checkpoints(run_folder: Path, how: dict[str, Any]) -> list[Subject]:
    from skipwise.train.checkpoints import load_checkpoint, run_checkpoints

    return [
        Subject(checkpoint.step, lambda checkpoint=checkpoint: load_checkpoint(checkpoint, run_folder, **how))
        for checkpoint in run_checkpoints(run_folder)
    ]


def _print(results: Sequence["EvalResult"], step: int | None, as_json: bool) -> None:
    if as_json:
        for result in results:
            print(result.to_json())
        return
    from skipwise.cli.evaluate_tables import print_results

    if step is not None:
        print(f"step {step}")
    print_results(results)


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

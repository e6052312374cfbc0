"""`skipwise eval`: what a model can do at each length, on documents that it was not trained on."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

import typer

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import NEGATIVE, assigned, given, option
from skipwise.cli.verdict import Rule, require_retrieval, require_short_length, scored_tasks, state_verdict
from skipwise.errors import ConfigError
from skipwise.model.place import find_place
from skipwise.window import Window, length_label

if TYPE_CHECKING:
    from skipwise.cli.evaluate_documents import Texts
    from skipwise.evals import EvalResult, Task
    from skipwise.model import LoadedModel, Weights


class Subject(NamedTuple):
    """One model to measure, and the step of the checkpoint that it is; None for a model by itself."""

    step: int | None
    load: Callable[[], "LoadedModel"]


DOCUMENTS, SUBJECT = options.DOCUMENTS, "Which model to measure"

TaskOption = Annotated[
    str | None,
    option(
        "--task TASK,...",
        "perplexity (of the last tokens), sliding, truncated, nll_by_position, longppl, passkey, needles, ruler (13 "
        "tasks; one alone is, for example, ruler_vt), reasoning (5 tasks), regression (needs --base), suite, serving "
        "(time and memory).",
        shown="perplexity,passkey",
    ),
]
SourceOption = Annotated[
    str, option("--documents SOURCE", "File, folder, Hugging Face data set, or stdlib.", group=DOCUMENTS)
]
AllDocumentsOption = Annotated[
    bool, option("--all-documents", "Use all documents, also those trained on.", group=DOCUMENTS)
]
HeldOutOption = Annotated[
    float | None,
    option(
        "--held-out-share SHARE",
        "Share of documents that is held out from training. For a base model, give that of the run that it is "
        "compared with.",
        shown="the run's data.held_out, else 0.1",
        min=0.0,
        max=1.0,
        group=DOCUMENTS,
    ),
]
FieldOption = Annotated[
    str | None,
    option(
        "--field NAME",
        "Field of a record that holds the text.",
        shown="as in training, else text",
        group=DOCUMENTS,
    ),
]
FormatOption = Annotated[
    str | None,
    option(
        "--format FORMAT",
        "What records hold: text or conversations.",
        shown="as in training, else told from the first records",
        group=DOCUMENTS,
    ),
]
LanguageOption = Annotated[
    str | None,
    option(
        "--language CODE",
        "Language of passkey, needles and reasoning: en, de, fr, es, ja, zh or ko.",
        shown="en, or the documents' own with haystack=documents",
    ),
]
SetOption = Annotated[
    list[str] | None,
    option("--set [TASK.]NAME=VALUE", "Override a setting of one task, or of all tasks that have it. Repeatable."),
]
VerdictOption = Annotated[
    bool,
    option(
        "--verdict",
        "State the effective context length, here and in the model card. Exits with 1 if a length falls short.",
    ),
]
RuleOption = Annotated[
    Rule,
    option(
        "--rule RULE",
        "Threshold of --verdict: ruler (85.6%), relative (85% of the model's score on short text) or both.",
    ),
]
CheckpointsOption = Annotated[
    bool, option("--all-checkpoints", "Measure each checkpoint of the run MODEL.", group=SUBJECT)
]
InterpolationOption = Annotated[
    str | None,
    option("--interpolation KIND", "Apply this interpolation, without training. Needs --target.", group=SUBJECT),
]
BeyondOption = Annotated[bool, option("--allow-beyond", "Allow lengths beyond the model's window.", group=SUBJECT)]


def evaluate(
    model: options.Model,
    length: Annotated[
        Any, option("--length TOKENS,...", "Input lengths, answers included, such as 2k,8k,32k.", shown="--suite's")
    ] = None,
    task: TaskOption = None,
    verdict: VerdictOption = False,
    rule: RuleOption = Rule.BOTH,
    base: Annotated[str | None, option("--base MODEL", "The model before its extension (task regression).")] = None,
    suite: Annotated[Path | None, option("--suite FOLDER", "A suite made by eval build-suite (task suite).")] = None,
    scorer: Annotated[
        str | None, option("--scorer MODEL", "Model that picks the key tokens (task longppl).", shown="MODEL")
    ] = None,
    language: LanguageOption = None,
    settings: SetOption = None,
    seed: options.Seed = 0,
    documents: SourceOption = "stdlib",
    all_documents: AllDocumentsOption = False,
    held_out_share: HeldOutOption = None,
    field: FieldOption = None,
    format: FormatOption = None,
    skip_unreadable: options.SkipUnreadable = False,
    all_checkpoints: CheckpointsOption = False,
    interpolation: InterpolationOption = None,
    target: Annotated[
        int | None, option("--target TOKENS", "Context window for --interpolation.", group=SUBJECT)
    ] = None,
    allow_beyond: BeyondOption = False,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    weights: options.Weights = "full",
    trust_remote_code: options.Trust = False,
    out: options.Out = None,
    samples: options.Samples = None,
    use_cache: options.SampleCache = True,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity and retrieval by length.

    Uses only documents that were held out from training. Under torchrun, processes share the work.

    Example: skipwise eval embedded --length 128,256 --out results.jsonl

    Example: skipwise eval ./my-model-32k --task ruler --length 8k,16k,32k --verdict

    Example: skipwise eval ./my-model-32k --task regression --base ./my-model --length 1k,4k

    \b
    Useful with --set:
      num_documents=8            documents per length
      trials=50                  trials per length of tasks with answers
      num_depths=5               depths at which lines are hidden
      haystack=documents         hide lines in documents, not in filler
      sliding.stride_tokens=512  a setting of one task
    """
    if length is None and suite is None:
        raise ConfigError("no length is given: say which input lengths to measure, such as --length 2k,8k")
    names = task or ("suite" if suite is not None else "perplexity,passkey")
    _check_names(names, documents, None if all_checkpoints else model, language, format)
    stretch = _stretch(interpolation, target, all_checkpoints)
    with loading(f"reading the model {model}"):
        from skipwise.cli.evaluate_documents import find_texts
        from skipwise.distributed import process_state
        from skipwise.evals import SampleCache
        from skipwise.evals.suite import SuiteFolder
        from skipwise.model import check_weights

    shared = given({"base": base, "scorer": scorer, "folder": suite and str(suite), "language": language})
    tasks = make_tasks(names, shared, settings or [])
    if verdict:
        require_retrieval(tasks)
    lengths = length or SuiteFolder(suite or "").lengths
    check_weights(weights, process_state().device)
    how = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    subjects = _checkpoints(model, how) if all_checkpoints else _alone(model, lengths, stretch, allow_beyond, how)
    reads = any(made.uses_documents for made in tasks)
    which = {"all_documents": all_documents, "share": held_out_share, "skip_unreadable": skip_unreadable}
    texts = find_texts(model, documents, field, format, **which, progress=not as_json) if reads else None
    asked = {"seed": seed, "out": out, "samples_out": samples, "allow_beyond": allow_beyond, "progress": not as_json}
    asked["cache"] = SampleCache() if use_cache else None
    if not as_json:
        _announce(tasks, lengths)
    before = 0 if out is None or not out.is_file() else out.read_bytes().count(b"\n")
    # Of a trained model as it is, within its window.
    card = None if stretch or allow_beyond or weights != "full" else Path(model)
    held = _measure_all(subjects, tasks, lengths, texts, asked, rule if verdict else None, card, weights, as_json)
    if before:
        print(f"appended to {out} ({before} records before)", file=sys.stderr)
    if not held:
        raise typer.Exit(NEGATIVE)


def _announce(tasks: Sequence["Task"], lengths: Sequence[int]) -> None:
    """Says how much will be measured, since a long length can take minutes a sample."""
    from skipwise.distributed import process_state

    def amount(task: Any) -> str:
        for name, of in (("trials", ""), ("num_documents", "up to ")):
            if (number := getattr(task, name, None)) is not None:
                return f"{task.name} ({of}{number} {'documents' if of else 'prompts'})"
        return task.name

    if process_state().is_main_process:
        at = ", ".join(map(length_label, lengths))
        print(f"measuring {', '.join(map(amount, tasks))} at {at} tokens; --set asks for fewer", file=sys.stderr)


def _check_names(tasks: str, documents: str, model: str | None, language: str | None, form: str | None) -> None:
    """Refuses unknown tasks, languages and formats, and documents and a model that are not there."""
    from skipwise.data.conversations import Format
    from skipwise.data.documents import require_there
    from skipwise.evals.catalogue import READERS, task_names
    from skipwise.evals.languages import language_named

    if language is not None:
        language_named(language)
    if form not in (None, *get_args(Format)):
        raise ConfigError(f"--format is {form!r}; give {' or '.join(get_args(Format)[1:])}")

    if set(task_names(tasks)) & set(READERS):
        require_there(documents)
    if model is not None:
        find_place(model)


def _stretch(kind: str | None, target: int | None, all_checkpoints: bool) -> tuple[str, int] | None:
    """Interpolation and target of the arm `interpolation only`; None for models as they are."""
    if (kind is None) != (target is None):
        raise ConfigError("--interpolation and --target go together: give both or neither")
    if kind is None or target is None:
        return None
    if all_checkpoints:
        raise ConfigError("--all-checkpoints measures models as they were trained: leave out --interpolation")
    return kind, target


def make_tasks(names: str, shared: dict[str, Any], assignments: Sequence[str] = ()) -> list["Task"]:
    """Makes tasks by name, with the settings given for them.

    Args:
        names: separated by commas; a group's name stands for all its tasks.
        shared: settings of every task that has them.
        assignments: `TASK.NAME=VALUE` for one task or group, `NAME=VALUE` for every task that has the setting.

    Raises:
        ConfigError: an unknown task, or a setting that none of these tasks has.
    """
    from skipwise.evals import TASK_GROUPS, TASKS, make_task
    from skipwise.evals.catalogue import task_names

    kinds, shared = task_names(names), dict(shared)
    own: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for assignment in assignments:
        for name, value in assigned(assignment).items():
            if name not in {*TASKS, *TASK_GROUPS} and not isinstance(value, dict):
                shared[name] = value
                continue
            for kind in TASK_GROUPS.get(name, [name]):
                if kind not in kinds or not isinstance(value, dict):
                    raise ConfigError(
                        f"--set is {assignment!r}; write NAME=VALUE for all tasks or TASK.NAME=VALUE for one of {names}"
                    )
                own[kind] |= value
    known = {kind: {field.name for field in fields(TASKS[kind])} for kind in kinds}
    for name, value in shared.items():
        if not any(name in settable for settable in known.values()):
            raise ConfigError(f"{name} is set to {value!r} and no task of {names} has such a setting: leave it out")
    return [
        make_task({"kind": kind} | {name: shared[name] for name in shared if name in known[kind]} | own[kind])
        for kind in kinds
    ]


def _checkpoints(run_folder: str, how: dict[str, Any]) -> list[Subject]:
    from skipwise.train.checkpoints import load_checkpoint, run_checkpoints

    folder = Path(run_folder)
    return [Subject(one.step, partial(load_checkpoint, one, folder, **how)) for one in run_checkpoints(folder)]


def _alone(
    model: str, lengths: Sequence[int], stretch: tuple[str, int] | None, allow_beyond: bool, how: dict[str, Any]
) -> list[Subject]:
    """The model as it is, or stretched and not trained.

    Raises:
        ConfigError: its window is too short. That is known before any weight is read and any document tokenized.
    """
    from skipwise.model import load_model, original_window, read_config
    from skipwise.rope import interpolation_from
    from skipwise.runtime.forward import check_length

    config = read_config(model, trust_remote_code=how["trust_remote_code"])
    if stretch is None:
        check_length(config, max(lengths), allow_beyond=allow_beyond)
        return [Subject(None, partial(load_model, model, **how))]
    kind, target = stretch
    original = original_window(config)
    window = Window(train=original, original=original, target=target)
    return [Subject(None, partial(load_model, model, interpolation=interpolation_from(kind), window=window, **how))]


def _measure_all(
    subjects: Sequence[Subject],
    tasks: Sequence["Task"],
    lengths: Sequence[int],
    texts: "Texts | None",
    asked: dict[str, Any],
    rule: Rule | None,
    card: Path | None,
    weights: "Weights",
    as_json: bool,
) -> bool:
    """Measures every subject and prints its results; returns whether the verdict on the last one holds.

    Of a run's checkpoints, the last one is the finished model. `asked` are further arguments of `evaluate`; `card` is
    the folder of the model whose card gets the verdict.
    """
    from skipwise import evals
    from skipwise.cli.evaluate_tables import print_checkpoints, print_results
    from skipwise.distributed import process_state
    from skipwise.model import hold_in_eight_bits

    state, held = process_state(), True
    by_step: dict[int, list[EvalResult]] = {}
    for subject in subjects:
        loaded = subject.load()
        network: Any = loaded.model
        if rule is not None:
            require_short_length(rule, network.config, lengths)
        network.to(state.device)
        if weights == "int8":
            hold_in_eight_bits([network])
        documents, details = (None, {}) if texts is None else texts.of(loaded.tokenizer, lengths)
        if subject.step is not None:
            details = {"step": subject.step, **details}
        if weights != "full":
            details = {"weights": weights, **details}
        whole = () if rule is None else scored_tasks()
        results = evals.evaluate(
            network, loaded.tokenizer, tasks, lengths, documents, details=details, whole=whole, **asked
        )
        if subject.step is not None:
            by_step[subject.step] = results
        if state.is_main_process:
            if not as_json:
                print_results(results, subject.step)
            for result in results if as_json else ():
                print(result.to_json())
        if rule is not None:
            of_last = card if subject is subjects[-1] else None
            held = state_verdict(results, network.config, rule, card_folder=of_last, as_json=as_json)
    if by_step and state.is_main_process and not as_json:
        print_checkpoints(by_step)
    return held

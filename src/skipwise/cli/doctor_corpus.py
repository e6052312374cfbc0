"""`skipwise doctor --data`: what a corpus is made of, and what of it a run would train on."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from skipwise.cli.corpus_verdicts import Remark, corpus_remarks, percent
from skipwise.cli.loading import loading
from skipwise.cli.options import NEGATIVE, print_json, print_table
from skipwise.config import RunConfig
from skipwise.data.corpus import StoredCorpus, StreamedCorpus, joins, open_corpus, view_of
from skipwise.data.documents import Sources, inspect, require_there
from skipwise.data.store import choose_held_out_end
from skipwise.data.survey import Facts, Surveyed, estimated_tokens, find_facts, survey
from skipwise.data.survey.reading import BYTES_PER_TOKEN
from skipwise.data.survey.taken import EstimatedLengths, Taken, taken_by, taken_in
from skipwise.errors import DataError
from skipwise.model.place import find_place
from skipwise.window import Window, length_label

if TYPE_CHECKING:
    from skipwise.data.store import Lengths

_WIDTH = 80
_INDENT = 17
# Streams may have no end: so much of their text is read.
_STREAMED_BYTES = 1 << 30
# For a run without a target, and for one without a model.
_NO_TARGET, _ORIGINAL = 1 << 40, 2048


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What is printed.

    Attributes:
        facts: about the corpus.
        taken: what windows of each length take of it.
        reasons: what a run chooses by it.
        warnings: doubtful settings.
    """

    facts: Facts
    taken: list[Taken]
    reasons: Sequence[str] = ()
    warnings: Sequence[str] = ()


def report_corpus(settings: Mapping[str, Any], as_json: bool) -> None:
    """Reads the documents of a run, prints what they are, and exits with 1 if no run can be trained on them.

    Args:
        settings: of a run, of which `model` and `target` may be missing.
        as_json: prints the facts, then each verdict, as a line of JSON.
    """
    run = RunConfig.from_mapping({"model": "none", "target": _NO_TARGET, **settings})
    require_there(run.data.source)
    has_model, has_target = (settings.get(name) is not None for name in ("model", "target"))
    if has_model:
        find_place(run.model)
    data = run.data
    how = {"field": data.field, "skip_unreadable": data.skip_unreadable, "format": data.format}
    sources, faults = inspect(data.source, **how)
    found = survey(sources, most_bytes=_STREAMED_BYTES if data.streaming else None)
    if unreadable := found.unreadable or faults:
        # What can be read is reported all the same.
        found = replace(found, unreadable=unreadable)
        run, sources = run.with_data(skip_unreadable=True), replace(sources, skip_unreadable=True)
    if has_model and found.sizes.any():
        report = _counted(run, found, sources, has_target)
    else:
        report = _estimated(run, found, sources, has_target)
    remarks = [*corpus_remarks(report.facts, report.taken, skips_unreadable=data.skip_unreadable)]
    if as_json:
        print_json({"corpus": asdict(report.facts), "training": _training_json(report)})
        for verdict, examples in remarks:
            print_json({**asdict(verdict), "examples": examples})
    else:
        _print(data.source, report, remarks)
    if any(verdict.status == "fail" for verdict, _ in remarks):
        raise typer.Exit(NEGATIVE)


def _estimated(run: RunConfig, found: Surveyed, sources: Sources, has_target: bool) -> _Report:
    """The report without a tokenizer, by the training window that most models get."""
    window = run.resolve_window(run.original or _ORIGINAL)
    lengths = _estimated_lengths(found, sources)
    end, join = None, joins(run.data, sources)
    if run.data.held_out and not run.data.streaming:
        share, train = run.data.held_out, window.train
        keep = 1 if join else max(train, run.data.min_tokens or 0)
        end = choose_held_out_end(lengths, share=share, at_least=train, enough=train, keep=keep)
    view = view_of(run.data, "train", min_tokens=window.train, join=join, held_out_end=end)
    facts = _facts(run, found, sources, lengths.tokens, _lengths(window, has_target), is_estimate=True)
    passed_over = sources.kinds_passed_over.total()
    return _Report(facts=facts, taken=[taken_by(window.train, lengths, view, files_passed_over=passed_over)])


def _estimated_lengths(found: Surveyed, sources: Sources) -> EstimatedLengths:
    tokens = estimated_tokens(found.sizes)
    return EstimatedLengths(tokens=tokens, splits=found.splits, has_turns=sources.are_conversations)


def _counted(run: RunConfig, found: Surveyed, sources: Sources, has_target: bool) -> _Report:
    """The report by the model's tokenizer; tokens are kept where `extend` looks for them."""
    with loading(f"reading the tokenizer of {run.model}"):
        from skipwise.model import original_window, read_config, read_tokenizer
        from skipwise.train.checks import check_run
        from skipwise.train.outlook import look_ahead

    how: dict[str, Any] = {"trust_remote_code": run.trust_remote_code}
    base = read_config(run.model, original=run.original, **how)
    window = run.resolve_window(original_window(base))
    checked = check_run(run, sources=[sources]) if has_target else None
    tokenizer = checked.tokenizer if checked else read_tokenizer(run.model, base, **how)
    corpus = open_corpus(run.data, tokenizer, [sources])
    assert isinstance(corpus, StoredCorpus | StreamedCorpus)
    lengths: Lengths = _estimated_lengths(found, sources)
    tokens = lengths.tokens
    if isinstance(corpus, StoredCorpus):
        lengths, tokens = corpus.files, np.diff(corpus.files.offsets)
        if len(tokens) != len(found.sizes):
            raise DataError("documents changed while being read; start again when they are complete")
    facts = _facts(run, found, sources, tokens, _lengths(window, has_target), is_estimate=run.data.streaming)
    if checked is None:
        return _Report(facts=facts, taken=[taken_in(corpus, lengths, window.train)])
    outlook = look_ahead(run, checked, corpus, lengths)
    return _Report(facts=facts, taken=outlook.taken, reasons=outlook.reasons, warnings=outlook.warnings)


def _lengths(window: Window, has_target: bool) -> list[int]:
    return [window.train, window.target] if has_target else [window.train]


def _facts(
    run: RunConfig, found: Surveyed, sources: Sources, tokens: np.ndarray, lengths: list[int], *, is_estimate: bool
) -> Facts:
    return find_facts(
        found,
        tokens,
        is_estimate=is_estimate,
        lengths=lengths,
        held_out_share=run.data.held_out,
        unsupported=dict(sources.kinds_passed_over),
    )


def _print(source: str | list[str], report: _Report, remarks: Sequence[Remark]) -> None:
    facts = report.facts
    names = source if isinstance(source, str) else " ".join(source)
    guess = f", estimated as {BYTES_PER_TOKEN} bytes each: a model's tokenizer counts them" if facts.is_estimate else ""
    size = f"{facts.num_bytes / 1e6:,.1f} MB" if facts.num_bytes >= 1e5 else f"{facts.num_bytes / 1e3:,.1f} kB"
    read = "" if facts.is_whole else f"the first {size} of "
    text = f"{facts.documents:,} documents, {size} of text, {facts.tokens:,} tokens{guess}"
    print(textwrap.fill(f"{read}{names}: {text}", _WIDTH))
    with_text = facts.documents - facts.empty
    if facts.sampled < with_text:
        sample = f"content is looked at in a sample of {facts.sampled:,} of {with_text:,} documents"
        print(textwrap.fill(f"{sample}, chosen by content, so that duplicates are in it together", _WIDTH))
    print()
    print_table([*facts.lengths], [[f"{tokens:,}" for tokens in facts.lengths.values()]], title="tokens of a document")
    print()
    _print_lengths(facts)
    print()
    _print_taken(report)
    print()
    for line in (*report.reasons, *report.warnings):
        print(textwrap.fill(line, _WIDTH, subsequent_indent="  "))
    for verdict, examples in remarks:
        print(textwrap.fill(verdict.line, _WIDTH, subsequent_indent=" " * _INDENT))
        for example in examples:
            print(" " * _INDENT + _shortened(example))


def _shortened(name: str) -> str:
    """A name that fits into a line; the middle of a long one is left out."""
    width = _WIDTH - _INDENT
    return name if len(name) <= width else f"{name[: width // 3]}\u2026{name[len(name) - width + width // 3 + 1 :]}"


def _print_lengths(facts: Facts) -> None:
    names = ("window", "target")
    rows = [
        (
            f"{length_label(one.tokens)}, the {name}",
            f"{one.documents:,}",
            percent(one.share_of_documents),
            percent(one.share_of_tokens),
        )
        for name, one in zip(names, facts.as_long, strict=False)
    ]
    print_table(("at least as long as", "documents", "share", "share of tokens"), rows, numbers=True)


def _print_taken(report: _Report) -> None:
    """What is trained on, and what is left out and why."""
    first, *wider = report.taken
    counts = first.counts
    label = length_label(first.window)
    short = "left over from joining" if first.join else f"shorter than {first.min_tokens:,} tokens"
    # Empty documents are of either split.
    held_out = report.facts.documents - report.facts.empty - counts.kept - counts.dropped_short
    rows = [
        (f"in windows of {label}", counts.kept, counts.tokens),
        ("held out", held_out, first.held_out_tokens),
        (short, counts.dropped_short, first.short_tokens),
        ("empty", report.facts.empty, 0),
        *((f"also in windows of {length_label(one.window)}", one.counts.kept, one.counts.tokens) for one in wider),
    ]
    shown = [(name, f"{documents:,}", f"{tokens:,}") for name, documents, tokens in rows]
    print_table(("what a run would train on", "documents", "tokens"), shown, numbers=True)


def _training_json(report: _Report) -> dict[str, Any]:
    taken = [asdict(one) for one in report.taken]
    return {"windows": taken, "reasons": [*report.reasons], "warnings": [*report.warnings]}

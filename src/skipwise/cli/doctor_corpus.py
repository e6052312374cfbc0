"""`skipwise doctor --data` and `--corpus`: what a corpus is made of, and what of it a run would train on."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import typer

from skipwise.cli.corpus_verdicts import Remark, corpus_remarks, percent
from skipwise.cli.loading import loading
from skipwise.cli.options import NEGATIVE, print_json, print_read_on, print_table
from skipwise.config import DataConfig, RunConfig
from skipwise.data.corpus import Corpus, StreamedCorpus, joins, open_corpus, view_of
from skipwise.data.documents import Document, Sources, inspect, require_there
from skipwise.data.formats import UnreadableError
from skipwise.data.store import choose_held_out_end
from skipwise.data.survey import Facts, Surveyed, estimated_tokens, find_facts, survey
from skipwise.data.survey.reading import BYTES_PER_TOKEN
from skipwise.data.survey.taken import EstimatedLengths, Taken, share_of_labels, taken_by, taken_in
from skipwise.data.tokens import ConversationEncoder
from skipwise.errors import DataError
from skipwise.model.place import find_place
from skipwise.window import Window, length_label

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
        taken: what windows of each length take of it; of a mixture, of each source.
        empty: number of empty documents of each source, by name.
        left_out: whether the run leaves out all that cannot be read, instead of ending.
        reasons: what a run chooses by it.
        warnings: doubtful settings.
        tokens: of all windows of the run; None if it is not known.
    """

    facts: Facts
    taken: list[Taken]
    empty: Mapping[str, int]
    left_out: bool
    reasons: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The documents of a run, read once.

    Attributes:
        names: of the entries of a mixture; one empty name without a mixture.
        data: settings of each.
        found: in the documents of all.
    """

    names: list[str]
    data: list[DataConfig]
    found: Surveyed

    def estimates(self) -> list[EstimatedLengths]:
        """Lengths of the documents of each source, estimated."""
        ends = np.cumsum(self.found.counts)[:-1]
        tokens, splits = (np.split(each, ends) for each in (estimated_tokens(self.found.sizes), self.found.splits))
        return [
            EstimatedLengths(tokens=own, splits=split, has_turns=sources.are_conversations)
            for own, split, sources in zip(tokens, splits, self.found.sources, strict=True)
        ]

    def empty(self) -> dict[str, int]:
        """Number of empty documents of each source, by name."""
        of_each = np.split(self.found.sizes == 0, np.cumsum(self.found.counts)[:-1])
        return {name: int(is_empty.sum()) for name, is_empty in zip(self.names, of_each, strict=True)}

    def left_out(self) -> bool:
        """Whether the run leaves out all that cannot be read, instead of ending."""
        return all(own.skip_unreadable for own, bad in zip(self.data, self.found.unreadable, strict=True) if bad)


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
    read = _read(run.data)
    if has_model and read.found.sizes.any():
        report = _counted(run, read, has_target)
    else:
        report = _estimated(run, read, has_target)
    remarks = [*corpus_remarks(report.facts, report.taken, skips_unreadable=report.left_out)]
    if as_json:
        print_json({"corpus": asdict(report.facts), "training": _training_json(run.data, report)})
        for verdict, examples in remarks:
            print_json({**verdict.to_json(), "examples": examples})
    else:
        _print(run.data, report, remarks)
    if any(verdict.status == "fail" for verdict, _ in remarks):
        raise typer.Exit(NEGATIVE)


def _read(data: DataConfig) -> _Read:
    entries = data.entries()
    names = [entry.name for entry in data.mixture if entry.source is not None] or [""]
    looked = [
        inspect(own.source, field=own.field, skip_unreadable=own.skip_unreadable, format=own.format) for own in entries
    ]
    found = survey([own for own, _ in looked], most_bytes=_STREAMED_BYTES if data.streaming else None)
    # What is found at first may lie behind the end of a stream.
    unreadable = [later or first for (_, first), later in zip(looked, found.unreadable, strict=True)]
    return _Read(names=names, data=entries, found=_without_bad(replace(found, unreadable=unreadable)))


def _without_bad(found: Surveyed) -> Surveyed:
    """What can be read is reported all the same."""
    pairs = zip(found.sources, found.unreadable, strict=True)
    return replace(found, sources=[replace(own, skip_unreadable=True) if bad else own for own, bad in pairs])


def _opened(run: RunConfig, read: _Read, tokenizer: Any) -> tuple[Corpus, _Read]:
    """The corpus, and what was read without the conversations that the model's chat template rejects."""
    have_turns = [own.are_conversations for own in read.found.sources]
    corpus = None
    try:
        corpus = open_corpus(run.data, tokenizer, read.found.sources)
    except DataError:
        if run.data.streaming or not any(have_turns):
            raise
    if isinstance(corpus, StreamedCorpus):
        return corpus, read
    if corpus and sum(len(part.files.offsets) - 1 for part in corpus.parts) == len(read.found.sizes):
        return corpus, read
    encoders = [
        ConversationEncoder(tokenizer, own.control_tokens) if chats else None
        for own, chats in zip(read.data, have_turns, strict=True)
    ]

    def why_not(entry: int, document: Document) -> UnreadableError | None:
        encoder = encoders[entry]
        return encoder.why_not(document) if encoder else None

    read = replace(read, found=_without_bad(survey(read.found.sources, why_not=why_not)))
    return corpus or open_corpus(run.data, tokenizer, read.found.sources), read


def _estimated(run: RunConfig, read: _Read, has_target: bool) -> _Report:
    """The report without a tokenizer, by the training window that most models get."""
    window = run.resolve_window(run.original or _ORIGINAL)
    entries = zip(read.names, read.data, read.found.sources, read.estimates(), strict=True)
    taken = [_taken_by_estimate(*entry, window.train) for entry in entries]
    tokens = estimated_tokens(read.found.sizes)
    facts = _facts(run, read, tokens, _lengths(window, has_target), is_estimate=True)
    return _Report(facts=facts, taken=taken, empty=read.empty(), left_out=read.left_out())


def _taken_by_estimate(name: str, data: DataConfig, sources: Sources, lengths: EstimatedLengths, window: int) -> Taken:
    end, join = None, joins(data, sources)
    if data.held_out and not data.streaming:
        keep = 1 if join else max(window, data.min_tokens or 0)
        end = choose_held_out_end(lengths, share=data.held_out, at_least=window, enough=window, keep=keep)
    view = view_of(data, "train", min_tokens=window, join=join, held_out_end=end)
    return taken_by(window, lengths, view, files_passed_over=sources.kinds_passed_over.total(), source=name)


def _counted(run: RunConfig, read: _Read, has_target: bool) -> _Report:
    """The report by the model's tokenizer; tokens are kept where `extend` looks for them."""
    with loading(f"reading the tokenizer of {run.model}"):
        from skipwise.model import original_window, read_config, read_tokenizer
        from skipwise.train.checks import check_run
        from skipwise.train.outlook import look_ahead

    how: dict[str, Any] = {"trust_remote_code": run.trust_remote_code}
    base = read_config(run.model, original=run.original, **how)
    window = run.resolve_window(original_window(base))
    checked = check_run(run, sources=read.found.sources) if has_target else None
    tokenizer = checked.tokenizer if checked else read_tokenizer(run.model, base, **how)
    corpus, read = _opened(run, read, tokenizer)
    is_streamed = isinstance(corpus, StreamedCorpus)
    estimates = read.estimates()[0] if is_streamed else None
    tokens = estimates.tokens if estimates else np.concatenate([np.diff(part.files.offsets) for part in corpus.parts])
    if len(tokens) != len(read.found.sizes):
        raise DataError("documents changed while being read; start again when they are complete", page="changed-files")
    labels = share_of_labels([part.files for part in corpus.parts])
    facts = _facts(run, read, tokens, _lengths(window, has_target), is_estimate=is_streamed, share_of_labels=labels)
    if checked is None:
        parts = (corpus,) if is_streamed else corpus.parts
        taken = [taken_in(part, window.train, estimates) for part in parts]
        return _Report(facts=facts, taken=taken, empty=read.empty(), left_out=read.left_out())
    outlook = look_ahead(run, checked, corpus, estimates)
    return _Report(
        facts=facts,
        taken=outlook.taken,
        empty=read.empty(),
        left_out=read.left_out(),
        reasons=outlook.reasons,
        warnings=outlook.warnings,
        tokens=outlook.tokens,
    )


def _lengths(window: Window, has_target: bool) -> list[int]:
    return [window.train, window.target] if has_target else [window.train]


def _facts(run: RunConfig, read: _Read, tokens: np.ndarray, lengths: list[int], **how: Any) -> Facts:
    return find_facts(read.found, tokens, lengths=lengths, held_out_share=run.data.held_out, **how)


def _print(data: DataConfig, report: _Report, remarks: Sequence[Remark]) -> None:
    facts = report.facts
    _print_size(data.source if isinstance(data.source, str) else " ".join(data.source), facts)
    print()
    if facts.lengths:
        shown = [f"{tokens:,}" for tokens in facts.lengths.values()]
        print_table([*facts.lengths], [shown], title="tokens of a document")
        print()
        _print_lengths(facts)
        print()
        _print_taken(data, report)
        print()
    for line in (*report.reasons, *report.warnings):
        print(textwrap.fill(line, _WIDTH, subsequent_indent="  "))
    for verdict, examples in remarks:
        print(textwrap.fill(verdict.line, _WIDTH, subsequent_indent=" " * _INDENT))
        for example in examples:
            print(" " * _INDENT + _shortened(example, _WIDTH - _INDENT))
    print_read_on([verdict for verdict, _ in remarks])


def _print_size(names: str, facts: Facts) -> None:
    guess = f", estimated as {BYTES_PER_TOKEN} bytes each: a model's tokenizer counts them" if facts.is_estimate else ""
    size = f"{facts.num_bytes / 1e6:,.1f} MB" if facts.num_bytes >= 1e5 else f"{facts.num_bytes / 1e3:,.1f} kB"
    read = "" if facts.is_whole else f"the first {size} of "
    text = f"{facts.documents:,} documents, {size} of text, {facts.tokens:,} tokens{guess}"
    print(textwrap.fill(f"{read}{names}: {text}", _WIDTH))
    with_text = facts.documents - facts.empty
    if facts.sampled < with_text:
        sample = f"the checks of content use a sample of {facts.sampled:,} of {with_text:,} documents"
        print(textwrap.fill(f"{sample}, in which duplicates are together or not at all", _WIDTH))


def _shortened(name: str, width: int) -> str:
    """A name that fits; the middle of a long one is left out."""
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


def _print_taken(data: DataConfig, report: _Report) -> None:
    """What is trained on, and what is left out and why; of a mixture, of each source."""
    shares = _shares(data)
    for name, empty in report.empty.items():
        own = [one for one in report.taken if one.source == name]
        if name:
            print(textwrap.fill(f"{_shortened(name, _WIDTH // 2)}: {_told(shares[name], own[0], report)}", _WIDTH))
        shown = [(label, f"{documents:,}", f"{tokens:,}") for label, documents, tokens in _rows(own, empty)]
        print_table(("what a run would train on", "documents", "tokens"), shown, numbers=True)
        if name and name != [*report.empty][-1]:
            print()
    for name in shares.keys() - report.empty.keys():
        print(f"\n{name}: {percent(shares[name])} of the run's tokens")


def _told(share: float, taken: Taken, report: _Report) -> str:
    """How much of a run is of a source."""
    if report.tokens is None or not taken.counts.tokens:
        return f"{percent(share)} of the run's tokens"
    times = share * report.tokens / taken.counts.tokens
    return f"{percent(share)} of the run's {report.tokens:,} tokens, {times:,.{int(times < 10)}f} times what it has"


def _rows(taken: list[Taken], empty: int) -> Iterator[tuple[str, int, int]]:
    first, *wider = taken
    counts = first.counts
    yield f"in windows of {length_label(first.window)}", counts.kept, counts.tokens
    # Empty documents are of either split.
    yield "held out", counts.seen - empty - counts.kept - counts.dropped_short, first.held_out_tokens
    short = "left over from joining" if first.join else f"shorter than {first.min_tokens:,} tokens"
    yield short, counts.dropped_short, first.short_tokens
    yield "empty", empty, 0
    for one in wider:
        yield f"also in windows of {length_label(one.window)}", one.counts.kept, one.counts.tokens


def _shares(data: DataConfig) -> dict[str, float]:
    """The share of a run's tokens by source of a mixture."""
    total = sum(entry.exact_weight for entry in data.mixture)
    return {entry.name: float(entry.exact_weight / total) for entry in data.mixture}


def _training_json(data: DataConfig, report: _Report) -> dict[str, Any]:
    taken = [asdict(one) for one in report.taken]
    return {
        "windows": taken,
        "shares": _shares(data),
        "tokens": report.tokens,
        "reasons": [*report.reasons],
        "warnings": [*report.warnings],
    }

"""What a run is going to take of its documents, found out without its weights."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from skipwise.config import RunConfig
from skipwise.config.recipes import resolve
from skipwise.config.stages import run_stages, short_stage
from skipwise.data.corpus import Corpus, MixedCorpus, StoredCorpus, StreamedCorpus
from skipwise.data.survey.taken import EstimatedLengths, Taken, taken_in
from skipwise.train.checks import CheckedRun
from skipwise.train.validation import find_held_out_ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run takes of its documents.

    Attributes:
        config: the run as it is resolved.
        reasons: what was chosen and why, one line each.
        warnings: doubtful settings, one line each.
        taken: what windows of each length take, by source, the shortest first.
        tokens: of all its windows.
    """

    config: RunConfig
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    taken: list[Taken]
    tokens: int


def look_ahead(
    given: RunConfig, checked: CheckedRun, corpus: Corpus, estimates: EstimatedLengths | None = None
) -> Outlook:
    """Resolves a run on its documents as `extend` does, and counts what its windows take.

    Args:
        given: the run.
        checked: from `check_run`.
        corpus: its documents.
        estimates: of the lengths of documents that are streamed.
    """
    resolved, facts = checked.resolved, checked.facts
    if not isinstance(corpus, StreamedCorpus):
        # The held-out end of a document depends on the widest window, and that on how many documents are long.
        divided = _with_held_out_ends(corpus, resolved.config, checked)
        resolved = resolve(given, dataclasses.replace(facts, long_documents=divided.scarcest))
        corpus = _with_held_out_ends(corpus, resolved.config, checked)
    return Outlook(
        config=resolved.config,
        reasons=resolved.reasons,
        warnings=resolved.warnings,
        taken=[
            taken_in(part, window, estimates)
            for part, is_replay in _parts(corpus)
            for window in _windows(resolved.config, checked, is_replay)
        ],
        tokens=facts.steps * facts.step_windows * facts.window.train,
    )


def _parts(corpus: Corpus) -> Iterator[tuple[StoredCorpus | StreamedCorpus, bool]]:
    """The documents of each source, and whether they are for short replay alone."""
    if not isinstance(corpus, MixedCorpus):
        yield corpus, False
        return
    entries = (entry for entry in corpus.data.mixture if entry.source is not None)
    yield from ((part, entry.replay) for part, entry in zip(corpus.parts, entries, strict=True))


def _windows(config: RunConfig, checked: CheckedRun, is_replay: bool) -> list[int]:
    """Tokens of the windows that are made of a source, the shortest first."""
    stages = run_stages(config, checked.facts.window, checked.facts.steps)
    short = short_stage(config, stages)
    mixture = config.data.mixture
    if short is not None and (is_replay or not mixture or any(one.replay and one.source is None for one in mixture)):
        stages = [short] if is_replay else [*stages, short]
    return sorted({stage.window.train for stage in stages})


def _with_held_out_ends(
    corpus: StoredCorpus | MixedCorpus, config: RunConfig, checked: CheckedRun
) -> StoredCorpus | MixedCorpus:
    stages = run_stages(config, checked.facts.window, checked.facts.steps)
    widest = max(stage.window.train for stage in stages)
    return corpus.with_held_out_ends(find_held_out_ends(corpus, checked.validation_lengths, widest))

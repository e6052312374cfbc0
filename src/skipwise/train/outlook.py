"""What a run is going to take of its documents, found out without its weights."""

import dataclasses
from dataclasses import dataclass

from skipwise.config import RunConfig
from skipwise.config.recipes import resolve
from skipwise.config.stages import RunStage, run_stages, short_stage
from skipwise.data.corpus import StoredCorpus, StreamedCorpus
from skipwise.data.store import Lengths
from skipwise.data.survey.taken import Taken, taken_in
from skipwise.train.checks import CheckedRun
from skipwise.train.validation import find_held_out_ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run takes of its documents.

    Attributes:
        config: the run as it is resolved.
        reasons: what was chosen and why, one line each.
        warnings: doubtful settings, one line each.
        taken: what windows of each length take, the shortest first.
    """

    config: RunConfig
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    taken: list[Taken]


def look_ahead(
    given: RunConfig, checked: CheckedRun, corpus: StoredCorpus | StreamedCorpus, lengths: Lengths
) -> Outlook:
    """Resolves a run on its documents as `extend` does, and counts what its windows take.

    Args:
        given: the run.
        checked: from `check_run`.
        corpus: its documents.
        lengths: of these: token files, or estimates if they are streamed.
    """
    resolved = checked.resolved
    if not isinstance(corpus, StreamedCorpus):
        # The held-out end of a document depends on the widest window, and that on how many documents are long.
        divided = _with_held_out_ends(corpus, resolved.config, checked)
        resolved = resolve(given, dataclasses.replace(checked.facts, long_documents=divided.scarcest))
        corpus = _with_held_out_ends(corpus, resolved.config, checked)
    windows = sorted({stage.window.train for stage in _stages(resolved.config, checked)})
    return Outlook(
        config=resolved.config,
        reasons=resolved.reasons,
        warnings=resolved.warnings,
        taken=[taken_in(corpus, lengths, window) for window in windows],
    )


def _with_held_out_ends(corpus: StoredCorpus, config: RunConfig, checked: CheckedRun) -> StoredCorpus:
    widest = max(stage.window.train for stage in _stages(config, checked))
    return corpus.with_held_out_ends(find_held_out_ends(corpus, checked.validation_lengths, widest))


def _stages(config: RunConfig, checked: CheckedRun) -> list[RunStage]:
    """The stages of a run, and that of its short steps."""
    stages = run_stages(config, checked.facts.window, checked.facts.steps)
    return [*stages, *filter(None, [short_stage(config, stages)])]

"""A run's documents: found, and made into the items of its stages."""

import logging
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from skipwise.config import RunConfig
from skipwise.config.stages import RunStage, short_stage
from skipwise.data.corpus import Corpus, StoredCorpus, StreamedCorpus, TokenStore
from skipwise.data.documents import Sources, kinds_line, look_through
from skipwise.data.items import TrainingItems
from skipwise.data.stream import DocumentStream, check_streaming
from skipwise.train.curriculum import Stage
from skipwise.train.exercises import Items, RetrievalExercises
from skipwise.train.streamed import StreamedItems

logger = logging.getLogger("skipwise")

_NAMED_AT_MOST = 3


def check_sources(config: RunConfig, sources: Sources | None = None) -> Sources:
    """Inspects the run's documents; looks up on the hub what is no path on this machine.

    Warns about empty files, since copying or downloading may have failed.

    Args:
        config: the run.
        sources: its documents, if they are inspected already.

    Raises:
        DataError: there are none, or some cannot be read (see `documents.look_through`).
    """
    data = config.data
    sources = look_through(sources or data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    if data.streaming:
        check_streaming(sources, config.training.get("dataloader_num_workers", 0))
    if empty := sources.empty_files():
        more = len(empty) - _NAMED_AT_MOST
        named = ", ".join(empty[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        logger.warning(f"empty files give nothing to train on: {named}")
    return sources


def make_stages(
    config: RunConfig, corpus: Corpus, stages: Sequence[RunStage], *, num_steps: int, items_per_step: int
) -> tuple[list[Stage], Stage | None, TokenStore | DocumentStream]:
    """The items of a run by stage, those of its short steps, and the documents of its first stage.

    Args:
        config: the run.
        corpus: its documents.
        stages: from `run_stages`.
        num_steps: optimizer steps of the run.
        items_per_step: windows per optimizer step, over all processes, before windows grow.

    Raises:
        DataError: documents that cannot be read, or too short.
        ConfigError: a window too short for a retrieval exercise.
    """
    data, seed = config.data, config.seed
    # One stream for all stages: each goes on where the one before has stopped.
    stream = corpus.stream(lanes=items_per_step, seed=seed) if isinstance(corpus, StreamedCorpus) else None
    opened: list[TokenStore | DocumentStream] = []

    def stage_of(stage: RunStage, retrieval: float) -> Stage:
        begin, lengths, sampler = stage
        how: dict[str, Any] = {"mask_joints": data.mask_joints, "near_labels": data.near_labels}
        items: Items
        if isinstance(corpus, StoredCorpus):
            opened.append(store := corpus.documents("train", min_tokens=lengths.train))
            items = TrainingItems(store, sampler, lengths, seed, **how)
        else:
            assert stream is not None
            opened.append(stream)
            how |= {"lanes": items_per_step, "num_places": num_steps * items_per_step}
            how |= {"min_tokens": max(lengths.train, data.min_tokens or 0)}
            items = StreamedItems(stream, sampler, lengths, seed, **how)
        if retrieval:
            exercises = RetrievalExercises(corpus.tokenizer, items, sampler, lengths, seed, retrieval)
            return Stage(begin, lengths.train, exercises)
        return Stage(begin, lengths.train, items)

    made = [stage_of(stage, data.retrieval) for stage in stages]
    logger.info(_told(opened[0], corpus.sources))
    # Short steps are of text alone: they preserve the short window, not the finding of keys.
    short = short_stage(config, stages)
    return made, short and stage_of(short, 0.0), opened[0]


def _told(store: TokenStore | DocumentStream, sources: Sources) -> str:
    """What is trained on, what is not and why, in one line."""
    if isinstance(store, DocumentStream):
        return f"training on documents as they are read from {store.num_shards:,} shards"
    counts, view = store.counts, store.view
    dropped = {
        "held out": counts.other_part,
        "left over from joining" if view.join else f"shorter than {view.min_tokens} tokens": counts.dropped_short,
        "empty": counts.dropped_empty,
    }
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
    line = f"training on {counts.documents:,} documents of {counts.tokens:,} tokens; of {counts.seen:,} seen "
    line += f"{reasons} are left out" if reasons else "none is left out"
    if kinds := kinds_line(sources.kinds_passed_over):
        line += f"; files of unsupported kinds: {kinds}"
    unreadable = sources.passed_over()
    unreadable.update(store.passed_over)
    if unreadable:
        line += f"; unreadable and left out: {unreadable.numbers()}"
    if counts.dropped_short > counts.kept and not view.join:
        line += "; most are too short, --set data.join=true joins them"
    return line


def shows_bars(config: RunConfig) -> bool:
    """Whether this process shows progress bars."""
    return PartialState().is_main_process and not config.training.get("disable_tqdm", False)

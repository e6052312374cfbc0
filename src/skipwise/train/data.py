"""A run's documents: found, and made into the items of its stages."""

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from skipwise.config import RunConfig
from skipwise.config.stages import RunStage, short_stage
from skipwise.data.corpus import Corpus, MixedCorpus, MixedStore, StreamedCorpus, TokenStore, look_at
from skipwise.data.documents import Sources, kinds_line
from skipwise.data.items import TrainingItems
from skipwise.data.stream import DocumentStream, check_streaming
from skipwise.train.drawn import Drawn, drawn_from
from skipwise.train.exercises import Items, RetrievalExercises
from skipwise.train.far_labels import COUNTED_WINDOWS, FarLabels
from skipwise.train.layout import Layout
from skipwise.train.streamed import StreamedItems

logger = logging.getLogger("skipwise")

_NAMED_AT_MOST = 3

Documents = TokenStore | MixedStore | DocumentStream
"""What the items of a stage are made of."""


class StagedItems(NamedTuple):
    """What a run is trained on.

    Attributes:
        stages: the items of each stage.
        short: the items of the short steps; None if there are none.
        documents: of the first stage.
        drawn: what is drawn from which source of a mixture.
        far_labels: weights of the labels of each stage; empty if they have none.
    """

    stages: list[Items | RetrievalExercises]
    short: Items | None
    documents: Documents
    drawn: list[Drawn]
    far_labels: list[FarLabels]


def check_sources(config: RunConfig, sources: Sequence[Sources] | None = None) -> list[Sources]:
    """Inspects the run's documents, by source, unless that is done; looks up on the hub what is no path here.

    Warns about empty files, since copying or downloading may have failed.

    Args:
        config: the run.
        sources: its documents, if they are inspected already.

    Raises:
        DataError: there are none, or some cannot be read (see `documents.look_through`).
    """
    sources = [*(sources or look_at(config.data))]
    if config.data.streaming:
        check_streaming(sources[0], config.training.get("dataloader_num_workers", 0))
    if empty := [name for own in sources for name in own.empty_files()]:
        more = len(empty) - _NAMED_AT_MOST
        named = ", ".join(empty[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        logger.warning(f"empty files give nothing to train on: {named}")
    _tell_of_shared_files(config, sources)
    return sources


def _tell_of_shared_files(config: RunConfig, sources: Sequence[Sources]) -> None:
    """Warns about files of two entries of a mixture: these have more of the tokens than either weight says."""
    names = [entry.name for entry in config.data.mixture if entry.source is not None and not entry.replay]
    is_trained = [not entry.replay for entry in config.data.mixture if entry.source is not None]
    first: dict[Path, str] = {}
    shared: Counter[tuple[str, str]] = Counter()
    for name, own in zip(names, itertools.compress(sources, is_trained), strict=True):
        for file in own.files():
            shared[first.setdefault(file.resolve(), name), name] += 1
    for (one, other), number in shared.items():
        if one != other:
            logger.warning(f"files of {other} are in {one}, too, and are drawn for both ({number:,})")


def make_stages(config: RunConfig, corpus: Corpus, stages: Sequence[RunStage], layout: Layout) -> StagedItems:
    """The items of a run by stage, and what they are made of.

    Args:
        config: the run.
        corpus: its documents.
        stages: from `run_stages`.
        layout: which windows each step has.

    Raises:
        DataError: documents that cannot be read, or too short.
        ConfigError: a window too short for a retrieval exercise.
    """
    seed, lanes = config.seed, layout.items_per_step
    # One stream for all stages: each goes on where the one before has stopped.
    stream = corpus.stream(lanes=lanes, seed=seed) if isinstance(corpus, StreamedCorpus) else None
    how: dict[str, Any] = {"mask_joints": config.data.mask_joints, "near_labels": config.data.near_labels}

    def items_of(stage: RunStage, store: Documents) -> Items:
        _, lengths, sampler = stage
        if isinstance(store, MixedStore):
            return store.items(sampler, lengths, seed, layout, **how)
        if isinstance(store, TokenStore):
            return TrainingItems(store, sampler, lengths, seed, skips_at=config.data.skips_at, **how)
        own = {"lanes": lanes, "num_places": len(layout), "min_tokens": max(lengths.train, config.data.min_tokens or 0)}
        return StreamedItems(store, sampler, lengths, seed, **own, **how)

    def documents_for(stage: RunStage, replay: bool = False) -> Documents:
        if isinstance(corpus, StreamedCorpus):
            assert stream is not None
            return stream
        return (corpus.replayed if replay else corpus.training)(stage.window.train)

    opened, made = list[Documents](), list[Items | RetrievalExercises]()
    for stage in stages:
        opened.append(documents_for(stage))
        made.append(items := items_of(stage, opened[-1]))
        if share := config.data.retrieval:
            made[-1] = RetrievalExercises(
                corpus.tokenizer, items, stage.sampler, stage.window, seed, share, config.data.retrieval_language
            )
    _tell(corpus, opened[0])
    # Short steps are of text alone: they preserve the short window, not the finding of keys.
    short = short_stage(config, stages)
    replayed = short and documents_for(short, replay=True)
    drawn = drawn_from(layout, opened, replayed, config.data.replay_share)
    for each in drawn:
        logger.log(logging.INFO if each.windows else logging.WARNING, f"drawn from {each.source}: {each.told()}")
    far_labels = _far_labels(config, stages, made, opened, layout) if config.loss.far_extra else []
    return StagedItems(made, short and replayed and items_of(short, replayed), opened[0], drawn, far_labels)


def _far_labels(
    config: RunConfig,
    stages: Sequence[RunStage],
    made: Sequence[Items | RetrievalExercises],
    opened: Sequence[Documents],
    layout: Layout,
) -> list[FarLabels]:
    """The weights of each stage's labels, by the first windows of the stage."""
    found = []
    for stage, items, documents in zip(stages, made, opened, strict=True):
        stores = documents.stores if isinstance(documents, MixedStore) else [documents]
        begin = stage.begin * layout.items_per_step
        found.append(
            FarLabels.counted(
                items,
                range(begin, begin + COUNTED_WINDOWS),
                original=stage.window.original,
                target=stage.window.target,
                extra=config.loss.far_extra,
                separators={store.separator_id for store in stores if store.separator_id is not None},
            )
        )
        weights = ", ".join(f"{weight:.3g}" for weight in found[-1].weights)
        logger.info(f"weights of labels, by contexts below the original window and its doublings: {weights}")
    return found


def _tell(corpus: Corpus, store: Documents) -> None:
    """Logs what is trained on, of each source."""
    if isinstance(store, MixedStore):
        by_name = {part.name: part.sources for part in corpus.parts}
        for name, own in zip(store.names, store.stores, strict=True):
            logger.info(f"{name}: {_told(own, by_name[name])}")
    else:
        assert not isinstance(corpus, MixedCorpus)
        logger.info(_told(store, corpus.sources))


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
    labels = f" (about {store.label_share:.0%} labels)" if store.has_turns else ""
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items() if number)
    line = f"training on {counts.text}, {counts.tokens:,} tokens{labels}"
    line += f"; not used of {counts.seen:,}: {reasons}" if reasons else "; all are used"
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

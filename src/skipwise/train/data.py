"""A run's documents: found, and made into the curriculum that it trains on."""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from accelerate import PartialState

from skipwise.config import RunConfig
from skipwise.data.corpus import Corpus, HeldOutEnd, StreamedCorpus, TokenStore
from skipwise.data.documents import Sources, kinds_line, look_through
from skipwise.data.items import TrainingItems
from skipwise.data.stream import DocumentStream, check_streaming
from skipwise.errors import ConfigError, DataError
from skipwise.positions import PoSE, PositionSampler
from skipwise.train.curriculum import Curriculum, Stage, Stretch
from skipwise.train.exercises import Items, RetrievalExercises
from skipwise.train.recipe import ShortDocumentsError
from skipwise.train.streamed import StreamedItems
from skipwise.window import Window

logger = logging.getLogger("skipwise")

_NAMED_AT_MOST = 3
_SHOWN_AT_MOST = 16


class RunStage(NamedTuple):
    """Steps of a run that are drawn alike.

    Attributes:
        begin: the first of them.
        window: their lengths, in tokens.
        sampler: of their positions.
    """

    begin: int
    window: Window
    sampler: PositionSampler


def run_stages(
    config: RunConfig, window: Window, num_steps: int, sampler: PositionSampler | None = None
) -> list[RunStage]:
    """The stages of a run: its own, and one for each growth; without those that have no step.

    Args:
        config: the run.
        window: its lengths, in tokens.
        num_steps: optimizer steps of the run.
        sampler: in place of its own, in all of them.

    Raises:
        PositionError: a grown window is longer than its target.
        ConfigError: growth changes fields of the sampler, and that is the caller's.
    """
    if sampler is not None and any(growth.sampler for growth in config.growth):
        raise ConfigError("setting 'growth' changes fields of the sampler, and this run has a sampler of its own")
    stages = [RunStage(0, window, sampler or config.build_sampler())]
    for growth in config.growth:
        begin = num_steps - max(1, round(num_steps * growth.share))
        stages.append(RunStage(begin, growth.lengths(window), sampler or config.build_sampler(growth)))
    begins = [*(stage.begin for stage in stages[1:]), num_steps]
    return [stage for stage, following in zip(stages, begins, strict=True) if stage.begin < following]


def short_stage(config: RunConfig, stages: Sequence[RunStage]) -> RunStage | None:
    """The short steps of a run: windows of the base model, as far as others are as wide; None where it has none."""
    if not config.short_steps:
        return None
    widest = max((stage.window for stage in stages), key=lambda window: window.train)
    window = dataclasses.replace(widest, train=min(widest.original, widest.train))
    return RunStage(0, window, PoSE(chunks=1, text="contiguous", start="mixed"))


def check_sources(config: RunConfig) -> Sources:
    """Looks through the run's documents; what is no path on this machine is asked for on the hub.

    Warns of files that are empty, as copying or fetching may have failed.

    Raises:
        DataError: there are none, or some cannot be read (see `documents.look_through`).
    """
    data = config.data
    sources = look_through(data.source, field=data.field, skip_unreadable=data.skip_unreadable)
    if data.streaming:
        check_streaming(sources, config.training.get("dataloader_num_workers", 0))
    if empty := sources.empty_files():
        more = len(empty) - _NAMED_AT_MOST
        named = ", ".join(empty[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        logger.warning(f"empty files give nothing to train on: {named}")
    return sources


def build_curriculum(
    config: RunConfig,
    corpus: Corpus,
    tokenizer: Any,
    window: Window,
    stages: Sequence[RunStage],
    num_steps: int,
    items_per_step: int,
    items_at_a_time: int,
    skipped: Sequence[int] = (),
    evenly: bool = False,
    strict: bool = False,
    together: bool = False,
    held_out_end: HeldOutEnd | None = None,
) -> tuple[Curriculum, TokenStore | DocumentStream]:
    """All items of a run in order, and the documents of its first stage.

    Args:
        config: the run.
        corpus: its documents.
        tokenizer: the model's own.
        window: lengths of the run, in tokens.
        stages: as `run_stages` gives them.
        num_steps: optimizer steps of the run.
        items_per_step: windows of one optimizer step, over all processes, as long as the window has not grown.
        items_at_a_time: windows of one batch on one device, as the run was begun.
        skipped: places in the run whose items it does without.
        evenly: the run goes on with batches of another size.
        together: processes hold a model or windows together, so that none may have an empty batch alone.
        held_out_end: end of a document that is not trained on.
        strict: refuses windows that so few documents are as long as that the run would learn these by heart.

    Raises:
        DataError: documents that cannot be read, or too short.
        ShortDocumentsError: too short for windows that have grown.
        ConfigError: a window too short for a retrieval exercise.
    """
    data, seed = config.data, config.seed
    documents: list[TokenStore | DocumentStream] = []
    ends = dict(itertools.pairwise([*(stage.begin for stage in stages), num_steps]))

    def stretch(stage: RunStage, retrieval: float) -> Stretch:
        items: Items
        begin, lengths, sampler = stage
        if isinstance(corpus, StreamedCorpus):
            # One for all stages: each goes on where the one before has come to.
            stream = documents[0] if documents else corpus.stream(lanes=items_per_step, seed=seed)
            assert isinstance(stream, DocumentStream)
            documents.append(stream)
            items = StreamedItems(
                stream,
                sampler,
                lengths,
                seed,
                min_tokens=max(lengths.train, data.min_tokens or 0),
                mask_joints=data.mask_joints,
                near_labels=data.near_labels,
                lanes=items_per_step,
                num_places=num_steps * items_per_step,
            )
        else:
            try:
                store = corpus.documents("train", min_tokens=lengths.train, held_out_end=held_out_end)
            except DataError as error:
                if lengths.train <= window.train:
                    raise
                raise ShortDocumentsError(str(error)) from error
            if strict and lengths.train > window.train:
                num_windows = (ends[begin] - begin) * max(1, items_per_step * window.train // lengths.train)
                _require_enough(store, num_windows, lengths.train)
            documents.append(store)
            items = TrainingItems(store, sampler, lengths, seed, data.mask_joints, data.near_labels)
        exercises = RetrievalExercises(tokenizer, items, sampler, lengths, seed) if retrieval > 0 else None
        return Stretch(begin, lengths.train, Stage(items, exercises, retrieval, seed))

    stretches = [stretch(stage, data.retrieval) for stage in stages]
    short = short_stage(config, stages)
    logger.info(_told(documents[0], corpus.sources))
    curriculum = Curriculum(
        stretches,
        num_steps,
        window.train,
        items_per_step,
        items_at_a_time,
        skipped,
        evenly,
        keep_tokens=config.keep_tokens and not together,
        # They are of text alone: what they keep is not the finding of keys.
        short=short and stretch(short, 0.0),
        short_steps=config.short_steps,
    )
    return curriculum, documents[0]


def _require_enough(store: TokenStore, num_windows: int, tokens: int) -> None:
    """Refuses a stage that would show each of a few long documents again and again."""
    if num_windows > _SHOWN_AT_MOST * store.num_documents:
        raise ShortDocumentsError(
            f"{store.num_documents:,} documents have the {tokens} tokens of a window that has grown, and each would be "
            f"shown {num_windows / store.num_documents:.0f} times; give longer ones, or data.join: true"
        )


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
        line += f"; files of kinds that are not read: {kinds}"
    unreadable = sources.passed_over()
    unreadable.update(store.passed_over)
    if unreadable:
        line += f"; left out as they cannot be read: {unreadable.numbers()}"
    if counts.dropped_short > counts.kept and not view.join:
        line += "; most are too short, --set data.join=true joins them"
    return line


def shows_bars(config: RunConfig) -> bool:
    """Whether this process shows progress bars."""
    return PartialState().is_main_process and not config.training.get("disable_tqdm", False)

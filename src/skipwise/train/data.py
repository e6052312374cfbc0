"""A run's documents: found, and made into the curriculum that it trains on."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from skipwise.config import RunConfig
from skipwise.config.stages import RunStage, short_stage
from skipwise.data.corpus import HeldOutEnd, Part, TokenStore, build_store
from skipwise.data.documents import Sources, kinds_line, look_through
from skipwise.data.items import TrainingItems
from skipwise.data.store import TokenFiles, View
from skipwise.data.stream import DocumentStream, check_streaming, open_stream
from skipwise.errors import DataError
from skipwise.positions import PositionSampler
from skipwise.train.curriculum import Curriculum, Stage, Stretch
from skipwise.train.exercises import Items, RetrievalExercises
from skipwise.train.streamed import StreamedItems
from skipwise.window import Window

logger = logging.getLogger("skipwise")

_NAMED_AT_MOST = 3


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


class RunDocuments:
    """The documents of a run, tokenized once; what is asked for twice is opened once.

    Args:
        config: the run.
        sources: its documents, looked through.
        tokenizer: the model's own.

    Attributes:
        sources: as given.
        tokenizer: as given.
        held_out_end: end of a document that is not trained on; None until it is chosen, or where there is none.
    """

    def __init__(self, config: RunConfig, sources: Sources, tokenizer: Any) -> None:
        self.sources, self.tokenizer, self._config = sources, tokenizer, config
        self.held_out_end: HeldOutEnd | None = None
        self._stores: dict[View, TokenStore] = {}

    def store(self, part: Part, at_least: int, *, join: bool | None = None) -> TokenStore:
        """Documents of one part, of at least as many tokens as asked for.

        Raises:
            DataError: as `build_store`.
        """
        data = self._config.data
        view = View(
            min_tokens=max(at_least, data.min_tokens or 0),
            join=data.join if join is None else join,
            part=part,
            held_out_share=data.held_out,
            held_out_end=self.held_out_end,
        )
        if view not in self._stores:
            self._stores[view] = self._opened(view)
        return self._stores[view]

    def _opened(self, view: View) -> TokenStore:
        """The store of a view; tokens are compared with their checksums once a run, when the first is opened."""
        if like := next((store for store in self._stores.values() if store.view.join == view.join), None):
            return TokenStore(like.folder, view, files_passed_over=self.sources.kinds_passed_over.total())
        return build_store(
            self.sources,
            self.tokenizer,
            **dataclasses.asdict(view),
            control_tokens=self._config.data.control_tokens,
            progress=shows_bars(self._config),
        )

    def files(self) -> TokenFiles:
        """The token files of all documents.

        Raises:
            DataError: as `build_store`.
        """
        every = View()
        if not self._stores:
            self._stores[every] = self._opened(every)
        return TokenFiles(next(iter(self._stores.values())).folder)

    def number_of(self, tokens: int) -> int:
        """How many documents that are trained on have that many tokens."""
        try:
            return self.store("train", tokens).num_documents
        except DataError:
            return 0


def build_curriculum(
    config: RunConfig,
    documents: RunDocuments,
    window: Window,
    stages: Sequence[RunStage],
    num_steps: int,
    items_per_step: int,
    items_at_a_time: int,
    skipped: Sequence[int] = (),
    evenly: bool = False,
    together: bool = False,
) -> tuple[Curriculum, TokenStore | DocumentStream]:
    """All items of a run in order, and the documents of its first stage.

    Args:
        config: the run.
        documents: of it.
        window: lengths of the run, in tokens.
        stages: as `run_stages` gives them.
        num_steps: optimizer steps of the run.
        items_per_step: windows of one optimizer step, over all processes, as long as the window has not grown.
        items_at_a_time: windows of one batch on one device, as the run was begun.
        skipped: places in the run whose items it does without.
        evenly: the run goes on with batches of another size.
        together: processes hold a model or windows together, so that none may have an empty batch alone.

    Raises:
        DataError: documents that cannot be read, or too short.
        ConfigError: a window too short for a retrieval exercise.
    """
    streamed = config.data.streaming
    make = _StreamedItems(config, documents, items_per_step, num_steps) if streamed else _StoredItems(config, documents)

    def stretch(stage: RunStage, retrieval: float) -> Stretch:
        begin, lengths, sampler = stage
        items, seed = make.items(lengths, sampler), config.seed
        exercises = None
        if retrieval > 0:
            exercises = RetrievalExercises(documents.tokenizer, items, sampler, lengths, seed)
        return Stretch(begin, lengths.train, Stage(items, exercises, retrieval, seed))

    stretches = [stretch(stage, config.data.retrieval) for stage in stages]
    short = short_stage(config, stages)
    first = make.opened[0]
    logger.info(_told(first, documents.sources))
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
    return curriculum, first


class _StoredItems:
    """Items of token files, a view of them for each stage."""

    def __init__(self, config: RunConfig, documents: RunDocuments) -> None:
        self._config, self._documents = config, documents
        self.opened: list[TokenStore] = []

    def items(self, lengths: Window, sampler: PositionSampler) -> Items:
        """The items of a stage."""
        data = self._config.data
        self.opened.append(store := self._documents.store("train", lengths.train))
        return TrainingItems(store, sampler, lengths, self._config.seed, data.mask_joints, data.near_labels)


class _StreamedItems:
    """Items of documents as they are read: one stream for all stages, each goes on where the one before has come to."""

    def __init__(self, config: RunConfig, documents: RunDocuments, lanes: int, num_steps: int) -> None:
        self._config, self._lanes, self._num_steps = config, lanes, num_steps
        how: dict[str, Any] = {"lanes": lanes, "seed": config.seed, "sources": documents.sources}
        self.opened = [open_stream(config.data, documents.tokenizer, **how)]

    def items(self, lengths: Window, sampler: PositionSampler) -> Items:
        """The items of a stage."""
        data = self._config.data
        return StreamedItems(
            self.opened[0],
            sampler,
            lengths,
            self._config.seed,
            min_tokens=max(lengths.train, data.min_tokens or 0),
            mask_joints=data.mask_joints,
            near_labels=data.near_labels,
            lanes=self._lanes,
            num_places=self._num_steps * self._lanes,
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
